"""The residual block."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.layers.activation import activation
from cmjax.models.layers.convolution import Conv
from cmjax.models.layers.division import Division, whole
from cmjax.models.layers.dropout import dropout
from cmjax.models.layers.linear import Dtype, Linear
from cmjax.models.layers.norm import GroupNorm
from cmjax.models.layers.remat import Block, again
from cmjax.models.layers.resample import avg_pool, fir_double, fir_halve, upsample_nearest
from cmjax.types import Array, Key

__all__ = ["ResnetBlock"]

_RESIZE = {"down": avg_pool, "fir_up": fir_double, "fir_down": fir_halve}


class ResnetBlock(Block):
    """A residual block: x + conv(act(norm(conv(act(norm(x))) + time))), with optional resampling in between.

    Args:
      c_in: channels of x.
      c_out: channels of the result; where they differ, x passes through a 1x1 convolution.
      time_width: width of the time embedding; None for a block that is told no time.
      groups: groups of the norms, or of the first and of the second.
      eps: epsilon of the norms.
      act: the activation's name.
      scale_shift: whether time scales and shifts, rather than being added.
      dropout: its rate.
      resample: none, "up" or "down": both branches are doubled (nearest) or halved (means); "fir_up" or "fir_down": by
        a smooth filter.
      scale: the sum is divided by it.
      shortcut: whether x passes through a 1x1 convolution even where c_in is c_out.
      dtype: of the convolutions; norms, activations and time stay float32.
      rngs: keys of the initial weights.
    """

    division: ClassVar[Division] = Division(lambda self: self.norm2.groups, ("conv1", "norm2"), ("conv2",))

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        time_width: int | None,
        groups: int | tuple[int, int],
        eps: float,
        act: str = "silu",
        scale_shift: bool = False,
        dropout: float = 0.0,
        resample: str | None = None,
        scale: float = 1.0,
        shortcut: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        groups_in, groups_out = (groups, groups) if isinstance(groups, int) else groups
        times = 2 if scale_shift else 1
        self.norm1 = GroupNorm(c_in, groups_in, eps=eps)
        self.conv1 = Conv(c_in, c_out, dtype=dtype, rngs=rngs)
        self.time_emb_proj = None if time_width is None else Linear(time_width, times * c_out, rngs=rngs)
        self.norm2 = GroupNorm(c_out, groups_out, eps=eps)
        self.conv2 = Conv(c_out, c_out, zero=True, dtype=dtype, rngs=rngs)
        self.conv_shortcut = Conv(c_in, c_out, 1, dtype=dtype, rngs=rngs) if shortcut or c_in != c_out else None
        self.act = activation(act)
        self.scale_shift = scale_shift
        self.dropout = dropout
        self.resample = resample
        self.scale = scale

    @again
    def __call__(self, x: Array, emb: Array | None = None, key: Key | None = None) -> Array:
        """Map x f[B, H, W, c_in] and the time embedding f32[B, time_width] to f[B, H', W', c_out]."""
        h = self.act(self.norm1(x))
        if self.resample == "up":
            x, h = upsample_nearest(x), self.conv1.doubled(h)
        elif self.resample is not None:
            resize = _RESIZE[self.resample]
            x, h = resize(x), self.conv1(resize(h))
        else:
            h = self.conv1(h)
        h = self.act(self._told(h, emb))
        h = whole(self.conv2(dropout(h, self.dropout, key)))
        if self.conv_shortcut is not None:
            x = whole(self.conv_shortcut(x))
        total = x + h
        return total if self.scale == 1 else total / self.scale

    def _told(self, h: Array, emb: Array | None) -> Array:
        """The second norm, with the time."""
        if self.time_emb_proj is None:
            return self.norm2(h)
        assert emb is not None
        time = self.time_emb_proj(self.act(emb))
        if not self.scale_shift:
            return self.norm2(f32(h) + time[:, None, None])
        return self.norm2(h, *jnp.split(time, 2, axis=-1))
