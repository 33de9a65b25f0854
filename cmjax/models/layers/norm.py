"""Group norms and layer norms."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.layers.layout import NORM, Layout
from cmjax.models.layers.linear import Linear
from cmjax.types import Array

__all__ = ["AdaGroupNorm", "GroupNorm", "LayerNorm"]


class GroupNorm(nnx.Module):
    """Normalize groups of channels to mean 0 and variance 1, in float32 whatever comes in; returns float32.

    Mean and variance come from one pass over the pixels, the sums of d = x - a and of d^2, where a is each group's mean
    over the first row. Any a gives the same mean and variance on paper; with a = 0, the usual choice, E[d^2] - E[d]^2
    loses all its digits where the mean is large. With a from the picture itself the variance is at least (mean - a)^2
    divided by the height, so it cannot be lost in the difference, let alone be negative.

    Args:
      channels: channels of x.
      groups: number of groups; it divides `channels`.
      eps: added to the variance. There is no default: published networks differ in it.

    Raises:
      ValueError: `groups` does not divide `channels`.

    References:
      Wu and He 2018, equations 1 to 3; Chan, Golub and LeVeque 1983 (shifted variances).
    """

    layout: ClassVar[Layout] = NORM

    def __init__(self, channels: int, groups: int, *, eps: float):
        if channels % groups:
            raise ValueError(f"channels = {channels} of a group norm must be a multiple of its groups = {groups}.")
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups = groups
        self.eps = eps

    def _over_groups(self, v: Array) -> Array:
        """Average f32[B, C] over each group's channels and spread it over them again: f32[B, 1, 1, C]."""
        b, c = v.shape
        mean = v.reshape(b, self.groups, c // self.groups).mean(axis=-1)
        return jnp.repeat(mean, c // self.groups, axis=-1)[:, None, None, :]

    def __call__(self, x: Array) -> Array:
        """Normalize x f[B, H, W, C]; returns f32[B, H, W, C]."""
        x = f32(x)
        a = jax.lax.stop_gradient(self._over_groups(x[:, 0].mean(axis=1)))
        d = x - a
        mean = self._over_groups(d.mean(axis=(1, 2)))
        variance = self._over_groups(jnp.square(d).mean(axis=(1, 2))) - jnp.square(mean)
        gain = jax.lax.rsqrt(variance + self.eps) * self.scale[...][None, None, None, :]
        return (d - mean) * gain + self.bias[...][None, None, None, :]


class AdaGroupNorm(nnx.Module):
    """A group norm without weights, scaled and shifted by the time embedding; float32.

    Args:
      channels: channels of x.
      groups: number of groups; it divides `channels`.
      time_width: width of the time embedding.
      eps: added to the variance.
      rngs: keys of the initial weights.
    """

    def __init__(self, channels: int, groups: int, *, time_width: int, eps: float, rngs: nnx.Rngs):
        self.linear = Linear(time_width, 2 * channels, rngs=rngs)
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Array, emb: Array) -> Array:
        """Map x f[B, H, W, C] and the time embedding f32[B, E] to f32[B, H, W, C]."""
        gain, shift = jnp.split(self.linear(emb)[:, None, None, :], 2, axis=-1)
        b, h, w, c = x.shape
        y = f32(x).reshape(b, h, w, self.groups, c // self.groups)
        y = y - y.mean(axis=(1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=(1, 2, 4), keepdims=True) + self.eps)
        return y.reshape(x.shape) * (1 + gain) + shift


class LayerNorm(nnx.Module):
    """Normalize the channels of each token to mean 0 and variance 1, in float32 whatever comes in; returns float32.

    Args:
      channels: channels of x.
      eps: added to the variance.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016.
    """

    layout: ClassVar[Layout] = NORM

    def __init__(self, channels: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalize x f[..., C]; returns f32[..., C]."""
        x = f32(x)
        d = x - x.mean(axis=-1, keepdims=True)
        gain = jax.lax.rsqrt(jnp.square(d).mean(axis=-1, keepdims=True) + self.eps)
        return d * gain * self.scale[...] + self.bias[...]
