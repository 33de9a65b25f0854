"""Layers: the convolutions, the group norm, the resampling and the dropout that the blocks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.convolution import convolve, convolve_doubled, upsample_nearest
from cmjax.types import Array, Key

__all__ = [
    "Downsample2D",
    "GroupNorm",
    "Upsample2D",
    "activation",
    "avg_pool",
    "conv",
    "doubled_conv",
    "dropout",
    "dropout_keys",
    "fan_in_uniform",
    "linear",
    "upsample_nearest",
]

Dtype = jnp.dtype | type

# Zeros where a branch rejoins the picture (the last layer of a residual block, of an attention, of the network): every
# block begins as the identity and the network as 0, so training starts at f(x, sigma) = c_skip x and is stable at any
# depth. diffusers draws these weights at random; loaded weights replace them, so only training sees the difference.
zeros = nnx.initializers.zeros_init()


def fan_in_uniform(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draw weights of variance 1 / fan_in, U(-b, b) with b^2 = 3 / fan_in; the last axis is the output's.

    XLA takes about a second to compile a draw of each new size, and a UNet has dozens. So the numbers come from draws
    of a few sizes, powers of four, and the rest of a draw is dropped.

    References:
      LeCun et al. 1998, Efficient BackProp, section 4.6.
    """
    size = math.prod(shape)
    most = 4 ** max(6, math.ceil(math.log(size, 4)))
    draw = jax.random.uniform(key, (most,), jnp.float32, -1.0, 1.0)[:size].reshape(shape)
    return (draw * math.sqrt(3 * shape[-1] / size)).astype(dtype)


def linear(c_in: int, c_out: int, *, zero: bool = False, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """Make a linear layer."""
    return nnx.Linear(c_in, c_out, dtype=dtype, kernel_init=zeros if zero else fan_in_uniform, rngs=rngs)


def conv(
    c_in: int,
    c_out: int,
    size: int = 3,
    *,
    strides: int = 1,
    padding: int | None = None,
    zero: bool = False,
    dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Make a convolution on NHWC pictures that keeps their size (stride 1), or halves it (stride 2)."""
    pad = size // 2 if padding is None else padding
    return nnx.Conv(
        c_in,
        c_out,
        (size, size),
        strides=strides,
        padding=((pad, pad), (pad, pad)),
        dtype=dtype,
        kernel_init=zeros if zero else fan_in_uniform,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


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


class Downsample2D(nnx.Module):
    """Halve a picture with a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, padding: int, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, strides=2, padding=padding, dtype=dtype, rngs=rngs)
        self.padding = padding

    def __call__(self, x: Array) -> Array:
        """Map f[B, H, W, C] to f[B, H / 2, W / 2, C]."""
        if self.padding == 0:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Double a picture by repeating its pixels, then a 3x3 convolution, in one (`convolve_doubled`)."""

    def __init__(self, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Map f[B, H, W, C] to f[B, 2 H, 2 W, C]."""
        return doubled_conv(self.conv, x)


def doubled_conv(layer: nnx.Conv, x: Array) -> Array:
    """Apply a 3x3 convolution made by `conv` to a picture that `upsample_nearest` doubles: f[B, 2 H, 2 W, c_out]."""
    bias = layer.bias
    assert bias is not None and layer.dtype is not None  # `conv` sees to it
    y = convolve_doubled(x.astype(layer.dtype), layer.kernel[...].astype(layer.dtype))
    return y + bias[...].astype(layer.dtype)[None, None, None, :]


def avg_pool(x: Array) -> Array:
    """Halve a picture f[B, H, W, C] by taking means of 2 x 2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Set entries of x to zero with probability `rate` and scale up the others; without a key, do nothing."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def dropout_keys(key: Key | None, rate: float) -> Iterator[Key | None]:
    """Give one key for each dropout in a network, in the order of use; None for ever where there is none to give."""
    if key is None or rate == 0:
        return repeat(None)
    return (jax.random.fold_in(key, i) for i in count())


def activation(name: str) -> Callable[[Array], Array]:
    """The activation with a config's name, in capitals or not."""
    table = {"silu": jax.nn.silu, "swish": jax.nn.silu, "mish": jax.nn.mish, "gelu": _gelu, "relu": jax.nn.relu}
    return table[name.lower()]


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)
