"""The linear layer."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers.initial import fan_in_uniform, zeros
from cmjax.models.layers.layout import LINEAR, LINEAR_AS_CONV, Layout
from cmjax.types import Array

__all__ = ["Dtype", "Linear", "PixelLinear", "apply_in_parts"]

Dtype = jnp.dtype | type


class Linear(nnx.Linear):
    """A linear layer, f[..., c_in] to f[..., c_out].

    Args:
      c_in: channels of the input.
      c_out: channels of the output.
      bias: whether it has one.
      zero: whether the initial kernel is 0.
      dtype: of the product.
      rngs: keys of the initial weights.
    """

    layout: ClassVar[Layout] = LINEAR

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        bias: bool = True,
        zero: bool = False,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            c_in, c_out, use_bias=bias, dtype=dtype, kernel_init=zeros if zero else fan_in_uniform, rngs=rngs
        )

    def in_parts(self, x: Array, parts: int) -> Array:
        """Map f[..., c_in] to f[..., parts, c_out / parts]: the output in parts, each of which devices can divide."""
        y = apply_in_parts(x.astype(self.dtype), self.kernel[...].astype(self.dtype), parts)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(parts, -1)


def apply_in_parts(x: Array, kernel: Array, parts: int) -> Array:
    """Multiply f[..., c_in] by f[c_in, c_out] to f[..., parts, c_out / parts]."""
    return jnp.tensordot(x, kernel.reshape(len(kernel), parts, -1), 1)


class PixelLinear(Linear):
    """A linear layer over the channels of pictures, which files hold as a convolution of one pixel."""

    layout: ClassVar[Layout] = LINEAR_AS_CONV
