"""Blocks: the levels on the way down, the middle, and the levels on the way up, on NHWC pictures.

Attribute names are those of diffusers' modules, so that names of weights map by rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers import Downsample2D, Dtype, PixelAttention, ResnetBlock, Upsample2D
from cmjax.models.unet2d.block_types import up_widths
from cmjax.models.unet2d.config import UNetConfig
from cmjax.types import Array, Key

__all__ = ["DownBlock", "Keys", "Maker", "MidBlock", "UpBlock"]

Keys = Iterator[Key | None]


class Maker:
    """Makes residual blocks and attentions with the numbers of one config."""

    def __init__(self, config: UNetConfig, dtype: Dtype, rngs: nnx.Rngs):
        self.config = config
        self.options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}  # of every layer

    def resnet(self, c_in: int, c_out: int, **options: Any) -> ResnetBlock:
        """Make a residual block; `options` are those of `ResnetBlock` that the config does not say."""
        c = self.config
        said = {
            "time_width": c.time_width,
            "groups": (c.num_groups(c_in), c.num_groups(c_out)),
            "act": c.act_fn,
            "scale_shift": c.resnet_time_scale_shift == "scale_shift",
            "dropout": c.dropout,
            "eps": c.norm_eps,
        }
        return ResnetBlock(c_in, c_out, **{**said, **self.options, **options})

    def attention(self, channels: int, groups: int | None, **options: Any) -> PixelAttention:
        """Make an attention; `options` are those of `PixelAttention` that the config does not say."""
        said = {"head_dim": self.config.attention_head_dim, "eps": self.config.norm_eps}
        return PixelAttention(channels, groups=groups, **said, **self.options, **options)

    def attentions(self, channels: int, num: int) -> nnx.List:
        """Make one for each residual block of a level."""
        return nnx.List([self.attention(channels, self.config.num_groups(channels)) for _ in range(num)])


class DownBlock(nnx.Module):
    """One level on the way down: residual blocks, with or without attention, then a halving (except at the last level).

    Args:
      make: makes its layers.
      kind: "DownBlock2D", "AttnDownBlock2D" or "ResnetDownsampleBlock2D".
      c_in: channels that come in.
      c_out: channels of the level.
      halve: whether the level ends in a halving.
    """

    def __init__(self, make: Maker, kind: str, c_in: int, c_out: int, *, halve: bool):
        widths = [c_in] + [c_out] * (make.config.layers_per_block - 1)
        self.resnets = nnx.List([make.resnet(c, c_out) for c in widths])
        self.attentions = make.attentions(c_out, len(widths)) if kind == "AttnDownBlock2D" else None
        if not halve:
            self.downsamplers = None
        elif _resamples_by_resnet(kind, make.config.downsample_type):
            self.downsamplers = nnx.List([make.resnet(c_out, c_out, resample="down")])
        else:
            padding = make.config.downsample_padding
            self.downsamplers = nnx.List([Downsample2D(c_out, padding=padding, **make.options)])

    def __call__(self, x: Array, emb: Array, keys: Keys) -> tuple[Array, list[Array]]:
        """Map x f[B, H, W, c_in] to f[B, H / 2, W / 2, c_out]; also returns what the way up will be given."""
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True):
            x = resnet(x, emb, next(keys))
            x = x if attention is None else attention(x)
            skips.append(x)
        if self.downsamplers is not None:
            x = _resample(self.downsamplers[0], x, emb, keys)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """The coarsest level's middle: residual block, attention (if the config has it), residual block.

    Args:
      make: makes its layers.
    """

    def __init__(self, make: Maker):
        config = make.config
        c, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.resnets = nnx.List([make.resnet(c, c, scale=scale) for _ in range(2)])
        attention = make.attention(c, config.mid_attention_groups, scale=scale) if config.add_attention else None
        self.attentions = None if attention is None else nnx.List([attention])

    def __call__(self, x: Array, emb: Array, keys: Keys) -> Array:
        """Map f[B, H, W, C] to the same shape."""
        x = self.resnets[0](x, emb, next(keys))
        x = x if self.attentions is None else self.attentions[0](x)
        return self.resnets[1](x, emb, next(keys))


class UpBlock(nnx.Module):
    """One level on the way up: each residual block also gets a picture from the way down; then a doubling.

    Args:
      make: makes its layers.
      kind: "UpBlock2D", "AttnUpBlock2D" or "ResnetUpsampleBlock2D".
      c_prev: channels that come in from the level below.
      c_skip: channels of the last picture from the way down (those of the level above, on the way down).
      c_out: channels of the level.
      double: whether the level ends in a doubling.
    """

    def __init__(self, make: Maker, kind: str, c_prev: int, c_skip: int, c_out: int, *, double: bool):
        widths = up_widths(c_prev, c_skip, c_out, make.config.layers_per_block)
        self.resnets = nnx.List([make.resnet(a + b, c_out) for a, b in widths])
        self.attentions = make.attentions(c_out, len(widths)) if kind == "AttnUpBlock2D" else None
        if not double:
            self.upsamplers = None
        elif _resamples_by_resnet(kind, make.config.upsample_type):
            self.upsamplers = nnx.List([make.resnet(c_out, c_out, resample="up")])
        else:
            self.upsamplers = nnx.List([Upsample2D(c_out, **make.options)])

    def __call__(self, x: Array, emb: Array, skips: list[Array], keys: Keys) -> Array:
        """Map x f[B, H, W, c_prev] to f[B, 2 H, 2 W, c_out], taking pictures from the end of `skips`."""
        for resnet, attention in zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), emb, next(keys))
            x = x if attention is None else attention(x)
        return x if self.upsamplers is None else _resample(self.upsamplers[0], x, emb, keys)


def _resamples_by_resnet(kind: str, resample_type: str | None) -> bool:
    """Plain blocks always resample by convolution and resnet blocks by resnet; attention blocks ask the config."""
    return kind.startswith("Resnet") or (kind.startswith("Attn") and resample_type == "resnet")


def _resample(layer: nnx.Module, x: Array, emb: Array, keys: Keys) -> Array:
    if isinstance(layer, ResnetBlock):
        return layer(x, emb, next(keys))
    assert isinstance(layer, Downsample2D | Upsample2D)
    return layer(x)
