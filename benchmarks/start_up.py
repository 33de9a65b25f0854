"""The front door: import, load, and the first image, each in a fresh process, with a cold and a warm compile cache.

`import cmjax` is timed after `import jax` in the same process, so it is what cmjax adds. Since it loads its parts on
first use, `and its samplers` times the import together with the first use of all samplers and the loop: the honest
figure, and the one that the target is held against. `first image` is one 2-step image from one jitted call, compilation
included; cold starts with an empty persistent compile cache, warm reuses it. `command` is a whole `python -m cmjax
sample` (80 images, picture written), cold and warm, and `command with a text` one with `--model emoji --prompt` (4
images); their processor times (`cpu`) suffer less from other work than their wall times.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Timing, conclude, machine, parser, print_table, target

IMPORT = """
import json, time
t0 = time.perf_counter(); import jax
t1 = time.perf_counter(); import cmjax
t2 = time.perf_counter(); cmjax.cm, cmjax.tcd, cmjax.lcm, cmjax.generate, cmjax.guidance, cmjax.editing
t3 = time.perf_counter()
print(json.dumps({"import jax": t1 - t0, "import cmjax": t2 - t1, "and its samplers": t3 - t1}))
"""

FIRST_IMAGE = """
import json, sys, time
t0 = time.perf_counter(); import jax, cmjax
t1 = time.perf_counter(); model, config = cmjax.load(sys.argv[1])
t2 = time.perf_counter()
generate = jax.jit(cmjax.generate, static_argnames="shape")
def image(seed):
    state = cmjax.cm.init(config, num_steps=2)
    cond = jax.numpy.zeros(1, "int32")
    return jax.block_until_ready(generate(model, state, jax.random.key(seed), shape=(1, 28, 28, 1), cond=cond))
image(0)
t3 = time.perf_counter(); image(1)
t4 = time.perf_counter()
print(json.dumps({"imports": t1 - t0, "load": t2 - t1, "first image": t3 - t2, "second image": t4 - t3}))
"""


def _run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> tuple[float, str]:
    """Run a process; returns its wall time and what it printed, or raises with what it said."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a timed process failed:\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def _environment(cache: Path, base: dict[str, str]) -> dict[str, str]:
    """Return the environment with JAX's persistent compile cache in `cache`, and everything cached."""
    return base | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _gather(samples: list[dict[str, float]]) -> dict[str, Timing]:
    return {name: Timing.of([sample[name] for sample in samples]) for name in samples[0]}


def imports(base: dict[str, str], rounds: int) -> dict[str, Timing]:
    """Time the imports, after one process that fills the byte-code and disk caches."""
    samples = [json.loads(_run([sys.executable, "-c", IMPORT], base)[1]) for _ in range(rounds + 1)]
    return _gather(samples[1:])


def first_image(model: str, base: dict[str, str], rounds: int) -> dict[str, dict[str, Timing]]:
    """Time load and first image, cold and warm in turn: every round has a new empty cache and uses it twice."""
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for samples in (cold, warm):
                environment = _environment(Path(cache), base)
                samples.append(json.loads(_run([sys.executable, "-c", FIRST_IMAGE, model], environment)[1]))
    return {"cold": _gather(cold), "warm": _gather(warm)}


def command(base: dict[str, str], rounds: int, *options: str) -> dict[str, Timing]:
    """Time `python -m cmjax sample`, cold and warm in turn; the command keeps its compile cache in the user's cache."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    processor: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in seconds:
                call = [sys.executable, "-m", "cmjax", "sample", *options, "--out", "samples.png"]
                before = _processor_time()
                seconds[name].append(_run(call, base | {"XDG_CACHE_HOME": cache}, Path(cache))[0])
                processor[name].append(_processor_time() - before)
    return {name: Timing.of(values, processor[name]) for name, values in seconds.items()}


def _processor_time() -> float:
    """Seconds of the processor that processes have taken which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="fashion-mnist-cm", help="a name or folder that cmjax.load reads")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--text-rounds", type=int, default=3)
    options.add_argument("--import-rounds", type=int, default=9)
    args = options.parse_args(arguments)
    here = machine()
    base = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    imported = imports(base, args.import_rounds)
    images = first_image(model, base, args.rounds)
    commands = command(base, args.rounds, "--model", model)
    texts = command(base, args.text_rounds, "--model", "emoji", "--prompt", "a red fox")
    print_table("Imports, seconds (medians)", ["", "s"], [[k, f"{v.median:.3f}"] for k, v in imported.items()])
    print_table(
        "A fresh process, seconds (medians)",
        ["", "cold compile cache", "warm"],
        [[k, f"{images['cold'][k].median:.3f}", f"{images['warm'][k].median:.3f}"] for k in images["cold"]]
        + [
            [what, *(f"{timed[k][figure]:.3f}" for k in ("cold", "warm"))]
            for which, timed in (("command", commands), ("command with a text", texts))
            for what, figure in ((which, "median"), (f"{which}, cpu", "cpu"))
        ],
    )
    verdicts = [
        target(imported["and its samplers"].median, 0.3, "seconds of import cmjax and its samplers beyond import jax"),
        target(commands["cold"].median, 60, "seconds of the command, cold"),
        target(commands["warm"].median, 3, "seconds of the command, warm"),
    ]
    result: dict[str, Any] = {
        "program": "start_up",
        "imports": imported,
        "process": images,
        "command": commands,
        "command_with_a_text": texts,
        "targets": verdicts,
    }
    conclude(result, args.json, here)


if __name__ == "__main__":
    main()
