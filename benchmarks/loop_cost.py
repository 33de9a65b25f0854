"""The bill of the loop: what sampling costs beyond its network calls, on the embedded model.

Three questions. *Time*: the n-step loop over n forward calls, n = 1, 2, 4, 8 (the loop also draws noise and steps).
*Sweeps*: eleven values of TCD's eta under `vmap`, over one batch eleven times as large. *Compilation*: a 4-step loop,
over one forward call and one normal draw compiled on their own; each from tracing to machine code, caches cleared,
in turn, medians. The draw is `jax.random.normal`, as the target has it; beside it cmjax's own, which compiles faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from common import Timing, conclude, interleaved, machine, parser, print_table, ratio, target

import cmjax

STEPS = (1, 2, 4, 8)
ETAS = 11


def loop_over_forward(model: Any, config: Any, batch: int, rounds: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Time the loop of n steps against n forward calls of the same batch."""
    shape, key = (batch, 28, 28, 1), jax.random.key(0)
    cond, x = jnp.arange(batch) % 10, jax.random.normal(key, shape)
    forward, sample = jax.jit(lambda model, x, t, cond: model(x, t, cond)), jax.jit(cmjax.sample)
    states = {n: cmjax.cm.init(config, num_steps=n) for n in STEPS}
    t = jnp.float32(states[1].timesteps[0])
    programs: dict[str, Callable[[], Any]] = {"forward": lambda: forward(model, x, t, cond)}
    for n, state in states.items():
        start = x * state.init_noise_sigma
        programs[f"loop {n}"] = lambda state=state, start=start: sample(model, state, start, key, cond)
    timing, seconds = interleaved(programs, rounds=rounds)
    limit = 1.01 if jax.default_backend() == "gpu" else 1.03
    rows, targets = [], []
    for n in STEPS:
        quotient = ratio(seconds[f"loop {n}"], [n * s for s in seconds["forward"]])
        rows.append(
            {
                "batch": batch,
                "steps": n,
                "loop": timing[f"loop {n}"],
                "forward": timing["forward"],
                "ratio": quotient,
                "cpu_ratio": timing[f"loop {n}"]["cpu"] / (n * timing["forward"]["cpu"]),
            }
        )
        targets.append(target(quotient, limit, f"batch {batch}, {n} steps: loop over {n} forward calls"))
    return rows, targets


def sweep_over_batch(
    model: Any, config: Any, batch: int, steps: int, rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time eleven etas under `vmap` against one batch eleven times as large, with TCD through `vp_from_sigma`."""
    vp_config = cmjax.tcd.TCDConfig(prediction_type="sample")
    vp_model = cmjax.models.vp_from_sigma(model, config, vp_config)
    key, labels = jax.random.key(0), jnp.arange(batch) % 10

    def render(model: Any, eta: jax.Array, key: jax.Array) -> jax.Array:
        state = cmjax.tcd.init(vp_config, num_steps=steps, eta=eta)
        return cmjax.generate(model, state, key, (batch, 28, 28, 1), labels)

    sweep = jax.jit(jax.vmap(render, in_axes=(None, 0, None)))
    generate = jax.jit(cmjax.generate, static_argnames="shape")
    etas, state = jnp.linspace(0.0, 1.0, ETAS), cmjax.tcd.init(vp_config, num_steps=steps)
    shape, many = (ETAS * batch, 28, 28, 1), jnp.tile(labels, ETAS)
    programs = {
        "sweep": lambda: sweep(vp_model, etas, key),
        "batch": lambda: generate(vp_model, state, key, shape=shape, cond=many),
    }
    timing, seconds = interleaved(programs, rounds=rounds)
    quotient = ratio(seconds["sweep"], seconds["batch"])
    cpu = timing["sweep"]["cpu"] / timing["batch"]["cpu"]
    result = {"batch": batch, "steps": steps, "etas": ETAS, "ratio": quotient, "cpu_ratio": cpu, **timing}
    return result, target(quotient, 1.05, f"{ETAS} etas under vmap over one batch of {ETAS} x {batch}")


def compile_time(model: Any, config: Any, batch: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time tracing and compilation of a 4-step loop, of one forward call, and of one normal draw."""
    shape, key = (batch, 28, 28, 1), jax.random.key(0)
    cond, x, state = jnp.arange(batch) % 10, jnp.zeros(shape), cmjax.cm.init(config, num_steps=4)
    jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "loop": (lambda *args: cmjax.sample(*args), (model, state, x, key, cond)),
        "forward": (lambda model, x, t, cond: model(x, t, cond), (model, x, jnp.float32(1.0), cond)),
        "normal": (lambda key: jax.random.normal(key, shape), (key,)),
        "own draw": (lambda state, key: cmjax.prior(state, key, shape), (state, key)),
    }
    total: dict[str, list[float]] = {name: [] for name in jobs}
    machine_code: dict[str, list[float]] = {name: [] for name in jobs}
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(rounds + 1):
        for name, (function, arguments) in jobs.items():
            jax.clear_caches()
            start, cpu_start = time.perf_counter(), time.process_time()
            lowered = jax.jit(function).lower(*arguments)
            middle = time.perf_counter()
            lowered.compile()
            end = time.perf_counter()
            if i > 0:  # the first round warms up the compiler itself
                total[name].append(end - start)
                machine_code[name].append(end - middle)
                cpu[name].append(time.process_time() - cpu_start)
    quotients = {}
    for draw in ("normal", "own draw"):
        quotients[draw] = ratio(total["loop"], [f + z for f, z in zip(total["forward"], total[draw], strict=True)])
    result: dict[str, Any] = {name: Timing.of(total[name], cpu[name]) for name in jobs}
    work = {name: result[name]["cpu"] for name in jobs}
    result["cpu_ratio"] = work["loop"] / (work["forward"] + work["normal"])
    result["cpu_ratio_with_own_draw"] = work["loop"] / (work["forward"] + work["own draw"])
    result |= {f"{name}, XLA only": Timing.of(values) for name, values in machine_code.items()}
    result |= {"batch": batch, "ratio": quotients["normal"], "ratio_with_own_draw": quotients["own draw"]}
    return result, target(
        quotients["normal"], 1.05, "compile time: 4-step loop over (one forward call + one jax.random.normal)"
    )


