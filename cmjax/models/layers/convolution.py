"""Convolutions, and the halving and doubling of pictures."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers.initial import fan_in_uniform, zeros
from cmjax.models.layers.linear import Dtype
from cmjax.models.layers.on_cpu import convolve, convolve_doubled, upsample_nearest
from cmjax.types import Array

__all__ = ["Downsample2D", "Upsample2D", "avg_pool", "conv", "doubled_conv", "upsample_nearest"]


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
