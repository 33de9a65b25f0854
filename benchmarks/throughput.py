"""Images a second: whole sampling loops beside diffusers' pipeline, by batch size and precision.

Two-step samples of a network, noise drawn in the loop, in one compiled call; beside `ConsistencyModelPipeline`'s own
loop on PyTorch: its scheduler and its UNet, eager and through `torch.compile`, both with channels last, in turn in one
run. On a CPU each core is a device and draws its part of the batch, as in every command; *one device* has all cores as
its threads. Also n = 1, 2, 4, 8 steps of ours over n forward calls, on one device. The networks are the embedded one
and, with `--imagenet64`, the published one of 296M parameters (random weights). On a CPU in float32; on a GPU in
float32 (matrix products in TF32) and bfloat16, larger batches.

The floor is the network: a loop of n steps cannot take less than n calls of it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import conclude, interleaved, machine, parser, print_table, ratio, target
from unet_forward import reference

import cmjax
from cmjax.drawing import compile_draw, use_cores_as_devices

STEPS = (1, 2, 4, 8)
EAGER, COMPILED = "diffusers, eager", "diffusers, compiled"
OURS, ONE = "cmjax", "cmjax, one device"
EMBEDDED = Path(cmjax.__file__).parent / "pretrained" / "fashion-mnist-cm"


def networks(name: str, dtype: str) -> tuple[Any, Any]:
    """A model and its config."""
    if name == "embedded":
        return cmjax.load("fashion-mnist-cm", dtype=jnp.dtype(dtype))
    from full_size import checkpoint

    return checkpoint(name, dtype=jnp.dtype(dtype))


def theirs(torch: Any, name: str, device: str, dtype: str) -> Any:
    """The same network in PyTorch, channels last."""
    from diffusers import UNet2DModel

    if name == "embedded":
        unet = UNet2DModel.from_pretrained(EMBEDDED / "unet")
    else:
        from full_size import NETWORKS

        config = {k: v for k, v in NETWORKS[name].config.to_dict().items() if k != "num_train_timesteps"}
        unet = UNet2DModel.from_config(config)
    return unet.eval().to(device, getattr(torch, dtype)).to(memory_format=torch.channels_last)


def pipeline(torch: Any, unet: Any, config: Any, shape: tuple[int, ...], device: str, dtype: str) -> Callable[[], Any]:
    """The loop of diffusers' pipeline, with its scheduler, on the device."""
    from diffusers import CMStochasticIterativeScheduler

    given = {k: v for k, v in cmjax.io.config_dict(config).items() if not k.startswith("_") and k != "denoiser_steps"}
    scheduler = CMStochasticIterativeScheduler(**given)
    batch, height, width, channels = shape
    classes = getattr(unet, "config", None) or unet._orig_mod.config
    labels = None
    if classes.num_class_embeds:
        labels = torch.arange(batch, device=device) % classes.num_class_embeds

    def loop() -> None:
        with torch.no_grad():
            scheduler.set_timesteps(2, device=device)
            x = torch.randn(batch, channels, height, width, device=device, dtype=getattr(torch, dtype))
            x = x.to(memory_format=torch.channels_last) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                out = unet(scheduler.scale_model_input(x, t), t, class_labels=labels).sample
                x = scheduler.step(out, t, x).prev_sample
        if device == "cuda":
            torch.cuda.synchronize()

    return loop


def divided(model: Any, state: Any, shape: tuple[int, ...], classes: int | None) -> Callable[[], Any]:
    """Draw a batch on as many devices as it divides among, as the commands do, up to arrays on the host."""
    drawn = compile_draw(model, state, shape, classes=None if classes is None else range(classes), seed=0)
    placed = drawn.place(model)
    return lambda: drawn(0, placed)


