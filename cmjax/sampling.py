"""The loop: the prior, the steps of a hand-written loop, and the whole loop in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cmjax._numerics import f32, floating, is_traced, read
from cmjax._random import noise, split
from cmjax.paths import pad, refuse_config, refuse_used, skip
from cmjax.samplers.base import SamplerState, advance, step
from cmjax.types import Array, Cond, Edit, Key, ModelFn

__all__ = ["Trajectory", "add_noise", "generate", "model_input", "pad", "prior", "sample", "skip", "step", "trajectory"]


class Trajectory(NamedTuple):
    """Every step of a path, as `trajectory` returns it.

    Attributes:
      x: f[n + 1, B, *S], the samples, from the start to the result.
      x0: f32[n, B, *S], the clean estimate of each step, after the edit.
    """

    x: Array
    x0: Array


# ---- the start -------------------------------------------------------------------------------------------------------


def prior(state: SamplerState, key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw starting noise at the state's first noise level.

    Args:
      state: a path.
      key: one key, or one for each image.
      shape: (B, *S).
      dtype: the dtype of the result.

    Returns:
      f[B, *S].

    Raises:
      TypeError: dtype is not a float dtype.
      ValueError: the number of keys is not the size of the batch.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
      >>> prior(state, jax.random.key(0), (1, 8, 8, 3)).std().round(-1)
      Array(80., dtype=float32)
    """
    refuse_config(state)
    if is_traced(shape):
        raise TypeError('shape must be static under jit: jax.jit(generate, static_argnames="shape").')
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a float dtype, got {jnp.dtype(dtype)}.")
    return (state.init_noise_sigma * noise(key, tuple(shape))).astype(dtype)


def add_noise(state: SamplerState, x0: Array, key: Key) -> Array:
    """Noise an image to the state's current level: alpha x0 + sigma z. Image-to-image starts with it, after `skip`.

    Args:
      state: a path, at its current level.
      x0: f[B, *S], clean.
      key: one key, one for each image, or the noise z itself, f[B, *S].

    Returns:
      f[B, *S], in the dtype of x0.

    Raises:
      TypeError: x0 is not of a float dtype, or key is neither a key nor noise.
      ValueError: the noise does not have the shape of x0, or the number of keys is not the size of the batch.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), sigmas=[3.0])
      >>> add_noise(state, jnp.ones((1, 2)), jnp.ones((1, 2)))
      Array([[4., 4.]], dtype=float32)
    """
    x0 = floating("x0", x0)
    if not hasattr(key, "dtype"):
        remedy = f": a seed makes one, jax.random.key({key})." if isinstance(key, int) else "."
        raise TypeError(f"key must be a PRNG key, one for each image, or the noise itself, got {key!r:.60}{remedy}")
    is_noise = jnp.issubdtype(key.dtype, jnp.floating)
    if is_noise and key.shape != x0.shape:
        raise ValueError(f"The noise has shape {key.shape} for x0 of shape {x0.shape}; they must be equal.")
    z = f32(key) if is_noise else noise(key, x0.shape)
    alpha, sigma = state.rates()
    return (alpha * f32(x0) + sigma * z).astype(x0.dtype)


# ---- the loop --------------------------------------------------------------------------------------------------------


def model_input(state: SamplerState, x: Array) -> tuple[Array, Array]:
    """Compute the network's inputs for the current step.

    Args:
      state: a path, at its current step.
      x: f[B, *S], the noisy sample.

    Returns:
      The pair (x_in, t): x, scaled if the sampler says so, f[B, *S], and the timestep, f32[] (cm) or i32[] (tcd, lcm).

    Example:
      >>> import cmjax
      >>> _, t = model_input(cmjax.tcd.init(cmjax.tcd.TCDConfig(), num_steps=4), jnp.zeros((1, 2)))
      >>> t
      Array(999, dtype=int32)
    """
    return state.model_input(x)


