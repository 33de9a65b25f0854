"""Group norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.types import Array

__all__ = ["GroupNorm"]


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
