"""The stopwatch on the samplers alone: whole 4-step loops without a network, beside diffusers in the same run.

The network is replaced by a fixed array (the same on both sides), so what is left is the sampler: its tables, its
arithmetic, its random numbers and the cost of being called. Batch 1, 16 and 64, for the samples of the embedded model
(28 x 28 x 1) and for latents (64 x 64 x 4). Both sides time the steps, with the state or the scheduler set up before;
`with setup` times that as well. `noise given` repeats both loops with the noise drawn beforehand, so the difference is
what the random numbers cost. The last part counts how often JAX traces the loop over 20 changes of every knob.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import conclude, interleaved, machine, parser, print_table, ratio, target

import cmjax

STEPS = 4
BATCHES = (1, 16, 64)
SHAPES = {"28x28x1": (28, 28, 1), "64x64x4": (64, 64, 4)}
CONFIGS = {"cm": cmjax.cm.CMConfig, "tcd": cmjax.tcd.TCDConfig, "lcm": cmjax.lcm.LCMConfig}


def _constant(out: jax.Array, x: jax.Array, t: jax.Array, cond: Any = None) -> jax.Array:
    return out


def our_loops(sampler: str, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """Return the jitted loop with noise drawn, the same with noise given, and with `init` inside the clock."""
    config = CONFIGS[sampler]()
    init = getattr(cmjax, sampler).init
    state = init(config, num_steps=STEPS)
    draw = np.random.default_rng(0).standard_normal
    x, out = (jnp.asarray(draw(shape), jnp.float32) for _ in range(2))
    noises = jnp.asarray(draw((STEPS, *shape)), jnp.float32)
    model, key = jax.tree_util.Partial(_constant, out), jax.random.key(0)
    sample = jax.jit(cmjax.sample)

    @jax.jit
    def given(state: Any, x: jax.Array, out: jax.Array, noises: jax.Array) -> jax.Array:
        def body(carry: tuple[Any, jax.Array], z: jax.Array) -> tuple[tuple[Any, jax.Array], None]:
            state, x = carry
            state.model_input(x)
            x = state.renoise(state.predict(out, x), z)
            return (state.replace(index=state.index + 1), x), None

        return jax.lax.scan(body, (state, x), noises)[0][1]

    return {
        "whole": lambda: sample(model, state, x, key),
        "noise given": lambda: given(state, x, out, noises),
        "with setup": lambda: sample(model, init(config, num_steps=STEPS), x, key),
    }


def their_loops(sampler: str, shape: tuple[int, ...], device: str) -> dict[str, Callable[[], Any]]:
    """Return diffusers' loop with its generator, with noise given (its draw replaced), and with `set_timesteps`."""
    import torch
    from diffusers.schedulers import scheduling_consistency_models, scheduling_lcm, scheduling_tcd

    modules: dict[str, tuple[Any, str]] = {
        "cm": (scheduling_consistency_models, "CMStochasticIterativeScheduler"),
        "tcd": (scheduling_tcd, "TCDScheduler"),
        "lcm": (scheduling_lcm, "LCMScheduler"),
    }
    module, name = modules[sampler]
    cls: Any = getattr(module, name)
    scheduler = cls()
    scheduler.set_timesteps(STEPS, device=device)
    generator = torch.Generator(device).manual_seed(0)
    channels_first = (shape[0], shape[3], shape[1], shape[2])
    x, out, noise = (torch.randn(channels_first, device=device) for _ in range(3))
    original = module.randn_tensor

    def loop(setup: bool = False) -> Any:
        if setup:
            scheduler.set_timesteps(STEPS, device=device)
        scheduler._step_index = None
        now = x
        with torch.no_grad():
            for t in scheduler.timesteps:
                scheduler.scale_model_input(now, t)
                now = scheduler.step(out, t, now, generator=generator, return_dict=False)[0]
            if device != "cpu":
                torch.cuda.synchronize()
        return now

    def given() -> Any:
        module.randn_tensor = lambda *args, **kwargs: noise
        try:
            return loop()
        finally:
            module.randn_tensor = original

    return {"whole": loop, "noise given": given, "with setup": lambda: loop(setup=True)}


