"""Attention: softmax(q k^T / sqrt(d)) v, and the layers around it."""

from __future__ import annotations

import functools
from typing import ClassVar

from flax import nnx

from cmjax.models.layers.division import Division, whole
from cmjax.models.layers.linear import Dtype, Linear
from cmjax.models.layers.long_attention import attend_long, is_long, square
from cmjax.models.layers.norm import GroupNorm
from cmjax.models.layers.on_cpu import attend_by_heads
from cmjax.models.layers.remat import Block, again
from cmjax.types import Array

__all__ = ["Attention", "PixelAttention", "attend"]


def attend(q: Array, k: Array, v: Array, *, causal: bool = False) -> Array:
    """Average values with the weights softmax(q k^T / sqrt(d)); logits and softmax are float32.

    Above 2048 x 2048 logits a head are never held at once (`long_attention`): then the platform's kernel computes them,
    or they are made for a few queries at a time.

    Args:
      q: queries, f[B, heads, N, d]. Heads come before pixels, so that the big products need no transposition.
      k: keys, f[B, heads, M, d].
      v: values, f[B, heads, M, d].
      causal: whether query i attends to keys 0 ... i only.

    Returns:
      f[B, heads, N, d], in the dtype of v.

    Example:
      >>> import jax.numpy as jnp
      >>> v = jnp.array([2.0, 4.0]).reshape(1, 1, 2, 1)
      >>> attend(jnp.zeros_like(v), v, v, causal=True).ravel().tolist()
      [2.0, 3.0]

    References:
      Vaswani et al., Attention Is All You Need, 2017, equation 1.
    """
    if is_long(q.shape[2], k.shape[2]):
        return attend_long(q, k, v, causal)
    return attend_by_heads(functools.partial(square, causal=causal), q, k, v)


class Attention(nnx.Module):
    """Attention of tokens to themselves or to a context.

    Args:
      width: channels of x.
      heads: number of heads.
      head_dim: channels of one head.
      context_width: channels of the context; None for those of x.
      bias: whether the queries, keys and values have biases.
      zero: whether the last layer begins as 0.
      dtype: of the matrix products.
      rngs: keys of the initial weights.
    """

    division: ClassVar[Division] = Division(lambda self: self.heads, ("to_q", "to_k", "to_v"), ("to_out.0",))

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        context_width: int | None = None,
        bias: bool = True,
        zero: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        inner, context_width = heads * head_dim, width if context_width is None else context_width
        self.heads = heads
        self.to_q = Linear(width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.to_k = Linear(context_width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.to_v = Linear(context_width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([Linear(inner, width, zero=zero, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Map x f[B, N, C] to the same shape; the context is f[B, M, context_width], or None for x itself."""
        context = x if context is None else context
        y = attend(self._split(self.to_q(x)), self._split(self.to_k(context)), self._split(self.to_v(context)))
        return whole(self.to_out[0](y.swapaxes(1, 2).reshape(*x.shape[:2], -1)))

    def _split(self, y: Array) -> Array:
        """Split f[B, N, heads d] to f[B, heads, N, d]."""
        return y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)


class PixelAttention(Attention, Block):
    """Attention of a picture's pixels to each other, after a norm and beside a residual connection.

    Args:
      channels: channels of x.
      head_dim: channels of one head; None for a single head.
      groups: groups of the norm; None for no norm.
      eps: the norm's epsilon.
      scale: the sum is divided by it.
      dtype: of the matrix products.
      rngs: keys of the initial weights.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int | None,
        groups: int | None,
        eps: float,
        scale: float = 1.0,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        head_dim = head_dim or channels
        super().__init__(channels, heads=channels // head_dim, head_dim=head_dim, zero=True, dtype=dtype, rngs=rngs)
        self.group_norm = None if groups is None else GroupNorm(channels, groups, eps=eps)
        self.scale = scale

    @again
    def __call__(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map f[B, H, W, C] to the same shape."""
        y = x if self.group_norm is None else self.group_norm(x)
        y = super().__call__(y.reshape(x.shape[0], -1, x.shape[-1]))
        total = x + y.reshape(x.shape)
        return total if self.scale == 1 else total / self.scale
