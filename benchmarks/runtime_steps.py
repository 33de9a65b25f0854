"""The number of steps as a value: a padded path's loop beside the loop of known length, and an exported sampler.

*Loop*: `cmjax.sample` on a path padded to 16 steps over the same on the path itself, for 1, 2, 4 and 8 steps, in turn.
*Compilation*: ten numbers of steps, compiled one by one, over the one program that serves them all; from tracing to
machine code, caches cleared. *Artifact*: the program that `jax.export` wrote and read back over the live function, on
one batch; and a fresh process up to its first image with either, with an empty compile cache (cold) and with what that
left (warm).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import Timing, conclude, interleaved, machine, parser, print_table, ratio, target
from start_up import _environment, _run

import cmjax
from cmjax import artifact

ROOM = 16
STEPS = (1, 2, 4, 8)
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
IMAGE = (28, 28, 1)

LIVE = """
import json, sys, time
t0 = time.perf_counter(); import jax, cmjax
t1 = time.perf_counter(); model, config = cmjax.load("fashion-mnist-cm")
t2 = time.perf_counter()
state = cmjax.pad(cmjax.cm.init(config, num_steps=2), 16)
draw = jax.jit(cmjax.generate, static_argnames="shape")
keys, labels = jax.random.split(jax.random.key(0), 1), jax.numpy.zeros(1, "int32")
jax.block_until_ready(draw(model, state, keys, shape=(1, 28, 28, 1), cond=labels))
t3 = time.perf_counter()
print(json.dumps({"imports": t1 - t0, "load": t2 - t1, "first image": t3 - t2, "all": t3 - t0}))
"""

EXPORTED = """
import json, sys, time
from pathlib import Path
t0 = time.perf_counter(); import jax, numpy; from jax import export
t1 = time.perf_counter(); folder = Path(sys.argv[1])
program = export.deserialize(bytearray((folder / "sampler.bin").read_bytes()))
state = dict(numpy.load(folder / "state.npz"))
t2 = time.perf_counter()
keys = jax.random.key_data(jax.random.split(jax.random.key(0), 1))
jax.block_until_ready(jax.jit(program.call)({}, state, keys, numpy.zeros(1, "int32")))
t3 = time.perf_counter()
print(json.dumps({"imports": t1 - t0, "load": t2 - t1, "first image": t3 - t2, "all": t3 - t0}))
"""


def loops(model: Any, config: Any, batch: int, rounds: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Time both loops in turn."""
    shape, key = (batch, *IMAGE), jax.random.key(0)
    cond, sample, programs = jnp.arange(batch) % 10, jax.jit(cmjax.sample), {}
    for n in STEPS:
        state = cmjax.cm.init(config, num_steps=n)
        x = cmjax.prior(state, key, shape)
        for name, path in (("known", state), ("padded", cmjax.pad(state, ROOM))):
            programs[f"{name} {n}"] = lambda path=path, x=x: sample(model, path, x, key, cond)
    timing, seconds = interleaved(programs, rounds=rounds)
    rows = [
        {
            "batch": batch,
            "steps": n,
            "known": timing[f"known {n}"],
            "padded": timing[f"padded {n}"],
            "ratio": ratio(seconds[f"padded {n}"], seconds[f"known {n}"]),
        }
        for n in STEPS
    ]
    rule = "steps: the loop of a padded path over that of known length"
    return rows, [target(row["ratio"], 1.05, f"batch {batch}, {row['steps']} {rule}") for row in rows]


def compilations(model: Any, config: Any, batch: int) -> dict[str, Any]:
    """Compile a loop for each number of steps, and the one for all."""

    def seconds(state: Any) -> float:
        jax.clear_caches()
        key, cond = jax.random.key(0), jnp.arange(batch) % 10
        start = time.perf_counter()
        jax.jit(cmjax.generate, static_argnames="shape").lower(model, state, key, (batch, *IMAGE), cond).compile()
        return time.perf_counter() - start

    states = [cmjax.cm.init(config, num_steps=n) for n in COUNTS]
    one_by_one = [seconds(state) for state in states]
    once = seconds(cmjax.pad(states[0], ROOM))
    return {"counts": list(COUNTS), "one_by_one": one_by_one, "once": once, "saved": sum(one_by_one) - once}


