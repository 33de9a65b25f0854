"""The network: a UNet that attends to a context, in flax.nnx on NHWC latents."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.layers import (
    Conv,
    Downsample2D,
    Dtype,
    GroupNorm,
    ResnetBlock,
    TimestepEmbedding,
    Transformer2D,
    Upsample2D,
    activation,
    guidance_embedding,
    positional,
)
from cmjax.models.text_cond import TextCond
from cmjax.models.unet2d_condition.conditions import checked
from cmjax.models.unet2d_condition.config import UNetConditionConfig
from cmjax.types import Array, Key

__all__ = ["UNetCondition"]


class _Maker:
    """Makes the layers of one config."""

    def __init__(self, config: UNetConditionConfig, dtype: Dtype, rngs: nnx.Rngs):
        self.config = config
        self.options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}

    def resnet(self, c_in: int, c_out: int, **options: Any) -> ResnetBlock:
        c = self.config
        return ResnetBlock(
            c_in,
            c_out,
            time_width=c.time_width,
            groups=c.norm_num_groups,
            eps=c.norm_eps,
            act=c.act_fn,
            **self.options,
            **options,
        )

    def transformer(self, level: int, depth: int, *, only_context: bool = False) -> Transformer2D:
        c = self.config
        return Transformer2D(
            c.block_out_channels[level],
            heads=c.heads(level),
            context_width=c.cross_attention_dim,
            blocks=depth,
            groups=c.norm_num_groups,
            linear=c.use_linear_projection,
            only_context=only_context,
            **self.options,
        )

    def transformers(self, level: int, depths: tuple[int, ...]) -> nnx.List | None:
        only = self.config.attends_to_context_only(level)
        return nnx.List([self.transformer(level, depth, only_context=only) for depth in depths]) if depths else None


class _DownBlock(nnx.Module):
    def __init__(self, make: _Maker, level: int):
        c = make.config
        channels = c.block_out_channels
        c_out, num = channels[level], c.layers(level)
        widths = [channels[max(level - 1, 0)]] + [c_out] * (num - 1)
        self.resnets = nnx.List([make.resnet(width, c_out) for width in widths])
        self.attentions = make.transformers(level, c.down_depths(level))
        last = level == len(channels) - 1
        self.downsamplers = (
            None if last else nnx.List([Downsample2D(c_out, padding=c.downsample_padding, **make.options)])
        )

    def __call__(self, x: Array, emb: Array, context: Array) -> tuple[Array, list[Array]]:
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True):
            x = resnet(x, emb)
            x = x if attention is None else attention(x, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class _MidBlock(nnx.Module):
    """A residual block; or two with a transformer between them."""

    def __init__(self, make: _Maker, kind: str):
        c = make.config
        channels, level = c.block_out_channels[-1], len(c.block_out_channels) - 1
        attends = kind == "UNetMidBlock2DCrossAttn"
        scale = c.mid_block_scale_factor
        self.resnets = nnx.List([make.resnet(channels, channels, scale=scale) for _ in range(2 if attends else 1)])
        self.attentions = nnx.List([make.transformer(level, c.mid_depth)]) if attends else None

    def __call__(self, x: Array, emb: Array, context: Array) -> Array:
        x = self.resnets[0](x, emb)
        return x if self.attentions is None else self.resnets[1](self.attentions[0](x, context), emb)


class _UpBlock(nnx.Module):
    """One level on the way up; `level` counts from the finest."""

    def __init__(self, make: _Maker, level: int):
        c = make.config
        channels, last = c.block_out_channels, len(c.block_out_channels) - 1
        c_out, num = channels[level], c.layers(level) + 1
        before = [channels[min(level + 1, last)]] + [c_out] * (num - 1)
        skips = [c_out] * (num - 1) + [channels[max(level - 1, 0)]]
        self.resnets = nnx.List([make.resnet(a + b, c_out) for a, b in zip(before, skips, strict=True)])
        self.attentions = make.transformers(level, c.up_depths(level))
        self.upsamplers = nnx.List([Upsample2D(c_out, **make.options)]) if level else None

    def __call__(self, x: Array, emb: Array, context: Array, skips: list[Array]) -> Array:
        for resnet, attention in zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), emb)
            x = x if attention is None else attention(x, context)
        return x if self.upsamplers is None else self.upsamplers[0](x, skips[-1].shape[1:3])


class UNetCondition(nnx.Module):
    """A UNet whose pixels attend to a context, such as a text; `unet(x, t, context)` is a `ModelFn`.

    It computes what diffusers' `UNet2DConditionModel` computes, with channels last. A new network returns 0, since the
    ends of its branches begin as zeros.

    Args:
      config: what to build.
      rngs: keys of the initial weights.
      dtype: of convolutions and matrix products. Weights are stored in float32; norms, softmax and the time embedding
        are computed in float32.

    Example:
      >>> import jax
      >>> config = UNetConditionConfig(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
      ...     down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
      ...     attention_head_dim=2, cross_attention_dim=6)
      >>> unet = UNetCondition(config, rngs=nnx.Rngs(0))
      >>> call = jax.jit(lambda unet, *inputs: unet(*inputs))
      >>> call(unet, jnp.ones((2, 8, 8, 4)), 3.0, jnp.ones((2, 5, 6))).shape
      (2, 8, 8, 4)

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Podell et al., SDXL, 2023,
      section 2.2 (pooled text, sizes); Luo et al., Latent Consistency Models, 2023, section 4.2 (guidance).
    """

    def __init__(self, config: UNetConditionConfig, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        channels = config.block_out_channels
        levels = range(len(channels))
        make = _Maker(config, dtype, rngs)
        self.conv_in = Conv(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(
            channels[0], config.time_width, act=config.act_fn, also=config.time_cond_proj_dim, rngs=rngs
        )
        width = config.projection_class_embeddings_input_dim if config.addition_embed_type == "text_time" else None
        self.add_embedding = None if width is None else TimestepEmbedding(width, config.time_width, rngs=rngs)
        self.down_blocks = nnx.List([_DownBlock(make, level) for level in levels])
        self.mid_block = None if config.mid_block_type is None else _MidBlock(make, config.mid_block_type)
        self.up_blocks = nnx.List([_UpBlock(make, level) for level in reversed(levels)])
        self.conv_norm_out = GroupNorm(channels[0], config.norm_num_groups, eps=config.norm_eps)
        self.conv_out = Conv(channels[0], config.out_channels, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, t: Array, cond: TextCond | Array | None = None, *, key: Key | None = None) -> Array:
        """Compute the network's output.

        Args:
          x: f[B, H, W, in_channels]; or fewer channels, where cond has the others.
          t: the timesteps, f[] or f[B].
          cond: what the text says; a context f[B, N, cross_attention_dim] alone will do for networks that read no
            more. A network with an `addition_embed_type` reads `pooled` and `sizes` too, one with a
            `time_cond_proj_dim` the `guidance` scale (classifier-free guidance's: one is no guidance), and one with
            more `in_channels` than x the `extra_channels`.
          key: has no effect: these networks have no dropout.

        Returns:
          f[B, H, W, out_channels] in the dtype of x.

        Raises:
          ValueError: a shape does not fit, something that the network reads is missing, or a guidance scale or channels
            are given to a network that does not read them.
        """
        config, dtype = self.config, x.dtype
        x, cond = checked(config, x, t := jnp.asarray(t), cond)
        emb, context = self._embedded(jnp.broadcast_to(t, x.shape[:1]), cond), cond.context
        h = self.conv_in(2 * x - 1 if config.center_input_sample else x)
        skips = [h]
        for down in self.down_blocks:
            h, more = down(h, emb, context)
            skips += more
        if self.mid_block is not None:
            h = self.mid_block(h, emb, context)
        for up in self.up_blocks:
            h = up(h, emb, context, skips)
        return self.conv_out(activation(config.act_fn)(self.conv_norm_out(h))).astype(dtype)

    def _embedded(self, t: Array, cond: TextCond) -> Array:
        """What all residual blocks are told, f32[B, time_width]: the time, and what is added to it."""
        config = self.config
        waves = functools.partial(positional, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        guidance = None
        if config.time_cond_proj_dim is not None:
            assert cond.guidance is not None
            scale = jnp.broadcast_to(f32(cond.guidance), t.shape)
            guidance = guidance_embedding(scale - 1, config.time_cond_proj_dim)  # w = 0 is no guidance
        emb = self.time_embedding(waves(t, config.block_out_channels[0]), guidance)
        if self.add_embedding is None:
            return emb
        assert cond.pooled is not None and cond.sizes is not None and config.addition_time_embed_dim is not None
        sizes = waves(cond.sizes.reshape(-1), config.addition_time_embed_dim).reshape(len(t), -1)
        return emb + self.add_embedding(jnp.concatenate([f32(cond.pooled), sizes], axis=-1))
