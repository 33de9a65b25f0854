"""K blocks: levels whose norms are scaled and shifted by the time, on NHWC pictures.

They resample by a smooth filter (`fir`, with reflected edges) that has no weights. Attribute names are those of
diffusers' modules, so that names of weights map by rule.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers import AdaGroupNorm, Block, Conv, Dtype, activation, again, dropout, fir_double, fir_halve
from cmjax.models.unet2d.block_types import k_groups
from cmjax.models.unet2d.blocks import Keys, Maker
from cmjax.models.unet2d.config import UNetConfig
from cmjax.types import Array, Key

__all__ = ["KDownBlock", "KUpBlock"]


class KResnetBlock2D(Block):
    """A residual block: x + conv(act(norm(conv(act(norm(x, time))), time))).

    Args:
      config: gives activation, epsilon and dropout.
      c_in: channels of x.
      c_out: channels of the result; where they differ, x passes through a 1x1 convolution without a bias.
      groups: groups of the first and of the second norm.
      dtype: of the convolutions; norms, activations and time stay float32.
      rngs: keys of the initial weights.
    """

    def __init__(
        self, config: UNetConfig, c_in: int, c_out: int, *, groups: tuple[int, int], dtype: Dtype, rngs: nnx.Rngs
    ):
        norm = functools.partial(AdaGroupNorm, time_width=config.time_width, eps=config.norm_eps, rngs=rngs)
        self.norm1 = norm(c_in, groups[0])
        self.conv1 = Conv(c_in, c_out, dtype=dtype, rngs=rngs)
        self.norm2 = norm(c_out, groups[1])
        self.conv2 = Conv(c_out, c_out, zero=True, dtype=dtype, rngs=rngs)
        self.conv_shortcut = Conv(c_in, c_out, 1, bias=False, dtype=dtype, rngs=rngs) if c_in != c_out else None
        self.act = activation(config.act_fn)
        self.dropout = config.dropout

    @again
    def __call__(self, x: Array, emb: Array, key: Key | None = None) -> Array:
        """Map x f[B, H, W, c_in] and the time embedding f32[B, E] to f[B, H, W, c_out]."""
        h = self.conv1(self.act(self.norm1(x, emb)))
        h = self.conv2(dropout(self.act(self.norm2(h, emb)), self.dropout, key))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class KDownBlock(nnx.Module):
    """One level on the way down: residual blocks, then a halving (except at the last level).

    Args:
      make: makes its layers.
      kind: "KDownBlock2D".
      c_in: channels that come in.
      c_out: channels of the level.
      halve: whether the level ends in a halving.
    """

    def __init__(self, make: Maker, kind: str, c_in: int, c_out: int, *, halve: bool):
        del kind
        resnet = functools.partial(KResnetBlock2D, make.config, **make.options)
        widths = [c_in] + [c_out] * (make.config.layers_per_block - 1)
        self.resnets = nnx.List([resnet(c, c_out, groups=(k_groups(c), k_groups(c_out))) for c in widths])
        self.halve = halve

    def __call__(self, x: Array, emb: Array, keys: Keys) -> tuple[Array, list[Array]]:
        """Map x f[B, H, W, c_in] to f[B, H / 2, W / 2, c_out]; also returns what the way up will be given."""
        skips = []
        for resnet in self.resnets:
            x = resnet(x, emb, next(keys))
            skips.append(x)
        return fir_halve(x, "reflect") if self.halve else x, skips


class KUpBlock(nnx.Module):
    """One level on the way up: residual blocks; the first also gets the level's last picture from the way down.

    Args:
      make: makes its layers.
      kind: "KUpBlock2D".
      c_prev: channels that come in from the level below: c_out.
      c_skip: channels of the level above, which the last residual block makes.
      c_out: channels of the level.
      double: whether the level ends in a doubling.
    """

    def __init__(self, make: Maker, kind: str, c_prev: int, c_skip: int, c_out: int, *, double: bool):
        del kind, c_prev
        between = [c_out] * (make.config.layers_per_block - 1)
        resnet = functools.partial(KResnetBlock2D, make.config, **make.options)
        self.resnets = nnx.List(
            [
                resnet(a, b, groups=(k_groups(a), k_groups(c_out)))
                for a, b in zip([2 * c_out, *between], [*between, c_skip], strict=True)
            ]
        )
        self.double = double

    def __call__(self, x: Array, emb: Array, skips: list[Array], keys: Keys) -> Array:
        """Map x f[B, H, W, c_out] to f[B, 2 H, 2 W, c_skip], taking the level's pictures from the end of `skips`."""
        last, *_ = [skips.pop() for _ in self.resnets]
        x = jnp.concatenate([x, last], axis=-1)
        for resnet in self.resnets:
            x = resnet(x, emb, next(keys))
        return fir_double(x, "reflect") if self.double else x
