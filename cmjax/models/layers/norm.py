"""Group norms and layer norms."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from cmjax._numerics import f32
from cmjax.models.layers.layout import NORM, Layout
from cmjax.models.layers.linear import Linear
from cmjax.models.layers.on_cpu import apart
from cmjax.types import Array

__all__ = ["AdaGroupNorm", "GroupNorm", "LayerNorm", "group_norm"]


def group_norm(
    x: Array, groups: int, eps: float, scale: ArrayLike, bias: ArrayLike, gain: ArrayLike = 0.0, shift: ArrayLike = 0.0
) -> Array:
    """Normalize groups of channels to mean 0 and variance 1; then y scale + bias, and then y (1 + gain) + shift.

    Mean and variance come from one pass over the pixels, the sums of d = x - a and of d^2, where a is each group's mean
    over the first row. Any a gives the same mean and variance on paper; with a = 0, the usual choice, E[d^2] - E[d]^2
    loses all its digits where the mean is large. With a from the picture itself the variance is at least (mean - a)^2
    divided by the height, so it cannot be lost in the difference, let alone be negative.

    Args:
      x: f[B, H, W, C].
      groups: number of groups; it divides C.
      eps: added to the variance.
      scale: f32[C], or a number.
      bias: f32[C], or a number.
      gain: f32[B, C], or a number.
      shift: f32[B, C], or a number.

    Returns:
      f32[B, H, W, C], whatever comes in.

    References:
      Wu and He 2018, equations 1 to 3; Chan, Golub and LeVeque 1983 (shifted variances).
    """
    x = f32(x)
    a = jax.lax.stop_gradient(_over_groups(x[:, 0].mean(axis=1), groups=groups))
    d = x - _over_pixels(a)
    sums = d.mean(axis=(1, 2)), jnp.square(d).mean(axis=(1, 2))
    told = map(jnp.atleast_2d, (scale, bias, gain, shift))
    mean, factor, summand = map(_over_pixels, _affine(*sums, *told, groups=groups, eps=eps))
    return (d - mean) * factor + summand


@apart("groups", "eps")
def _affine(
    mean: Array, square: Array, scale: Array, bias: Array, gain: Array, shift: Array, *, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    """Return a mean, a factor and a summand, so that the norm of d is (d - mean) factor + summand.

    Each is f32[B, C]; the summand has axes of 1 where bias, gain and shift have them.
    """
    mean, square = _over_groups(mean, groups=groups), _over_groups(square, groups=groups)
    factor = jax.lax.rsqrt(square - jnp.square(mean) + eps) * scale
    return mean, factor * (1 + gain), bias * (1 + gain) + shift


@apart("groups")
def _over_groups(v: Array, *, groups: int) -> Array:
    """Average f32[B, C] over each group's channels, and give each channel its group's average."""
    b, c = v.shape
    return jnp.repeat(v.reshape(b, groups, c // groups).mean(axis=-1), c // groups, axis=-1)


def _over_pixels(v: Array) -> Array:
    """Lay f[B, C] over the pixels of pictures: f[B, 1, 1, C]."""
    return v[:, None, None]


class GroupNorm(nnx.Module):
    """A group norm with a scale and a bias for each channel; float32 whatever comes in.

    Args:
      channels: channels of x.
      groups: number of groups; it divides `channels`.
      eps: added to the variance. There is no default: published networks differ in it.

    Raises:
      ValueError: `groups` does not divide `channels`.
    """

    layout: ClassVar[Layout] = NORM

    def __init__(self, channels: int, groups: int, *, eps: float):
        if channels % groups:
            raise ValueError(f"channels = {channels} of a group norm must be a multiple of its groups = {groups}.")
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Array, gain: ArrayLike = 0.0, shift: ArrayLike = 0.0) -> Array:
        """Normalize x f[B, H, W, C], then scale by 1 + gain and add shift, each f32[B, C]; returns f32[B, H, W, C]."""
        return group_norm(x, self.groups, self.eps, self.scale[...], self.bias[...], gain, shift)


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
        return group_norm(x, self.groups, self.eps, 1.0, 0.0, *jnp.split(self.linear(emb), 2, axis=-1))


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