def sample(
    model: ModelFn,
    state: SamplerState,
    x: Array,
    key: Key,
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
) -> Array:
    """Walk the whole path: the loop by hand over `jax.random.split(key, state.num_steps)` in one call (see `pad`).

    Call it under `jax.jit`: outside, the loop is compiled anew at every call.

    It is differentiable with respect to x, the model, cond and all float leaves of the state, so rewards can train the
    model, and noise levels and guidance scales can be learned. Reverse mode stores the intermediate values of the model
    for all n steps. With `remat` it stores only x and computes each step again in the backward pass: the memory of one
    step and n samples, for one more model call a step (a gradient costs about three: one forward, two backward).

    Args:
      model: a callable pytree `model(x, t, cond)`.
      state: a path at index 0.
      x: f[B, *S], noisy: from `prior` or `add_noise`.
      key: one key, or one for each image.
      cond: passed to the model: any pytree, or None.
      edit: x0 -> x0, a callable pytree, applied at each step.
      remat: whether gradients compute each step again instead of storing its values. Static; results are the same.

    Returns:
      f[B, *S], the sample at the end of the path, in x's dtype.

    Raises:
      ValueError: the state has already stepped, shapes disagree, or the number of keys is not the size of the batch.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
      >>> sample(lambda x, t, cond: jnp.zeros_like(x), state, jnp.zeros((1, 2)), jax.random.key(0)).shape
      (1, 2)

      The gradient of a reward by the second noise level:

      >>> def reward(sigma):
      ...     state = cmjax.cm.init(cmjax.cm.CMConfig(clip_denoised=False), sigmas=jnp.stack([80.0, sigma]))
      ...     x = 80.0 * jnp.ones((1, 2))
      ...     return sample(lambda x, t, cond: x, state, x, jax.random.key(0), remat=True).mean()
      >>> bool(jax.grad(reward)(1.5) != 0.0)
      True
    """
    x, _ = _walk(model, state, x, key, cond, edit, keep=False, remat=remat)
    return x


def trajectory(
    model: ModelFn,
    state: SamplerState,
    x: Array,
    key: Key,
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
) -> Trajectory:
    """Walk the whole path as `sample` does, and return every step.

    Args:
      model: as for `sample`.
      state: as for `sample`.
      x: as for `sample`.
      key: as for `sample`.
      cond: as for `sample`.
      edit: as for `sample`.
      remat: as for `sample`.

    Returns:
      x: f[n + 1, B, *S], from the start to the result; and x0: f32[n, B, *S], the clean estimates.

    Raises:
      ValueError: as for `sample`.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
      >>> trajectory(lambda x, t, cond: jnp.zeros_like(x), state, jnp.zeros((1, 5)), jax.random.key(0)).x.shape
      (3, 1, 5)
    """
    _, kept = _walk(model, state, x, key, cond, edit, keep=True, remat=remat)
    return Trajectory(jnp.concatenate([x[None], kept[0]]), kept[1])


def generate(
    model: ModelFn,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
) -> Array:
    """Draw from the prior and walk the whole path: from a key to images.

    Equal to `k_x, k_z = jax.random.split(key)`, then `sample(model, state, prior(state, k_x, shape), k_z, cond)`.
    Call it as `jax.jit(generate, static_argnames="shape")`: outside of `jit` the loop is compiled anew at every call.

    Args:
      model: a callable pytree `model(x, t, cond)`.
      state: a path at index 0.
      key: one key, or one for each image: then image i depends on key i only, whatever the batch and the devices.
      shape: (B, *S).
      cond: passed to the model: any pytree, or None.
      edit: x0 -> x0, a callable pytree, applied at each step.
      remat: as for `sample`.

    Returns:
      f32[B, *S].

    Raises:
      ValueError: as for `sample`.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
      >>> generate(lambda x, t, cond: jnp.ones_like(x), state, jax.random.key(0), (2, 3)).shape
      (2, 3)
    """
    k_x, k_z = split(key, 2)
    return sample(model, state, prior(state, k_x, shape), k_z, cond, edit=edit, remat=remat)


def _walk(
    model: ModelFn,
    state: SamplerState,
    x: Array,
    key: Key,
    cond: Cond,
    edit: Edit | None,
    *,
    keep: bool,
    remat: bool,
) -> tuple[Array, Any]:
    refuse_config(state)
    refuse_used(state, "sample")
    if is_traced(remat):
        raise TypeError('remat must be static under jit: jax.jit(sample, static_argnames="remat").')

    def body(carry, key):
        state, x = carry
        x_in, t = state.model_input(x)
        state, x, pred = advance(state, model(x_in, t, cond), x, key, edit)
        return (state, x), (x, pred.x0) if keep else None

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)  # within a scan nothing can be shared with the way back
    keys = split(key, state.num_steps)
    if state.padded:
        if keep:
            raise ValueError("trajectory needs a path of known length: give it the state that was padded.")
        return _until_the_end(body, state, x, keys), None
    (_, x), kept = jax.lax.scan(body, (state, x), keys)
    return x, kept


def _until_the_end(body: Callable[..., Any], state: SamplerState, x: Array, keys: Key) -> Array:
    """Walk a padded path, whose start is a value: step k takes the key that step k of a path of known length takes."""
    start, end = state.index, state.num_steps
    fresh = read(state.timesteps, start) == state.timesteps[0]

    def goes_on(carry: tuple[SamplerState, Array]) -> Array:
        return carry[0].index < end

    def one(carry: tuple[SamplerState, Array]) -> tuple[SamplerState, Array]:
        return body(carry, keys[carry[0].index - start])[0]

    walked = jax.lax.while_loop(goes_on, one, (state, x))[1]
    return jnp.where(fresh, walked, jnp.nan)  # as what is read past the end of any path
