"""The tiny autoencoder: convolutions alone, without norms and attention, in flax.nnx, channels last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.autoencoder_tiny.config import AutoencoderTinyConfig
from cmjax.models.layers import Conv, Dtype, activation
from cmjax.models.layers.shapes import check_pictures
from cmjax.types import Array

__all__ = ["AutoencoderTiny"]

_LATENTS_END = 3.0  # the decoder bends latents into (-3, 3)


class _Activation(nnx.Module):
    """An activation, which files count as a layer."""

    def __init__(self, name: str):
        self.act = activation(name)

    def __call__(self, x: Array) -> Array:
        return self.act(x)


class _Double(nnx.Module):
    """Marks that the next convolution doubles the picture; files count it as a layer too."""


class _Block(nnx.Module):
    """relu(x + convolutions of x)."""

    def __init__(self, channels: int, act: str, options: dict[str, Any]):
        def conv() -> Conv:
            return Conv(channels, channels, **options)

        self.conv = nnx.List([conv(), _Activation(act), conv(), _Activation(act), conv()])

    def __call__(self, x: Array) -> Array:
        h = x
        for layer in self.conv:
            h = layer(h)
        return jax.nn.relu(h + x)


class _Layers(nnx.Module):
    """Layers one after the other."""

    def __init__(self, layers: Iterable[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: Array) -> Array:
        doubles = False
        for layer in self.layers:
            if isinstance(layer, Conv) and doubles:
                x = layer.doubled(x)
            elif not isinstance(layer, _Double):
                x = layer(x)
            doubles = isinstance(layer, _Double)
        return x


def _encoder(c: AutoencoderTinyConfig, options: dict[str, Any]) -> _Layers:
    channels = c.encoder_block_out_channels[0]
    layers: list[nnx.Module] = []
    for i, num in enumerate(c.num_encoder_blocks):
        conv = (
            Conv(channels, channels, strides=2, bias=False, **options)
            if i
            else Conv(c.in_channels, channels, **options)
        )
        layers += [conv, *(_Block(channels, c.act_fn, options) for _ in range(num))]
    return _Layers([*layers, Conv(channels, c.latent_channels, **options)])


def _decoder(c: AutoencoderTinyConfig, options: dict[str, Any]) -> _Layers:
    channels = c.decoder_block_out_channels[0]
    layers: list[nnx.Module] = [Conv(c.latent_channels, channels, **options), _Activation(c.act_fn)]
    for i, num in enumerate(c.num_decoder_blocks):
        layers += [_Block(channels, c.act_fn, options) for _ in range(num)]
        if i + 1 < len(c.num_decoder_blocks):
            layers += [_Double(), Conv(channels, channels, bias=False, **options)]
    return _Layers([*layers, Conv(channels, c.out_channels, **options)])


class AutoencoderTiny(nnx.Module):
    """Maps pictures in [-1, 1] to latents and back, at a small part of the cost of the `Autoencoder` that it imitates.

    It computes what `encode` and `decode` of diffusers' `AutoencoderTiny` compute, with channels last. It is trained on
    the latents that a diffusion model sees, so that `config.scaling_factor` is 1 in published files.

    Args:
      config: what to build.
      rngs: keys of the initial weights.
      dtype: of the convolutions.

    Example:
      >>> config = AutoencoderTinyConfig(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
      ...     encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
      >>> autoencoder = AutoencoderTiny(config, rngs=nnx.Rngs(0))
      >>> latents, log_variance = autoencoder.encode(jnp.ones((1, 8, 8, 3)))
      >>> latents.shape, log_variance, autoencoder.decode(latents).shape
      ((1, 4, 4, 4), None, (1, 8, 8, 3))

    References:
      Bohan, Tiny AutoEncoder for Stable Diffusion, 2023 (https://github.com/madebyollin/taesd).
    """

    def __init__(self, config: AutoencoderTinyConfig, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.encoder = _encoder(config, options)
        self.decoder = _decoder(config, options)

    def encode(self, x: Array) -> tuple[Array, None]:
        """Encode pictures.

        Args:
          x: f[B, H, W, in_channels] in [-1, 1], with H and W multiples of `config.downsampling`.

        Returns:
          The latents, f32[B, H', W', latent_channels], and None: they have no variance.

        Raises:
          ValueError: x has another shape.
        """
        check_pictures("x", x, self.config.in_channels, self.config.downsampling)
        return f32(self.encoder((x + 1) / 2)), None

    def decode(self, z: Array) -> Array:
        """Decode latents f[B, H', W', latent_channels] to pictures f[B, H, W, out_channels], in the dtype of z.

        Raises:
          ValueError: z has another shape.
        """
        check_pictures("z", z, self.config.latent_channels)
        bent = _LATENTS_END * jnp.tanh(f32(z) / _LATENTS_END)
        return (2 * f32(self.decoder(bent)) - 1).astype(z.dtype)

    def __call__(self, x: Array) -> Array:
        """Encode pictures and decode their latents: f[B, H, W, C].

        Differs from diffusers, which rounds the latents to bytes in between.
        """
        return self.decode(self.encode(x)[0])