def _ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.2f}"


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="fashion-mnist-cm", help="a name or folder that cmjax.load reads")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--compile-rounds", type=int, default=5)
    args = options.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    here = machine()
    model, config = cmjax.load(args.model)
    rows, targets = [], []
    for batch in args.batches:
        more, verdicts = loop_over_forward(model, config, batch, args.rounds)
        rows += more
        targets += verdicts
    print_table(
        "The loop over n forward calls, milliseconds (medians)",
        ["", "loop", "forward", "ratio", "of processor time"],
        [
            [
                f"batch {r['batch']}, {r['steps']} steps",
                _ms(r["loop"]),
                _ms(r["forward"]),
                f"{r['ratio']:.3f}",
                f"{r['cpu_ratio']:.3f}",
            ]
            for r in rows
        ],
    )
    sweep, verdict = sweep_over_batch(model, config, 2, 4, args.rounds)
    print_table(
        f"{ETAS} etas of a 4-step TCD loop, milliseconds",
        ["", "vmap", f"one batch, {ETAS} times as large", "ratio", "of processor time"],
        [["batch 2", _ms(sweep["sweep"]), _ms(sweep["batch"]), f"{sweep['ratio']:.3f}", f"{sweep['cpu_ratio']:.3f}"]],
    )
    compilation, compile_verdict = compile_time(model, config, args.batches[-1], args.compile_rounds)
    jobs = ("loop", "forward", "normal", "own draw")
    print_table(
        "Compile time (trace to machine code), seconds",
        ["", "4-step loop", "forward", "jax normal", "own draw", "ratio", "with own draw"],
        [
            [
                "all",
                *(f"{compilation[k].median:.3f}" for k in jobs),
                f"{compilation['ratio']:.3f}",
                f"{compilation['ratio_with_own_draw']:.3f}",
            ],
            [
                "processor time",
                *(f"{compilation[k]['cpu']:.3f}" for k in jobs),
                f"{compilation['cpu_ratio']:.3f}",
                f"{compilation['cpu_ratio_with_own_draw']:.3f}",
            ],
            ["XLA only", *(f"{compilation[f'{k}, XLA only'].median:.3f}" for k in jobs), "", ""],
        ],
    )
    targets += [verdict, compile_verdict]
    result = {"program": "loop_cost", "loop": rows, "sweep": sweep, "compile": compilation, "targets": targets}
    conclude(result, args.json, here)


if __name__ == "__main__":
    main()