def compare(
    sampler: str, shape_name: str, batch: int, rounds: int, device: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time one sampler at one size, beside the reference on a device (None: there is no reference)."""
    shape = (batch, *SHAPES[shape_name])
    programs = {f"ours: {name}": loop for name, loop in our_loops(sampler, shape).items()}
    if device is not None:
        programs |= {f"diffusers: {name}": loop for name, loop in their_loops(sampler, shape, device).items()}
    timing, seconds = interleaved(programs, rounds=rounds)

    def part_of_noise(who: str) -> float:
        return 1 - ratio(seconds[f"{who}: noise given"], seconds[f"{who}: whole"])

    row: dict[str, Any] = {"sampler": sampler, "shape": shape_name, "batch": batch}
    row |= {"seconds": timing, "ours_random_part": part_of_noise("ours")}
    if device is None:
        return row, []
    row |= {
        "ours_over_diffusers": ratio(seconds["ours: whole"], seconds["diffusers: whole"]),
        "ours_over_diffusers_cpu": timing["ours: whole"]["cpu"] / timing["diffusers: whole"]["cpu"],
        "ours_over_diffusers_noise_given": ratio(seconds["ours: noise given"], seconds["diffusers: noise given"]),
        "diffusers_random_part": part_of_noise("diffusers"),
    }
    rule, limit = f"{sampler} {shape_name} batch {batch}: ours over diffusers", 1.0 if device == "cpu" else 0.1
    return row, [target(row["ours_over_diffusers"], limit, rule)]


def overhead(rounds: int, device: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time every sampler at every size; returns the rows and the verdicts."""
    rows, targets = [], []
    for sampler in CONFIGS:
        for shape_name in SHAPES:
            for batch in BATCHES:
                row, verdicts = compare(sampler, shape_name, batch, rounds, device)
                rows.append(row)
                targets += verdicts
    return rows, targets


def count_traces(changes: int = 20) -> dict[str, int]:
    """Count the traces of one jitted loop while a knob takes `changes` values: eta, sigmas, s_noise, scale, weights."""
    shape, key = (2, 8, 8, 1), jax.random.key(0)
    x, fractions = jnp.zeros(shape), np.linspace(0.0, 1.0, changes)
    cm_config, tcd_config = CONFIGS["cm"](), CONFIGS["tcd"]()

    def linear(weight: jax.Array, x: jax.Array, t: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        bias = jnp.zeros(()) if cond is None else cond[:, None, None, None].astype(x.dtype)
        return weight * x + bias

    def network(weight: float = 0.5) -> Any:
        return jax.tree_util.Partial(linear, jnp.float32(weight))

    def guided(scale: float) -> Any:
        return cmjax.guidance.classifier_free(network(), scale, jnp.zeros(2, jnp.int32))

    cm_state, cond = cmjax.cm.init(cm_config, num_steps=STEPS), jnp.ones(2, jnp.int32)
    ladder = np.array([80.0, 10.0, 2.0, 0.5])
    knobs: dict[str, Callable[[float], tuple[Any, Any, Any]]] = {
        "eta": lambda u: (network(), cmjax.tcd.init(tcd_config, num_steps=STEPS, eta=u), None),
        "sigmas": lambda u: (network(), cmjax.cm.init(cm_config, sigmas=(ladder * (0.5 + u / 2)).tolist()), None),
        "s_noise": lambda u: (network(), cmjax.cm.init(cm_config, num_steps=STEPS, s_noise=0.5 + u), None),
        "guidance scale": lambda u: (guided(1 + 7 * u), cm_state, cond),
        "weights": lambda u: (network(u), cm_state, None),
    }
    traces = {}
    for name, make in knobs.items():
        count = 0

        def loop(model: Any, state: Any, cond: Any) -> jax.Array:
            nonlocal count
            count += 1
            return cmjax.sample(model, state, x, key, cond)

        compiled = jax.jit(loop)
        for u in fractions:
            jax.block_until_ready(compiled(*make(float(u))))
        traces[name] = count
    return traces


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--torch-device", default="cpu", help="where the reference runs")
    args = options.parse_args(arguments)
    here = machine()
    traces = count_traces()
    rows, targets = overhead(args.rounds, args.torch_device)
    targets += [target(n, 1, f"traces over 20 changes of {name}") for name, n in traces.items()]
    table = [
        [
            f"{row['sampler']} {row['shape']} batch {row['batch']}",
            *(
                f"{row['seconds'][f'{who}: {what}']['median'] * 1e3:.3f}"
                for what in ("whole", "noise given", "with setup")
                for who in ("ours", "diffusers")
            ),
            f"{row['ours_over_diffusers']:.2f}",
            f"{row['ours_over_diffusers_cpu']:.2f}",
            f"{row['ours_random_part']:.0%}",
            f"{row['diffusers_random_part']:.0%}",
        ]
        for row in rows
    ]
    print_table(
        f"{STEPS}-step loops without a network, milliseconds (medians)",
        [
            "",
            "ours",
            "diffusers",
            "ours given",
            "diff. given",
            "ours+setup",
            "diff.+setup",
            "ratio",
            "of cpu",
            "random",
            "random",
        ],
        table,
    )
    print_table("Traces over 20 changes", ["knob", "traces"], list(traces.items()))
    conclude(
        {"program": "step_overhead", "steps": STEPS, "rows": rows, "traces": traces, "targets": targets},
        args.json,
        here,
    )


if __name__ == "__main__":
    main()