def measure(
    name: str, batch: int, dtype: str, torch: Any, device: str, rounds: int, *, compiled: bool
) -> tuple[dict[str, Any], list[Any]]:
    """Time loops of 1 to 8 steps, forward calls, and the references, in turn."""
    model, config = networks(name, dtype)
    network = model.config
    shape = (batch, network.sample_size, network.sample_size, network.in_channels)
    classes = network.num_class_embeds
    cond, key = None if classes is None else jnp.arange(batch) % classes, jax.random.key(0)
    sample, forward = jax.jit(cmjax.sample), jax.jit(lambda model, x, t, cond: model(x, t, cond))
    x = jax.random.normal(key, shape)  # float32, as `prior` draws: the network computes in dtype
    programs: dict[str, Callable[[], Any]] = {"forward": lambda: forward(model, x, jnp.float32(200.0), cond)}
    for n in STEPS:
        state = cmjax.cm.init(config, num_steps=n)
        programs[f"{n} steps"] = functools.partial(sample, model, state, x * state.init_noise_sigma, key, cond)
    state = cmjax.cm.init(config, num_steps=2)
    generate = jax.jit(cmjax.generate, static_argnames="shape")
    programs[ONE] = functools.partial(generate, model, state, key, shape=shape, cond=cond)
    programs[OURS] = divided(model, state, shape, classes)
    if torch is not None:
        unet = theirs(torch, name, device, dtype)
        programs[EAGER] = pipeline(torch, unet, config, shape, device, dtype)
        if compiled:
            programs[COMPILED] = pipeline(torch, torch.compile(unet, dynamic=False), config, shape, device, dtype)
    timing, seconds = interleaved(programs, rounds=rounds)
    over = {n: ratio(seconds[f"{n} steps"], [n * s for s in seconds["forward"]]) for n in STEPS}
    row = {
        "network": name,
        "batch": batch,
        "dtype": dtype,
        "seconds": timing,
        "over_forward": over,
        "images_per_second": {k: batch / timing[k].median for k in (OURS, ONE, EAGER, COMPILED) if k in timing},
        "faster": {k: ratio(seconds[k], seconds[OURS]) for k in (ONE, EAGER, COMPILED) if k in timing},
    }
    limit = 1.01 if jax.default_backend() == "gpu" else 1.03
    where = f"{name}, batch {batch}, {dtype}"
    verdicts = [target(value, limit, f"{where}: {n} steps over {n} forward calls") for n, value in over.items()]
    if COMPILED in row["faster"]:
        rule = f"{where}: two-step images a second over diffusers, compiled"
        verdicts.append(target(row["faster"][COMPILED], 1.2, rule, at_least=True))
    return row, verdicts


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    use_cores_as_devices()
    on_gpu = jax.default_backend() == "gpu"
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256] if on_gpu else [1, 16, 64])
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"] if on_gpu else ["float32"])
    options.add_argument("--imagenet64", action="store_true", help="the published network too")
    options.add_argument("--imagenet64-batches", type=int, nargs="+", default=[1, 16, 64] if on_gpu else [1])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    args = options.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    here = machine()
    torch, device = reference(on_gpu)
    plan = [("embedded", batch) for batch in args.batches]
    plan += [("imagenet64", batch) for batch in args.imagenet64_batches] if args.imagenet64 else []
    rows, targets = [], []
    for dtype in args.dtypes:
        for name, batch in plan:
            row, verdicts = measure(name, batch, dtype, torch, device, args.rounds, compiled=args.compiled)
            rows.append(row)
            targets += verdicts
            print(f"{name}, batch {batch}, {dtype}: measured", flush=True)
    kinds = [kind for kind in (OURS, ONE, EAGER, COMPILED) if kind in rows[0]["images_per_second"]]
    print_table(
        "Two-step images a second (medians), how many times diffusers' rate, and loops over forward calls",
        ["", *kinds, *(f"over {kind}" for kind in kinds[1:]), *(f"{n} steps" for n in STEPS)],
        [
            [
                f"{r['network']}, batch {r['batch']}, {r['dtype']}",
                *(f"{r['images_per_second'][kind]:.1f}" for kind in kinds),
                *(f"{r['faster'][kind]:.2f}" for kind in kinds[1:]),
                *(f"{r['over_forward'][n]:.3f}" for n in STEPS),
            ]
            for r in rows
        ],
    )
    conclude({"program": "throughput", "rows": rows, "targets": targets}, args.json, here)


if __name__ == "__main__":
    main()
