"""From pictures to the latents that a diffusion network sees, and back: an autoencoder with its scale."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, floating, whole
from cmjax._random import has_key_per_image, noise
from cmjax._struct import Struct, static
from cmjax.models.layers.shapes import check_pictures
from cmjax.models.network import Network
from cmjax.text_to_image.tiles import Coding, in_tiles
from cmjax.types import Array, Key

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["LatentCoder", "compute_dtype"]


def compute_dtype(config: Any, dtype: DTypeLike) -> DTypeLike:
    """Choose the dtype that an autoencoder computes in, when a model is put together.

    Some autoencoders leave the range of float16 (Stable Diffusion XL's: its pictures become NaN), and say so by
    `force_upcast`. Those compute in float32 where float16 was asked for; bfloat16 has the range, and stays. diffusers
    assumes `force_upcast` where a file says nothing, as those of Stable Diffusion 1 and 2 do, and so does this.

    Args:
      config: of the autoencoder.
      dtype: what was asked for.

    Returns:
      The dtype to assemble it with.

    Example:
      >>> from cmjax.models.autoencoder_kl import AutoencoderConfig
      >>> compute_dtype(AutoencoderConfig(force_upcast=True), "float16"), compute_dtype(AutoencoderConfig(), "bfloat16")
      ('float32', 'bfloat16')
    """
    return "float32" if config.force_upcast and jnp.dtype(dtype) == jnp.float16 else dtype


class LatentCoder(Struct):
    """An autoencoder between pictures and the latents that a diffusion network sees, as a pytree.

    With m the autoencoder's `latents_mean` (else its `shift_factor`, else 0), s its `latents_std` (else 1) and c its
    `scaling_factor`, a diffusion network sees (z - m) c / s for latents z.

    Two options, which `replace` changes, save memory. Each is a part of the program, so that a change compiles anew:

    - `one_by_one` codes one picture of a batch after the other: the same numbers, and the memory of one picture.
    - `tile` codes pictures with more latents a side than this in overlapping tiles, and fades one into the next over a
      quarter of a tile. A tile's norms and attention see nothing of the others, so colours can differ from those of
      the whole picture. Take the size that the network is for, such as 64, or a larger one.

    Beside weights and pictures, Stable Diffusion's autoencoder in float32 takes 0.75 GiB to decode one picture of 512
    pixels a side, and 3 GiB for one of 1024 (XLA's own count, of the program for a CPU). A batch takes that for each
    picture, or once with `one_by_one`. In tiles of 64 latents, a picture of any size takes about as much as one of 512
    pixels. A tiny autoencoder takes a quarter: 0.2 and 0.75 GiB.

    Attributes:
      network: the autoencoder: an `Autoencoder` or `AutoencoderTiny`, wrapped by `from_nnx`.
      tile: latents a side of a tile, a multiple of 4; None for whole pictures.
      one_by_one: whether one picture is coded after the other.

    Example:
      >>> from flax import nnx
      >>> from cmjax.models import from_nnx
      >>> from cmjax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
      >>> config = AutoencoderTinyConfig(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
      ...     encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
      >>> coder = LatentCoder(from_nnx(AutoencoderTiny(config, rngs=nnx.Rngs(0))))
      >>> latents = coder.encode(jnp.zeros((1, 16, 16, 3)))
      >>> latents.shape, coder.replace(tile=4).decode(latents).shape
      ((1, 8, 8, 4), (1, 16, 16, 3))

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, section 3.1 and appendix G.
    """

    network: Network
    tile: int | None = static(default=None)
    one_by_one: bool = static(default=False)

    @property
    def config(self) -> Any:
        """The config of the autoencoder."""
        return self.network.config

    @property
    def downsampling(self) -> int:
        """Pixels of a picture for one of its latents, along each side."""
        return self.config.downsampling

    @property
    def latent_channels(self) -> int:
        """Channels of latents."""
        return self.config.latent_channels

    def encode(self, images: Array, key: Key | None = None) -> Array:
        """Code pictures as latents.

        Args:
          images: f[B, H, W, 3] in [-1, 1], with H and W multiples of `downsampling`.
          key: None for the mean of the latents; one key, or one for each image, to draw them. An `AutoencoderTiny` has
            no distribution to draw from, so that a key changes nothing.

        Returns:
          Latents as the diffusion network sees them, f32[B, H / downsampling, W / downsampling, latent_channels].

        Raises:
          TypeError: images are no floats, key is no key, or the weights are abstract.
          ValueError: images have another shape, there is not one key for each, or `tile` is not a multiple of 4.
        """
        if key is not None:
            has_key_per_image(key)  # refuses what is no key
        return _encode(self, self._pictures(images), key)

    def encode_distribution(self, images: Array) -> tuple[Array, Array]:
        """Code pictures as the distributions that their latents are drawn from.

        Args:
          images: as for `encode`.

        Returns:
          Mean and standard deviation of the latents as the diffusion network sees them, f32[B, h, w, latent_channels]
          each: mean + deviation · z is a sample, for z from N(0, 1). An `AutoencoderTiny` has a deviation of 0.

        Raises:
          TypeError: as for `encode`.
          ValueError: as for `encode`.
        """
        return _encode_distribution(self, self._pictures(images))

    def _pictures(self, images: Array) -> Array:
        images = floating("images", images)
        check_pictures("images", images, self.config.in_channels, self.downsampling)
        self._check()
        return images

    def decode(self, latents: Array) -> Array:
        """Code latents as pictures.

        Args:
          latents: f[B, h, w, latent_channels], as the diffusion network sees them.

        Returns:
          Pictures, f32[B, h downsampling, w downsampling, 3]. They are meant to lie in [-1, 1], but are not clipped.

        Raises:
          TypeError: latents are no floats, or the weights are abstract.
          ValueError: latents have another shape, or `tile` is not a multiple of 4.
        """
        latents = floating("latents", latents, hint="")
        check_pictures("latents", latents, self.latent_channels)
        self._check()
        return _decode(self, latents)

    def _check(self) -> None:
        self.network.refuse_abstract()
        if self.tile is not None and whole("tile", self.tile, 4) % 4:
            raise ValueError(f"tile must be a multiple of 4, since tiles overlap by a quarter, got {self.tile}.")

    def _affine(self) -> tuple[Any, Any]:
        """The m and c / s of the class's docstring."""
        c = self.config
        mean, std = getattr(c, "latents_mean", None), getattr(c, "latents_std", None)
        centre = (c.shift_factor or 0.0) if mean is None else mean
        return np.float32(centre), np.float32(c.scaling_factor / np.asarray(1.0 if std is None else std))

    def _code(self, code: Coding, x: Array, sides: tuple[int, int]) -> Any:
        """Apply a coding of pictures by the options; `sides` of a latent are (pixels, 1) or (1, pixels)."""
        if self.tile is not None:
            code = partial(in_tiles, code, sides=(self.tile * sides[0], self.tile * sides[1]))
        if not self.one_by_one or x.shape[0] == 1:
            return code(x)
        return jax.lax.map(lambda one: jax.tree.map(lambda y: y[0], code(one[None])), x)


@jax.jit
def _encode(coder: LatentCoder, images: Array, key: Key | None) -> Array:
    latents, log_variance = coder._code(coder.network.module.encode, images, (coder.downsampling, 1))
    if key is not None and log_variance is not None:
        latents = latents + jnp.exp(0.5 * log_variance) * noise(key, latents.shape)
    centre, gain = coder._affine()
    return (latents - centre) * gain


@jax.jit
def _encode_distribution(coder: LatentCoder, images: Array) -> tuple[Array, Array]:
    latents, log_variance = coder._code(coder.network.module.encode, images, (coder.downsampling, 1))
    centre, gain = coder._affine()
    deviation = jnp.zeros_like(latents) if log_variance is None else jnp.exp(0.5 * log_variance) * gain
    return (latents - centre) * gain, deviation


@jax.jit
def _decode(coder: LatentCoder, latents: Array) -> Array:
    centre, gain = coder._affine()
    return coder._code(coder.network.module.decode, f32(latents) / gain + centre, (1, coder.downsampling))
