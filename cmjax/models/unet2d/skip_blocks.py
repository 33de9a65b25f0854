"""Skip blocks: levels that carry a small RGB picture past the network, as in NCSN++, on NHWC pictures.

On the way down the input, halved again and again, is shown to every level; on the way up every level adds to the
output, doubled again and again. Resampling is smooth (`fir`), and every sum is divided by sqrt 2. Attribute names are
those of diffusers' modules, so that names of weights map by rule.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers import Conv, GroupNorm, fir_double, fir_halve
from cmjax.models.unet2d.block_types import skip_groups, skip_up_groups, up_widths
from cmjax.models.unet2d.blocks import Keys, Maker
from cmjax.types import Array

__all__ = ["SkipDownBlock", "SkipUpBlock"]

SCALE = math.sqrt(2)


class SkipDownBlock(nnx.Module):
    """One level on the way down; where it ends in a halving, it also halves the small picture and adds it, projected.

    Args:
      make: makes its layers.
      kind: "SkipDownBlock2D" or "AttnSkipDownBlock2D".
      c_in: channels that come in.
      c_out: channels of the level.
      halve: whether the level ends in a halving.

    References:
      Song et al., Score-Based Generative Modeling through SDEs, 2021, appendix H ("input skip").
    """

    def __init__(self, make: Maker, kind: str, c_in: int, c_out: int, *, halve: bool):
        resnet = functools.partial(make.resnet, scale=SCALE)
        widths = [c_in] + [c_out] * (make.config.layers_per_block - 1)
        self.resnets = nnx.List([resnet(c, c_out, groups=(skip_groups(c), skip_groups(c_out))) for c in widths])
        attends = kind == "AttnSkipDownBlock2D"
        self.attentions = nnx.List([make.attention(c_out, 32, scale=SCALE) for _ in widths]) if attends else None
        groups = (skip_groups(c_out), skip_groups(c_out))
        self.resnet_down = resnet(c_out, c_out, groups=groups, resample="fir_down", shortcut=True) if halve else None
        self.skip_conv = Conv(3, c_out, 1, **make.options) if halve else None

    def __call__(self, x: Array, emb: Array, keys: Keys, picture: Array) -> tuple[Array, list[Array], Array]:
        """Map x f[B, H, W, c_in] to f[B, H / 2, W / 2, c_out].

        Also returns what the way up will be given, and the small picture f[B, H, W, 3] halved.
        """
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True):
            x = resnet(x, emb, next(keys))
            x = x if attention is None else attention(x)
            skips.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = fir_halve(picture)
            x = self.skip_conv(picture) + self.resnet_down(x, emb, next(keys))
            skips.append(x)
        return x, skips, picture


class SkipUpBlock(nnx.Module):
    """One level on the way up; it doubles the small picture, and where it ends in a doubling, adds to it first.

    Args:
      make: makes its layers.
      kind: "SkipUpBlock2D" or "AttnSkipUpBlock2D" (one attention, after all residual blocks).
      c_prev: channels that come in from the level below.
      c_skip: channels of the last picture from the way down (those of the level above, on the way down).
      c_out: channels of the level.
      double: whether the level ends in a doubling.

    References:
      Song et al., Score-Based Generative Modeling through SDEs, 2021, appendix H ("output skip").
    """

    def __init__(self, make: Maker, kind: str, c_prev: int, c_skip: int, c_out: int, *, double: bool):
        resnet = functools.partial(make.resnet, scale=SCALE)
        groups = skip_groups(c_out)
        widths = up_widths(c_prev, c_skip, c_out, make.config.layers_per_block)
        self.resnets = nnx.List([resnet(a + b, c_out, groups=(skip_up_groups(kind, a, b), groups)) for a, b in widths])
        attends = kind == "AttnSkipUpBlock2D"
        self.attentions = nnx.List([make.attention(c_out, 32, scale=SCALE)]) if attends else None
        both = (groups, groups)
        self.resnet_up = resnet(c_out, c_out, groups=both, resample="fir_up", shortcut=True) if double else None
        self.skip_norm = GroupNorm(c_out, groups, eps=make.config.norm_eps) if double else None
        self.skip_conv = Conv(c_out, 3, zero=True, **make.options) if double else None

    def __call__(
        self, x: Array, emb: Array, skips: list[Array], keys: Keys, picture: Array | None
    ) -> tuple[Array, Array | None]:
        """Map x f[B, H, W, c_prev] to f[B, 2 H, 2 W, c_out], taking pictures from the end of `skips`.

        Also maps the small picture f[B, H / 2, W / 2, 3], or None where there is none yet, to f[B, H, W, 3].
        """
        for resnet in self.resnets:
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), emb, next(keys))
        x = x if self.attentions is None else self.attentions[0](x)
        picture = None if picture is None else fir_double(picture)
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            more = self.skip_conv(jax.nn.silu(self.skip_norm(x)))
            picture = more if picture is None else picture + more
            x = self.resnet_up(x, emb, next(keys))
        return x, picture
