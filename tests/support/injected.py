"""Step a sampler with noise that the test chooses: this room holds the loop that the parity tests drive by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cmjax

__all__ = ["Step", "init", "step", "step_compiled", "taken"]

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """What one step produced.

    Attributes:
        x: The sample at the next noise level.
        x0: The clean estimate.
        landing: TCD's sample at the landing time, None elsewhere.
        x_in: What the network is given.
        t: The time it is given.
    """

    x: Array
    x0: Array
    landing: Array | None
    x_in: Array
    t: Array


def init(sampler: str, config: dict[str, Any], options: dict[str, Any], begin: int = 0) -> Any:
    """Make the state of `cmjax.<sampler>` for a config's keyword arguments, started at step `begin`."""
    module = getattr(cmjax, sampler)
    state = module.init(module.Config(**config), **options)
    return cmjax.skip(state, begin) if begin else state


def taken(state: Any, m: jax.Array, x: jax.Array, z: jax.Array) -> Step:
    """Do what one step does, with JAX arrays."""
    x_in, t = cmjax.model_input(state, x)
    pred = state.predict(m, x)
    landing = state.land(pred) if hasattr(state, "land") else None
    return Step(state.renoise(pred, z), pred.x0, landing, x_in, t)  # type: ignore[arg-type]


def step(state: Any, m: Array, x: Array, z: Array) -> tuple[Any, Step]:
    """Take one step of `state` with the network output `m` and the noise `z`, eagerly: returns (next state, Step)."""
    one = taken(state, *(jnp.asarray(a, jnp.float32) for a in (m, x, z)))
    return _after(state, m, x), jax.tree.map(np.asarray, one)


def _after(state: Any, m: Array, x: Array) -> Any:
    """The state one step further, with what it remembers of this one."""
    if state.remembered(cmjax.Prediction(jnp.asarray(x), jnp.asarray(x))) is not None:
        state = state.remember(state.predict(jnp.asarray(m, jnp.float32), jnp.asarray(x, jnp.float32)))
    return state.replace(index=state.index + 1)


_compiled = jax.jit(taken)


def step_compiled(state: Any, m: Array, x: Array, z: Array) -> tuple[Any, Step]:
    """Take one step as `step` does, compiled once for each kind of state: for long loops."""
    one = _compiled(state, *(jnp.asarray(a, jnp.float32) for a in (m, x, z)))
    return _after(state, m, x), jax.tree.map(np.asarray, one)
