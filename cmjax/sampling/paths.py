"""Change paths before they are walked: drop their first steps (`skip`), or make their length a value (`pad`)."""

from __future__ import annotations

import operator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import is_traced, whole
from cmjax.samplers.base import SamplerConfig, SamplerState
from cmjax.types import Array

__all__ = ["pad", "refuse_config", "refuse_used", "skip"]

_MOST_STEPS = 1 << 16
_NO_PATH = "state must be a path, as init(config, num_steps=...) makes it, got the {}."

StateT = TypeVar("StateT", bound=SamplerState)


def skip(state: StateT, k: int) -> StateT:
    """Start the path at step k: num_steps - k steps are left, and the index is 0 again.

    Args:
      state: a path that has not been stepped.
      k: a Python int in [0, num_steps - 1].

    Returns:
      A shorter path. `add_noise` then takes an image to its first level: image-to-image.

    Raises:
      TypeError: k is not a Python int, which it must be since it changes shapes.
      ValueError: k is out of range, or the state has already stepped.

    Example:
      >>> import cmjax
      >>> skip(cmjax.lcm.init(cmjax.lcm.LCMConfig(), num_steps=4), 1).timesteps
      Array([759, 499, 259], dtype=int32)
    """
    try:
        k = operator.index(k)
    except TypeError as error:
        raise TypeError(f"k must be a Python int, since it changes shapes, got {type(k).__name__}.") from error
    if not 0 <= k < state.num_steps:
        raise ValueError(f"k must be between 0 and num_steps - 1 = {state.num_steps - 1}, got {k}.")
    _refuse_padded(state, "skip")
    refuse_used(state, "skip")
    state = state.replace(memory=None)
    return jax.tree.map(lambda leaf: leaf[..., k:] if leaf.ndim > state.index.ndim else leaf, state)


def pad(state: StateT, max_steps: int) -> StateT:
    """Make the number of steps a value: paths of 1 to max_steps steps have one shape, and share one compilation.

    The tables are padded at their beginning by repeating the first level, and the index starts after the padding. So
    `prior`, `add_noise`, `model_input` and `step` work as on any path. `sample` and `generate` become a loop that ends
    where the path ends, and they draw the same images: step k takes the k-th of `jax.random.split(key, max_steps)`, and
    JAX's default keys are partitionable, so the first keys do not depend on how many are split. Such a loop has no
    reverse-mode gradient, since JAX differentiates only loops of known length. Stacked paths may differ in length:
    under `vmap` each image has its own number of steps, and the loop runs for the longest path.

    Args:
      state: a path that has not been stepped.
      max_steps: N, a Python int, at least `state.num_steps`.

    Returns:
      A path with the same steps in tables for N, which starts at index N - n.

    Raises:
      TypeError: max_steps is not a Python int, which it must be since it determines shapes; or state is not a path.
      ValueError: max_steps is too large, or the path is longer than it, already padded, or already stepped.

    Example:
      >>> import cmjax
      >>> config = cmjax.tcd.TCDConfig()
      >>> model = jax.tree_util.Partial(lambda x, t, cond: 0.5 * x)
      >>> draw = jax.jit(lambda state, key: cmjax.generate(model, state, key, (2, 4, 4, 1)))
      >>> for num_steps in (1, 2, 4):
      ...     state = pad(cmjax.tcd.init(config, num_steps, eta=0.3), 8)
      ...     x = draw(state, jax.random.key(0))
      >>> draw._cache_size(), state.timesteps[-4:]
      (1, Array([999, 759, 499, 259], dtype=int32))

      Three images of 1, 2 and 4 steps, in one call:

      >>> states = [pad(cmjax.tcd.init(config, n), 4) for n in (1, 2, 4)]
      >>> states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> jax.jit(jax.vmap(lambda state, key: cmjax.generate(model, state, key, (1, 4, 4, 1))))(states, keys).shape
      (3, 1, 4, 4, 1)
    """
    if not isinstance(state, SamplerState):
        raise TypeError(_NO_PATH.format(type(state).__name__))
    max_steps = whole("max_steps", max_steps, 1)
    if max_steps > _MOST_STEPS:
        raise ValueError(f"max_steps must be at most {_MOST_STEPS}, got {max_steps}: the tables would be too large.")
    _refuse_padded(state, "pad")
    refuse_used(state, "pad")
    state = state.replace(memory=None)
    room = max_steps - state.num_steps
    if room < 0:
        raise ValueError(
            f"max_steps must be at least the {state.num_steps} steps of the path, got {max_steps}: "
            "pad more, or plan fewer steps."
        )

    def longer(leaf: Array) -> Any:
        if leaf.ndim == state.index.ndim:
            return leaf
        widths = [(0, 0)] * (leaf.ndim - 1) + [(room, 0)]
        return jnp.pad(leaf, widths, "edge") if is_traced(leaf) else np.pad(leaf, widths, "edge")  # compiles nothing

    padded = jax.tree.map(longer, state).replace(index=state.index + np.int32(room), padded=True)
    return jax.tree.map(jnp.asarray, padded) if is_traced(padded) else jax.device_put(padded)


def refuse_config(state: Any) -> None:
    """Raise TypeError if a config is given in place of a path."""
    if isinstance(state, SamplerConfig):
        raise TypeError(_NO_PATH.format(type(state).__name__))


def refuse_used(state: SamplerState, verb: str) -> None:
    """Raise ValueError if a path has already stepped. Under `jit` the index is unknown; reads past the end give NaN."""
    if is_traced(state):
        return
    index, timesteps = np.asarray(state.index), np.asarray(state.timesteps)
    if state.padded:  # before it starts, the first level is repeated
        place = np.minimum(index, state.num_steps - 1)[..., None]
        used = (index >= state.num_steps) | (np.take_along_axis(timesteps, place, -1) != timesteps[..., :1])[..., 0]
    else:
        used = index != 0
    if np.any(used):
        raise ValueError(
            f"{verb} starts at the first step, but this state is at index {state.index} of {state.num_steps}: "
            "call init again, or drop the first steps of a fresh state with skip."
        )


def _refuse_padded(state: SamplerState, verb: str) -> None:
    if state.padded:
        raise ValueError(f"{verb} takes a path before it is padded: pad comes last.")
