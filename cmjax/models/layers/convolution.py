"""Convolutions, those that halve and double pictures among them."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers.division import Division, whole
from cmjax.models.layers.initial import fan_in_uniform, zeros
from cmjax.models.layers.layout import CONV, Layout
from cmjax.models.layers.linear import Dtype
from cmjax.models.layers.on_cpu import convolve, convolve_doubled
from cmjax.models.layers.resample import resize_nearest
from cmjax.types import Array

__all__ = ["Conv", "Downsample2D", "Upsample2D"]


class Conv(nnx.Conv):
    """A convolution on NHWC pictures that keeps their size (strides 1), or halves it (strides 2).

    Args:
      c_in: channels of the input.
      c_out: channels of the output.
      size: pixels a side of the kernel.
      strides: of the window.
      padding: zeros on every side; None for as many as keep the size.
      bias: whether it has one.
      zero: whether the initial kernel is 0.
      dtype: of the sums.
      rngs: keys of the initial weights.
    """

    layout: ClassVar[Layout] = CONV

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int = 3,
        *,
        strides: int = 1,
        padding: int | None = None,
        bias: bool = True,
        zero: bool = False,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        pad = size // 2 if padding is None else padding
        super().__init__(
            c_in,
            c_out,
            (size, size),
            strides=strides,
            padding=((pad, pad), (pad, pad)),
            use_bias=bias,
            dtype=dtype,
            kernel_init=zeros if zero else fan_in_uniform,
            conv_general_dilated=convolve,
            rngs=rngs,
        )

    def doubled(self, x: Array) -> Array:
        """Convolve a picture f[B, H, W, c_in] whose pixels are repeated: f[B, 2 H, 2 W, c_out], all in one."""
        y = convolve_doubled(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)[None, None, None, :]


class Downsample2D(nnx.Module):
    """Halve a picture with a 3x3 convolution of stride 2."""

    division: ClassVar[Division] = Division(lambda self: self.conv.out_features, ("conv",))

    def __init__(self, channels: int, *, padding: int, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, strides=2, padding=padding, dtype=dtype, rngs=rngs)
        self.padding = padding

    def __call__(self, x: Array) -> Array:
        """Map f[B, H, W, C] to f[B, H / 2, W / 2, C]: odd sizes are rounded up, or down with a padding of 0."""
        if self.padding == 0:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return whole(self.conv(x))


class Upsample2D(nnx.Module):
    """Double a picture by repeating its pixels, then a 3x3 convolution, in one (`Conv.doubled`)."""

    division: ClassVar[Division] = Division(lambda self: self.conv.out_features, ("conv",))

    def __init__(self, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, size: tuple[int, ...] | None = None) -> Array:
        """Map f[B, H, W, C] to f[B, 2 H, 2 W, C]; or to f[B, *size, C], where what was halved had an odd size."""
        if size is None or tuple(size) == (2 * x.shape[1], 2 * x.shape[2]):
            return whole(self.conv.doubled(x))
        return whole(self.conv(resize_nearest(x, size)))
