"""The device against the CPU of the same machine: networks, samplers, a training step and an exported program."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from gpu_parts import Run, _tiny, part

MODELS = ("fashion-mnist-cm", "fashion-mnist-tcd")


class Precision(NamedTuple):
    """How the network computes, and the bounds of ||device - CPU in float32|| / ||CPU|| that it is held to."""

    name: str
    dtype: str
    matmul: str | None
    output: float  # of a network's output, and of pictures of two steps
    gradient: float


PRECISIONS = (
    Precision("float32, highest", "float32", "highest", 1e-4, 1e-3),
    Precision("float32, default", "float32", None, 5e-3, 5e-2),
    Precision("bfloat16", "bfloat16", None, 2e-2, 2e-1),
)


def differences(got: Any, expected: Any) -> dict[str, float]:
    """Largest and mean difference, and the norm of the difference over that of what is expected; over all leaves."""
    got, expected = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (got, expected)
    )
    apart = np.abs(got - expected)
    relative = float(np.linalg.norm(apart) / np.linalg.norm(expected))
    return {"largest": float(apart.max()), "mean": float(apart.mean()), "relative": relative}


def on(device: Any, precision: Precision, function: Callable[..., Any], *given: Any, **static: Any) -> Any:
    """Compile for a device, in a precision, and call; arrays come back to the host."""
    given = jax.device_put(given, device)
    compiled = function if hasattr(function, "lower") else jax.jit(function, static_argnames=tuple(static))
    with jax.default_matmul_precision(precision.matmul):
        lowered = compiled.lower(*given, **static)
    return jax.device_get(lowered.compile()(*given))


# ---- what is compared: functions of (device, precision) that return a few trees of arrays ----------------------------


def image(model: Any) -> tuple[int, int, int]:
    """The shape of a network's pictures."""
    config = model.module.config
    return config.sample_size, config.sample_size, config.in_channels


def network(name: str, batch: int, device: Any, precision: Precision) -> dict[str, Any]:
    """A call of an embedded network, and pictures of two steps."""
    model, config = cmjax.load(name, dtype=jnp.dtype(precision.dtype))
    state = cmjax.samplers.sampler_of(config).init(config, num_steps=2)
    x = np.random.default_rng(0).standard_normal((batch, *image(model)), np.float32)

    def both(model: Any, state: Any, x: jax.Array, key: jax.Array, cond: jax.Array) -> dict[str, jax.Array]:
        out = model(x, jnp.float32(200.0), cond)
        return {"output": out.astype(jnp.float32), "pictures": cmjax.generate(model, state, key, x.shape, cond)}

    return on(device, precision, both, model, state, x, jax.random.key(0), np.arange(batch) % 10)


def sampler(module: Any, batch: int, device: Any, precision: Precision) -> dict[str, Any]:
    """Four steps without a network; samplers of two times tell it their landing, s."""
    state = module.init(module.Config(), num_steps=4)
    x = np.random.default_rng(0).standard_normal((batch, 8, 8, 3), np.float32)

    def steps(state: Any, x: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        def halve(x: jax.Array, t: jax.Array, cond: Any, s: jax.Array | None = None) -> jax.Array:
            return (0.3 * x.astype(jnp.float32)).astype(x.dtype)

        start = (state.init_noise_sigma * x).astype(precision.dtype)
        return {"output": cmjax.sample(halve, state, start, key).astype(jnp.float32)}

    return on(device, precision, steps, state, x, jax.random.key(0))


def training(name: str, batch: int, device: Any, precision: Precision) -> dict[str, Any]:
    """One training step of a denoiser: the loss, and Adam's first moment, which is the clipped gradient."""
    import optax

    from cmjax.training import METHODS, Recipe, init, train_step

    model, _ = cmjax.load(name, dtype=jnp.dtype(precision.dtype))
    recipe = Recipe(method=METHODS["edm"](), steps=100, batch_size=batch)
    images = np.random.default_rng(0).integers(0, 256, (batch, *image(model)), np.uint8)
    given = init(model, recipe), images, np.arange(batch) % 10, jax.random.key(0)
    config = METHODS["edm"].config_type()
    state, loss = on(device, precision, train_step, *given, recipe=recipe, config=config)
    return {"loss": loss, "gradient": optax.tree_utils.tree_get(state.opt_state, "mu")}


def artifact(name: str, batch: int, device: Any, precision: Precision) -> dict[str, Any]:
    """Pictures of an exported program, read back from its folder."""
    model, config = cmjax.load(name, dtype=jnp.dtype(precision.dtype))
    state = cmjax.pad(cmjax.cm.init(config, num_steps=2), 4)
    platforms = ["cpu", *(["cuda"] if jax.default_backend() == "gpu" else [])]
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision(precision.matmul):
        path = Path(folder) / "drawer"
        cmjax.artifact.save(path, model, config, state, image(model), classes=10, platforms=platforms)
        drawer = cmjax.artifact.load(path)
    keys = jax.random.split(jax.random.key(0), batch)

    def draw(drawer: Any, state: Any, keys: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        return {"pictures": drawer(state, keys, labels)}

    return on(device, precision, draw, drawer, state, keys, np.arange(batch, dtype=np.int32) % 10)


@part("correctness", place=1, share=60)
def correctness(run: Run) -> None:
    """Differences from the CPU of the same machine, by precision."""
    batch = 2 if run.tiny else 16
    models, precisions = ((str(_tiny.folder()),), PRECISIONS[::2]) if run.tiny else (MODELS, PRECISIONS)
    checks: dict[str, Callable[..., dict[str, Any]]] = {}
    checks |= {Path(name).name: functools.partial(network, name, batch) for name in models}
    for each in cmjax.samplers.ALL:
        checks[f"{each.__name__.split('.')[-1]}, no network"] = functools.partial(sampler, each, batch)
    checks |= {
        "artifact": functools.partial(artifact, models[0], batch),
        "training step": functools.partial(training, models[0], batch),
    }
    here, cpu = jax.devices()[0], jax.devices("cpu")[0]
    cores = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(max(2, cores - 2))  # compilation is most of it, and lets other threads run
    expected = {name: pool.submit(check, cpu, PRECISIONS[0]) for name, check in checks.items()}

    def compared(name: str, precision: Precision) -> dict[str, dict[str, float]]:
        got = checks[name](here, precision)
        reference = expected[name].result()
        return {what: differences(value, reference[what]) for what, value in got.items()}

    found = {
        pool.submit(compared, name, precision): (name, precision)
        for precision in precisions
        for name in checks
        if not (run.tiny and name == "training step" and precision is not PRECISIONS[0])
    }
    try:
        for done in as_completed(found, timeout=max(run.left(), 1.0)):
            name, precision = found[done]
            with run.attempt(f"{name}, {precision.name}"):
                for what, apart in done.result().items():
                    rule = f"{name}, {what}, {precision.name}"
                    run.row(rule, **apart)
                    limit = precision.gradient if what == "gradient" else precision.output
                    run.target(apart["relative"], limit, f"{rule}: relative difference from the CPU")
    except TimeoutError:
        for future, (name, precision) in found.items():
            if not future.done():
                run.leave_out(f"{name}, {precision.name}")
