"""The loop: the prior, the steps of a hand-written loop, and the whole loop in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cmjax._compiled import call_compiled
from cmjax._numerics import f32, floating, is_traced, read, refuse_no_function
from cmjax._random import noise, split
from cmjax.samplers.base import SamplerState
from cmjax.samplers.stepping import advance, step
from cmjax.sampling.paths import pad, refuse_config, refuse_used, skip
from cmjax.types import Array, Cond, Edit, Key, ModelFn

__all__ = ["Trajectory", "add_noise", "generate", "model_input", "pad", "prior", "sample", "skip", "step", "trajectory"]

OnStep = Callable[[int, np.ndarray], Any]


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
      The pair (x_in, t): x, scaled if the sampler says so, f[B, *S], and the timestep, f32[] (i32[] for tcd and lcm).

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
    on_step: OnStep | None = None,
) -> Array:
    """Walk the whole path: the loop by hand over `jax.random.split(key, state.num_steps)` in one call (see `pad`).

    Outside of `jit` the loop is compiled once for each shape, and later calls reuse it. Arrays and Python floats are
    arguments of the compiled program; other leaves are static, plain functions by identity. Pass the same function
    again: a new lambda compiles again. Do not change NumPy arrays that it reads. The program keeps functions, and the
    values that they read, alive until `jax.clear_caches()`. Where a function reads a Flax NNX module, whose weights can
    change in place, or a leaf cannot be hashed, the loop is compiled at each call.

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
      on_step: called on the host with (index, x0) after each step, in order: for progress bars and previews. index is
        an int from 0; x0 is the clean estimate after the edit, a NumPy array f32[B, *S]. The picture is the same with
        it. Calls may arrive after `sample` returns: `jax.effects_barrier()` waits for them. It needs a single
        device; it does not work under `vmap`, nor in a program that is exported. Static; None costs nothing.

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
    return _on_a_fresh_path(_sample, model, state, x, key, cond, edit, on_step, remat)


def trajectory(
    model: ModelFn,
    state: SamplerState,
    x: Array,
    key: Key,
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
    on_step: OnStep | None = None,
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
      on_step: as for `sample`.

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
    return _on_a_fresh_path(_trajectory, model, state, x, key, cond, edit, on_step, remat)


@overload
def generate(
    model: ModelFn,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
    on_step: OnStep | None = None,
    keep_steps: Literal[False] = False,
) -> Array: ...
@overload
def generate(
    model: ModelFn,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
    on_step: OnStep | None = None,
    keep_steps: Literal[True],
) -> Trajectory: ...
def generate(
    model: ModelFn,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    cond: Cond = None,
    *,
    edit: Edit | None = None,
    remat: bool = False,
    on_step: OnStep | None = None,
    keep_steps: bool = False,
) -> Array | Trajectory:
    """Draw from the prior and walk the whole path: from a key to images.

    Equal to `k_x, k_z = jax.random.split(key)`, then `sample(model, state, prior(state, k_x, shape), k_z, cond)`.
    It is compiled once for each shape, as `sample` is; within your own `jit`, shape is static:
    `jax.jit(generate, static_argnames="shape")`.

    Args:
      model: a callable pytree `model(x, t, cond)`.
      state: a path at index 0.
      key: one key, or one for each image: then image i depends on key i only, whatever the batch and the devices.
      shape: (B, *S).
      cond: passed to the model: any pytree, or None.
      edit: x0 -> x0, a callable pytree, applied at each step.
      remat: as for `sample`.
      on_step: as for `sample`.
      keep_steps: whether to return every step, as `trajectory` does. Static.

    Returns:
      f32[B, *S]; with `keep_steps`, a `Trajectory`, whose x[-1] it is.

    Raises:
      ValueError: as for `sample`.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
      >>> generate(lambda x, t, cond: jnp.ones_like(x), state, jax.random.key(0), (2, 3)).shape
      (2, 3)
    """
    _refuse_traced("keep_steps", keep_steps)
    return _on_a_fresh_path(_generate, model, state, key, shape, cond, edit, on_step, remat, bool(keep_steps))


def _on_a_fresh_path(walk: Callable[..., Any], model: ModelFn, state: SamplerState, *rest: Any) -> Any:
    """Refuse a path that has already stepped, which only values show; then walk it in a program that is kept."""
    refuse_config(state)
    refuse_used(state, "sample")
    return call_compiled(walk, model, state, *rest)


def _generate(
    model: ModelFn,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    cond: Cond,
    edit: Edit | None,
    on_step: OnStep | None,
    remat: bool,
    keep_steps: bool,
) -> Array | Trajectory:
    k_x, k_z = split(key, 2)
    walk = _trajectory if keep_steps else _sample
    return walk(model, state, prior(state, k_x, shape), k_z, cond, edit, on_step, remat)


def _sample(model: ModelFn, state: SamplerState, x: Array, key: Key, *rest: Any) -> Array:
    return _walk(model, state, x, key, *rest, keep=False)[0]


def _trajectory(model: ModelFn, state: SamplerState, x: Array, key: Key, *rest: Any) -> Trajectory:
    _, kept = _walk(model, state, x, key, *rest, keep=True)
    return Trajectory(jnp.concatenate([x[None], kept[0]]), kept[1])


def _refuse_traced(name: str, value: Any) -> None:
    if is_traced(value):
        raise TypeError(f'{name} must be static under jit: jax.jit(sample, static_argnames="{name}").')


def _walk(
    model: ModelFn,
    state: SamplerState,
    x: Array,
    key: Key,
    cond: Cond,
    edit: Edit | None,
    on_step: OnStep | None,
    remat: bool,
    *,
    keep: bool,
) -> tuple[Array, Any]:
    _refuse_traced("remat", remat)

    def body(carry, key):
        state, x = carry
        x_in, t = state.model_input(x)
        out = _call(model, x_in, t, cond, **state.model_options())
        state, x, pred = advance(state, out, x, key, edit)
        return (state, x), (x, pred.x0) if keep or on_step else None

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)  # within a scan nothing can be shared with the way back
    if on_step is not None:
        refuse_no_function("on_step", on_step, "(index, x0) -> None")
        body = _reporting(body, on_step, state.index, keep)
    keys = split(key, state.num_steps)
    state = state.begin(x)
    if state.padded:
        if keep:
            raise ValueError("trajectory needs a path of known length: give it the state that was padded.")
        return _until_the_end(body, state, x, keys), None
    (_, x), kept = jax.lax.scan(body, (state, x), keys)
    return x, kept


def _call(model: ModelFn, x: Array, t: Array, cond: Cond, **options: Array) -> Array:
    """Call the model; refuse one that cannot be told where a step lands, if the sampler says so."""
    try:
        return model(x, t, cond, **options)
    except TypeError as error:
        if "s" in options and "unexpected keyword argument 's'" in str(error):
            raise TypeError(
                "model must take s, where the step lands, for this sampler: model(x, t, cond, s=s). A network that is "
                "told one time only is for the other samplers."
            ) from error
        raise


def _reporting(body: Callable[..., Any], on_step: OnStep, start: Array, keep: bool) -> Callable[..., Any]:
    """Call on_step after each step. The call stands outside of what `remat` computes again."""

    def report(index: Any, x0: Any) -> None:
        on_step(int(index), np.asarray(x0))

    def reporting(carry, key):
        after, kept = body(carry, key)
        jax.debug.callback(report, carry[0].index - start, kept[1], ordered=True)  # unlike io_callback, it has a JVP
        return after, kept if keep else None

    return reporting


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