def artifacts(model: Any, config: Any, folder: Path, batch: int, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """Time the exported program against the live function, and both in fresh processes."""
    state = cmjax.pad(cmjax.cm.init(config, num_steps=2), ROOM)
    start = time.perf_counter()
    artifact.save(folder, model, config, state, IMAGE, classes=10)
    exported_in = time.perf_counter() - start
    found, keys, cond = artifact.load(folder), jax.random.split(jax.random.key(0), batch), jnp.arange(batch) % 10
    generate, call = jax.jit(cmjax.generate, static_argnames="shape"), jax.jit(found)
    live = lambda: generate(model, state, keys, (batch, *IMAGE), cond)  # noqa: E731
    exported = lambda: call(artifact.tables(state), keys, cond)  # noqa: E731
    difference = float(jnp.abs(live() - exported()).max())
    timing, seconds = interleaved({"live": live, "exported": exported}, rounds=rounds)
    quotient = ratio(seconds["exported"], seconds["live"])
    result = {"batch": batch, "export": exported_in, "ratio": quotient, "difference": difference, **timing}
    result["bytes"] = {path.name: path.stat().st_size for path in folder.iterdir()}
    return result, [target(quotient, 1.05, f"batch {batch}: the exported program over the live function")]


def fresh(folder: Path, rounds: int) -> dict[str, dict[str, dict[str, Timing]]]:
    """Time fresh processes up to their first image: live and exported, cold and warm, in turn."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    samples: dict[str, dict[str, list[Any]]] = {kind: {"cold": [], "warm": []} for kind in ("live", "exported")}
    for _ in range(rounds):
        for kind, program in (("live", LIVE), ("exported", EXPORTED)):
            with tempfile.TemporaryDirectory() as cache:
                for start in ("cold", "warm"):
                    done = _run([sys.executable, "-c", program, str(folder)], _environment(Path(cache), base))[1]
                    samples[kind][start].append(json.loads(done))
    return {
        kind: {
            start: {name: Timing.of([sample[name] for sample in found]) for name in found[0]}
            for start, found in starts.items()
        }
        for kind, starts in samples.items()
    }


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--process-rounds", type=int, default=3)
    args = options.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    here = machine()
    model, config = cmjax.load("fashion-mnist-cm")
    rows, targets = [], []
    for batch in args.batches:
        more, verdicts = loops(model, config, batch, args.rounds)
        rows, targets = rows + more, targets + verdicts
    print_table(
        "The loop, milliseconds (medians)",
        ["batch, steps", "known length", f"padded to {ROOM}", "ratio"],
        [
            [
                f"{r['batch']}, {r['steps']}",
                *(f"{r[k].median * 1e3:.2f}" for k in ("known", "padded")),
                f"{r['ratio']:.3f}",
            ]
            for r in rows
        ],
    )
    compiled = compilations(model, config, args.batches[-1])
    print_table(
        f"Compilation, seconds, of {len(COUNTS)} numbers of steps",
        ["one by one", "once", "saved"],
        [[f"{sum(compiled['one_by_one']):.1f}", f"{compiled['once']:.1f}", f"{compiled['saved']:.1f}"]],
    )
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "artifact"
        exported, verdicts = artifacts(model, config, folder, args.batches[-1], args.rounds)
        processes = fresh(folder, args.process_rounds)
    print_table(
        "Artifact: milliseconds a batch (medians), largest difference of the pictures",
        ["live", "exported", "ratio", "difference", "exported in, s"],
        [
            [
                f"{exported['live'].median * 1e3:.1f}",
                f"{exported['exported'].median * 1e3:.1f}",
                f"{exported['ratio']:.3f}",
                f"{exported['difference']:.1e}",
                f"{exported['export']:.1f}",
            ]
        ],
    )
    print_table(
        "A fresh process up to its first image, seconds (medians)",
        ["", "imports", "load", "first image", "all"],
        [
            [f"{kind}, {start}", *(f"{found[k].median:.2f}" for k in ("imports", "load", "first image", "all"))]
            for kind, starts in processes.items()
            for start, found in starts.items()
        ],
    )
    result = {"program": "runtime_steps", "loops": rows, "compilation": compiled, "artifact": exported}
    conclude({**result, "processes": processes, "targets": [*targets, *verdicts]}, args.json, here)


if __name__ == "__main__":
    main()
