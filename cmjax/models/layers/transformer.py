"""Transformers over the pixels of a picture, which attend to each other and to a context such as a text."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers.attention import Attention
from cmjax.models.layers.division import Division, is_divided, whole
from cmjax.models.layers.linear import Dtype, Linear, PixelLinear
from cmjax.models.layers.norm import GroupNorm, LayerNorm
from cmjax.models.layers.remat import Block, again
from cmjax.types import Array

__all__ = ["FeedForward", "Transformer2D", "TransformerBlock"]

_NORM_EPS, _PICTURE_EPS = 1e-5, 1e-6  # of published networks, whatever their config says


class _GatedLinear(nnx.Module):
    """A linear layer to twice the width; the second half, through GELU, gates the first."""

    def __init__(self, width: int, inner: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.proj = Linear(width, 2 * inner, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        if not is_divided():
            y, gate = jnp.split(self.proj(x), 2, axis=-1)
        else:  # each device computes the same channels of both
            y, gate = jnp.unstack(self.proj.in_parts(x, 2), axis=-2)
        return y * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """A gated linear layer to four times the width, and one back (GEGLU).

    Args:
      width: channels of x.
      dtype: of the matrix products.
      rngs: keys of the initial weights.

    References:
      Shazeer, GLU Variants Improve Transformer, 2020.
    """

    division: ClassVar[Division] = Division(lambda self: self.net[2].in_features, rows=("net.2",))

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        # Files count a dropout between the two.
        self.net = nnx.List([_GatedLinear(width, 4 * width, **options), None, Linear(4 * width, width, **options)])

    def __call__(self, x: Array) -> Array:
        """Map x f[B, N, C] to the same shape."""
        gated, linear = self.net[0], self.net[2]
        assert gated is not None and linear is not None
        return whole(linear(gated(x)))


class TransformerBlock(Block):
    """Attention of tokens to themselves, attention to a context, and a feed-forward layer, each beside x.

    Args:
      width: channels of x.
      heads: number of heads.
      head_dim: channels of one head.
      context_width: channels of the context.
      only_context: whether the first attention is to the context too.
      dtype: of the matrix products.
      rngs: keys of the initial weights.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        context_width: int,
        only_context: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        options = {"heads": heads, "head_dim": head_dim, "bias": False, "dtype": dtype, "rngs": rngs}
        self.norm1 = LayerNorm(width, eps=_NORM_EPS)
        self.attn1 = Attention(width, context_width=context_width if only_context else None, **options)
        self.norm2 = LayerNorm(width, eps=_NORM_EPS)
        self.attn2 = Attention(width, context_width=context_width, **options)
        self.norm3 = LayerNorm(width, eps=_NORM_EPS)
        self.ff = FeedForward(width, dtype=dtype, rngs=rngs)
        self.only_context = only_context

    @again
    def __call__(self, x: Array, context: Array) -> Array:
        """Map x f[B, N, C], with a context f[B, M, context_width], to the shape of x."""
        x = x + self.attn1(self.norm1(x), context if self.only_context else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(Block):
    """Transformer blocks over the pixels of a picture, between a norm and two projections, beside x.

    Args:
      channels: channels of x.
      heads: number of heads.
      context_width: channels of the context.
      blocks: number of transformer blocks.
      groups: groups of the norm.
      linear: whether files hold the projections as linear layers, rather than as convolutions of one pixel.
      only_context: whether pixels attend to the context only, twice, and not to each other.
      dtype: of the matrix products.
      rngs: keys of the initial weights.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        context_width: int,
        blocks: int,
        groups: int,
        linear: bool,
        only_context: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        inner = heads * (channels // heads)
        projection = Linear if linear else PixelLinear
        self.norm = GroupNorm(channels, groups, eps=_PICTURE_EPS)
        self.proj_in = projection(channels, inner, dtype=dtype, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [
                TransformerBlock(
                    inner,
                    heads=heads,
                    head_dim=channels // heads,
                    context_width=context_width,
                    only_context=only_context,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(blocks)
            ]
        )
        self.proj_out = projection(inner, channels, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, context: Array) -> Array:
        """Map x f[B, H, W, C], with a context f[B, M, context_width], to the shape of x."""
        y = self._tokens(x)
        for block in self.transformer_blocks:
            y = block(y, context)
        return self._added(x, y)

    @again
    def _tokens(self, x: Array) -> Array:
        return whole(self.proj_in(self.norm(x).reshape(x.shape[0], -1, x.shape[-1])))

    @again
    def _added(self, x: Array, y: Array) -> Array:
        return whole(x + self.proj_out(y).reshape(x.shape))
