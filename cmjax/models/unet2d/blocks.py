"""Blocks: the residual, attention, down, mid and up blocks of a UNet, on NHWC pictures.

Attribute names are those of diffusers' modules, so that names of weights map by rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.layers import (
    Downsample2D,
    Dtype,
    GroupNorm,
    Upsample2D,
    activation,
    avg_pool,
    conv,
    doubled_conv,
    dropout,
    linear,
    upsample_nearest,
)
from cmjax.models.layers.attention import attend
from cmjax.models.layers.fir import fir_double, fir_halve
from cmjax.models.unet2d.block_types import up_widths
from cmjax.models.unet2d.config import UNetConfig
from cmjax.types import Array, Key

__all__ = ["Attention", "DownBlock", "MidBlock", "ResnetBlock2D", "UpBlock"]

Keys = Iterator[Key | None]

_RESIZE = {"down": avg_pool, "fir_up": fir_double, "fir_down": fir_halve}


class ResnetBlock2D(nnx.Module):
    """A residual block: x + conv(act(norm(conv(act(norm(x))) + time))), with optional resampling in between.

    Args:
      config: Gives activation, norms, dropout and how time enters.
      c_in: Channels of x.
      c_out: Channels of the result; where they differ, x passes through a 1x1 convolution.
      resample: None, "up" or "down": both branches are doubled (nearest) or halved (means); "fir_up" or "fir_down": by
        a smooth filter.
      scale: The sum is divided by it.
      groups: Groups of the first and of the second norm; None for the config's.
      shortcut: Whether x passes through a 1x1 convolution even where c_in is c_out.
      dtype: Of the convolutions; norms, activations and time stay float32.
      rngs: Keys of the initial weights.
    """

    def __init__(
        self,
        config: UNetConfig,
        c_in: int,
        c_out: int,
        *,
        resample: str | None = None,
        scale: float = 1.0,
        groups: tuple[int, int] | None = None,
        shortcut: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        groups_in, groups_out = groups or (config.num_groups(c_in), config.num_groups(c_out))
        eps = config.norm_eps
        self.norm1 = GroupNorm(c_in, groups_in, eps=eps)
        self.conv1 = conv(c_in, c_out, dtype=dtype, rngs=rngs)
        self.time_emb_proj = linear(config.time_width, c_out * (2 if self.scale_shift else 1), rngs=rngs)
        self.norm2 = GroupNorm(c_out, groups_out, eps=eps)
        self.conv2 = conv(c_out, c_out, zero=True, dtype=dtype, rngs=rngs)
        self.conv_shortcut = conv(c_in, c_out, 1, dtype=dtype, rngs=rngs) if shortcut or c_in != c_out else None
        self.act = activation(config.act_fn)
        self.dropout = config.dropout
        self.resample = resample
        self.scale = scale

    def __call__(self, x: Array, emb: Array, key: Key | None = None) -> Array:
        """Map x f[B, H, W, c_in] and the time embedding f32[B, E] to f[B, H', W', c_out]."""
        h = self.act(self.norm1(x))
        if self.resample == "up":
            x, h = upsample_nearest(x), doubled_conv(self.conv1, h)
        elif self.resample is not None:
            resize = _RESIZE[self.resample]
            x, h = resize(x), self.conv1(resize(h))
        else:
            h = self.conv1(h)
        time = self.time_emb_proj(self.act(emb))[:, None, None, :]
        if self.scale_shift:
            gain, shift = jnp.split(time, 2, axis=-1)
            h = self.norm2(h) * (1 + gain) + shift
        else:
            h = self.norm2(f32(h) + time)
        h = self.conv2(dropout(self.act(h), self.dropout, key))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return _sum(x, h, self.scale)


class Attention(nnx.Module):
    """Self-attention over the pixels of a picture, with a residual connection.

    Args:
      channels: Channels of x.
      head_dim: Channels of one head, None for a single head.
      groups: Groups of the norm before it, or None for no norm.
      eps: The norm's epsilon.
      scale: The sum is divided by it.
      dtype: Of the matrix products.
      rngs: Keys of the initial weights.
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
        self.head_dim = head_dim or channels
        self.heads = channels // self.head_dim
        inner = self.heads * self.head_dim
        self.group_norm = GroupNorm(channels, groups, eps=eps) if groups is not None else None
        self.to_q = linear(channels, inner, dtype=dtype, rngs=rngs)
        self.to_k = linear(channels, inner, dtype=dtype, rngs=rngs)
        self.to_v = linear(channels, inner, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([linear(inner, channels, zero=True, dtype=dtype, rngs=rngs)])
        self.scale = scale

    def __call__(self, x: Array) -> Array:
        """Map f[B, H, W, C] to the same shape."""
        b, h, w, c = x.shape
        y = (x if self.group_norm is None else self.group_norm(x)).reshape(b, h * w, c)
        q, k, v = (self._heads(to(y)) for to in (self.to_q, self.to_k, self.to_v))
        y = attend(q, k, v).swapaxes(1, 2).reshape(b, h * w, -1)
        return _sum(x, self.to_out[0](y).reshape(b, h, w, c), self.scale)

    def _heads(self, y: Array) -> Array:
        """Split f[B, N, heads head_dim] to f[B, heads, N, head_dim]."""
        return y.reshape(*y.shape[:2], self.heads, self.head_dim).swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes a level's residual blocks and attentions from the one config."""

    config: UNetConfig
    dtype: Dtype
    rngs: nnx.Rngs

    def resnet(self, c_in: int, c_out: int, **options) -> ResnetBlock2D:
        return ResnetBlock2D(self.config, c_in, c_out, dtype=self.dtype, rngs=self.rngs, **options)

    def attention(self, channels: int, groups: int | None, **options) -> Attention:
        c = self.config
        return Attention(
            channels,
            head_dim=c.attention_head_dim,
            groups=groups,
            eps=c.norm_eps,
            dtype=self.dtype,
            rngs=self.rngs,
            **options,
        )

    def attentions(self, channels: int, num: int) -> nnx.List:
        return nnx.List([self.attention(channels, self.config.num_groups(channels)) for _ in range(num)])


class DownBlock(nnx.Module):
    """One level on the way down: residual blocks, each with attention or not, then a halving (but for the last level).

    Args:
      config: The network's.
      kind: "DownBlock2D", "AttnDownBlock2D" or "ResnetDownsampleBlock2D".
      c_in: Channels that come in.
      c_out: Channels of the level.
      halve: Whether the level ends in a halving.
      dtype: Of the convolutions.
      rngs: Keys of the initial weights.
    """

    def __init__(
        self, config: UNetConfig, kind: str, c_in: int, c_out: int, *, halve: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        make = _Maker(config, dtype, rngs)
        widths = [c_in] + [c_out] * (config.layers_per_block - 1)
        self.resnets = nnx.List([make.resnet(c, c_out) for c in widths])
        self.attentions = make.attentions(c_out, len(widths)) if kind == "AttnDownBlock2D" else None
        if not halve:
            self.downsamplers = None
        elif _resamples_by_resnet(kind, config.downsample_type):
            self.downsamplers = nnx.List([make.resnet(c_out, c_out, resample="down")])
        else:
            conv_down = Downsample2D(c_out, padding=config.downsample_padding, dtype=dtype, rngs=rngs)
            self.downsamplers = nnx.List([conv_down])

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
      config: The network's.
      dtype: Of the convolutions.
      rngs: Keys of the initial weights.
    """

    def __init__(self, config: UNetConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        make = _Maker(config, dtype, rngs)
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
      config: The network's.
      kind: "UpBlock2D", "AttnUpBlock2D" or "ResnetUpsampleBlock2D".
      c_prev: Channels that come in from the level below.
      c_skip: Channels of the last picture from the way down (those of the level above, on the way down).
      c_out: Channels of the level.
      double: Whether the level ends in a doubling.
      dtype: Of the convolutions.
      rngs: Keys of the initial weights.
    """

    def __init__(
        self,
        config: UNetConfig,
        kind: str,
        c_prev: int,
        c_skip: int,
        c_out: int,
        *,
        double: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        make = _Maker(config, dtype, rngs)
        widths = up_widths(c_prev, c_skip, c_out, config.layers_per_block)
        self.resnets = nnx.List([make.resnet(a + b, c_out) for a, b in widths])
        self.attentions = make.attentions(c_out, len(widths)) if kind == "AttnUpBlock2D" else None
        if not double:
            self.upsamplers = None
        elif _resamples_by_resnet(kind, config.upsample_type):
            self.upsamplers = nnx.List([make.resnet(c_out, c_out, resample="up")])
        else:
            self.upsamplers = nnx.List([Upsample2D(c_out, dtype=dtype, rngs=rngs)])

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
    if isinstance(layer, ResnetBlock2D):
        return layer(x, emb, next(keys))
    assert isinstance(layer, Downsample2D | Upsample2D)
    return layer(x)


def _sum(x: Array, branch: Array, scale: float) -> Array:
    total = x + branch
    return total if scale == 1 else total / scale
