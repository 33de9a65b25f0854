"""One step of any sampler: predict x0, edit it, return to the next noise level."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from cmjax._numerics import f32, floating, is_traced, refuse_no_function
from cmjax._random import noise, noise_if
from cmjax.samplers.base import Prediction, SamplerState, StateT
from cmjax.types import Array, Edit, Key

__all__ = ["advance", "step"]


def step(state: StateT, model_out: Array, x: Array, key: Key, *, edit: Edit | None = None) -> tuple[StateT, Array]:
    """Take one step: predict x0, edit it, return to the next noise level.

    The model is the caller's: `x_in, t = model_input(state, x)`, then `model_out = model(x_in, t, cond)`; for samplers
    of networks that are told where a step lands, `model(x_in, t, cond, **state.model_options())`.

    Args:
      state: a path, at its current step.
      model_out: f[B, *S], the network's output for `model_input(state, x)`.
      x: f[B, *S], the noisy sample now.
      key: one key, or one for each image.
      edit: x0 -> x0, applied to the (clipped) clean estimate; eps is then derived again, so that both still explain x.
        The last step returns the edited x0.

    Returns:
      The pair (state, x): the state one step further, and the sample there, in x's dtype. Arithmetic is in float32.

    Raises:
      TypeError: x or model_out is not of a float dtype.
      ValueError: model_out does not have the shape of x, or there is neither one key nor one for each image.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
      >>> state, x = step(state, jnp.zeros((1, 4)), jnp.ones((1, 4)), jax.random.key(0))
      >>> state
      CMState(index=1/2, timesteps=f32[2], sigmas=f32[3], sigma_data=f32[], s_noise=f32[], clip_denoised=True)
    """
    state, x, _ = advance(state, model_out, x, key, edit)
    return state, x


def advance(
    state: StateT, model_out: Array, x: Array, key: Key, edit: Edit | None = None
) -> tuple[StateT, Array, Prediction]:
    """Take a step as `step` does, and return the prediction that it used as well."""
    _check_sample(model_out, x)
    pred = state.predict(model_out, x)
    if edit is not None:
        pred = _apply(edit, state, pred, x)
    x_next = state.renoise(pred, _fresh_noise(state, key, x.shape))
    if edit is not None:  # a path may end just above clean data; an edited picture is returned as it was edited
        x_next = jnp.where(_is_last(state), pred.x0, x_next)
    return state.remember(pred).replace(index=state.index + 1), x_next.astype(x.dtype), pred


def _apply(edit: Edit, state: SamplerState, pred: Prediction, x: Array) -> Prediction:
    """Edit x0, and derive eps again, so that the pair still explains x."""
    refuse_no_function("edit", edit, "x0 -> x0")
    x0 = f32(floating("what edit returns", edit(pred.x0)))
    if x0.shape != x.shape:
        raise ValueError(f"edit returned shape {x0.shape} for x0 of shape {x.shape}; it must keep the shape.")
    alpha, sigma = state.rates()
    return Prediction(x0, (f32(x) - alpha * x0) / sigma)


def _fresh_noise(state: SamplerState, key: Key, shape: tuple[int, ...]) -> Array:
    """Draw z ~ N(0, I), f32[B, *S]; under `jit`, skip the last step, where its weight is 0."""
    if not is_traced(state.index):
        return noise(key, shape)  # outside of jit a cond would be compiled anew at each call
    if state.num_steps == 1:  # its only step is the last
        return jnp.zeros_like(jax.eval_shape(partial(noise, shape=shape), key))
    return noise_if(~_is_last(state), key, shape)


def _is_last(state: SamplerState) -> Array:
    return state.index == state.num_steps - 1


def _check_sample(model_out: Array, x: Array) -> None:
    for name, array in (("x", x), ("model_out", model_out)):
        if isinstance(array, tuple | list):
            raise TypeError(f"{name} must be an array, got a {type(array).__name__}: a model returns its output alone.")
        floating(name, array)
    if model_out.shape == x.shape:
        return
    remedy = "the network must return the shape that it is given."
    if model_out.shape[:-1] == x.shape[:-1] and model_out.shape[-1] == 2 * x.shape[-1]:
        remedy = "a network with a learned variance returns twice the channels: pass on the first half."
    raise ValueError(f"model_out has shape {model_out.shape} for x of shape {x.shape}; {remedy}")
