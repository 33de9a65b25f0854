"""What a text-conditioned network is told besides x and t."""

from __future__ import annotations

from cmjax._struct import Struct
from cmjax.types import Array

__all__ = ["TextCond"]


class TextCond(Struct):
    """What a text says to a network, as arrays with the batch first; what a network does not read is None.

    Attributes:
      context: f[B, L, D], what cross-attention reads: one row a token.
      pooled: f[B, P], the whole text in one row (Stable Diffusion XL).
      sizes: f32[B, 6], in pixels: original height and width, top and left of the crop, target height and width
        (Stable Diffusion XL); f32[B, 5] in its refiner: original size, crop, aesthetic score.
      guidance: f32[B], the guidance scale for networks that are told it (latent consistency models).
      extra_channels: f[B, h, w, C], appended to the channels of x: a mask and masked latents (inpainting), or the
        latents of a picture (InstructPix2Pix).

    Example:
      >>> import jax.numpy as jnp
      >>> TextCond(jnp.zeros((2, 77, 768)))
      TextCond(context=f32[2, 77, 768], pooled=None, sizes=None, guidance=None, extra_channels=None)

    References:
      Podell et al., SDXL, 2023, section 2.2 (pooled text, sizes); Luo et al., 2023, section 4.2 (guidance).
    """

    context: Array
    pooled: Array | None = None
    sizes: Array | None = None
    guidance: Array | None = None
    extra_channels: Array | None = None
