"""The autoencoder: pictures to latents and back, in flax.nnx, channels last."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.autoencoder_kl.config import AutoencoderConfig
from cmjax.models.layers import Conv, Downsample2D, Dtype, GroupNorm, PixelAttention, ResnetBlock, Upsample2D
from cmjax.models.layers.shapes import check_pictures
from cmjax.types import Array

__all__ = ["Autoencoder"]

_EPS = 1e-6  # of every norm


class _Maker:
    """Makes the layers of one config."""

    def __init__(self, config: AutoencoderConfig, dtype: Dtype, rngs: nnx.Rngs):
        self.config = config
        self.options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}

    def resnets(self, c_in: int, c_out: int, num: int) -> nnx.List:
        c = self.config
        options = {"time_width": None, "groups": c.norm_num_groups, "eps": _EPS, "act": c.act_fn, **self.options}
        return nnx.List([ResnetBlock(c_out if i else c_in, c_out, **options) for i in range(num)])


class _DownBlock(nnx.Module):
    def __init__(self, make: _Maker, c_in: int, c_out: int, *, halve: bool):
        self.resnets = make.resnets(c_in, c_out, make.config.layers_per_block)
        self.downsamplers = nnx.List([Downsample2D(c_out, padding=0, **make.options)]) if halve else None

    def __call__(self, x: Array) -> Array:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class _UpBlock(nnx.Module):
    def __init__(self, make: _Maker, c_in: int, c_out: int, *, double: bool):
        self.resnets = make.resnets(c_in, c_out, make.config.layers_per_block + 1)
        self.upsamplers = nnx.List([Upsample2D(c_out, **make.options)]) if double else None

    def __call__(self, x: Array) -> Array:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class _MidBlock(nnx.Module):
    def __init__(self, make: _Maker):
        c = make.config
        channels = c.block_out_channels[-1]
        self.resnets = make.resnets(channels, channels, 2)
        attention = PixelAttention(channels, head_dim=None, groups=c.norm_num_groups, eps=_EPS, **make.options)
        self.attentions = nnx.List([attention]) if c.mid_block_add_attention else None

    def __call__(self, x: Array) -> Array:
        x = self.resnets[0](x)
        return self.resnets[1](x if self.attentions is None else self.attentions[0](x))


class _Encoder(nnx.Module):
    def __init__(self, make: _Maker):
        c, channels = make.config, make.config.block_out_channels
        last = len(channels) - 1
        self.conv_in = Conv(c.in_channels, channels[0], **make.options)
        self.down_blocks = nnx.List(
            [_DownBlock(make, channels[max(i - 1, 0)], channels[i], halve=i < last) for i in range(len(channels))]
        )
        self.mid_block = _MidBlock(make)
        self.conv_norm_out = GroupNorm(channels[-1], c.norm_num_groups, eps=_EPS)
        self.conv_out = Conv(channels[-1], 2 * c.latent_channels, **make.options)

    def __call__(self, x: Array) -> Array:
        x = self.conv_in(x)
        for down in self.down_blocks:
            x = down(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nnx.Module):
    def __init__(self, make: _Maker):
        c, rising = make.config, make.config.block_out_channels[::-1]
        last = len(rising) - 1
        self.conv_in = Conv(c.latent_channels, rising[0], **make.options)
        self.mid_block = _MidBlock(make)
        self.up_blocks = nnx.List(
            [_UpBlock(make, rising[max(i - 1, 0)], rising[i], double=i < last) for i in range(len(rising))]
        )
        self.conv_norm_out = GroupNorm(rising[-1], c.norm_num_groups, eps=_EPS)
        self.conv_out = Conv(rising[-1], c.out_channels, **make.options)

    def __call__(self, z: Array) -> Array:
        x = self.mid_block(self.conv_in(z))
        for up in self.up_blocks:
            x = up(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
    """Maps pictures in [-1, 1] to a normal distribution of latents, and latents to pictures.

    It computes what diffusers' `AutoencoderKL` computes, with channels last. Latents here are as the network has them:
    a diffusion model sees them times `config.scaling_factor`.

    Args:
      config: what to build.
      rngs: keys of the initial weights.
      dtype: of convolutions and matrix products; norms and softmax are float32.

    Example:
      >>> config = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4,
      ...     down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
      >>> autoencoder = Autoencoder(config, rngs=nnx.Rngs(0))
      >>> mean, log_variance = autoencoder.encode(jnp.ones((1, 8, 8, 3)))
      >>> mean.shape, autoencoder.decode(mean).shape
      ((1, 4, 4, 4), (1, 8, 8, 3))

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, section 3.1.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        make, latents = _Maker(config, dtype, rngs), config.latent_channels
        self.encoder = _Encoder(make)
        self.quant_conv = Conv(2 * latents, 2 * latents, 1, **make.options) if config.use_quant_conv else None
        self.post_quant_conv = Conv(latents, latents, 1, **make.options) if config.use_post_quant_conv else None
        self.decoder = _Decoder(make)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Encode pictures.

        Args:
          x: f[B, H, W, in_channels] in [-1, 1], with H and W multiples of `config.downsampling`.

        Returns:
          Mean and logarithm of the variance of the latents, f32[B, H', W', latent_channels] each; the second lies in
          [-30, 20].

        Raises:
          ValueError: x has another shape.
        """
        check_pictures("x", x, self.config.in_channels, self.config.downsampling)
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        mean, log_variance = jnp.split(f32(moments), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: Array) -> Array:
        """Decode latents f[B, H', W', latent_channels] to pictures f[B, H, W, out_channels], in the dtype of z.

        Raises:
          ValueError: z has another shape.
        """
        check_pictures("z", z, self.config.latent_channels)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z)).astype(z.dtype)

    def __call__(self, x: Array) -> Array:
        """Encode pictures to their means, and decode these: f[B, H, W, C]."""
        return self.decode(self.encode(x)[0])
