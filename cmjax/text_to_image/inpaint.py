"""Filling holes in pictures: with a network that is told of the hole, and with any network by an edit."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax import editing
from cmjax._numerics import as_array, f32, floating
from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.types import Array

__all__ = ["inpaint_edit", "inpainting"]


def inpainting(pipe: TextToImage, cond: TextCond, images: ArrayLike, holes: ArrayLike) -> TextCond:
    """Tell an inpainting network of a hole: give the condition a mask and the latents of the picture around it.

    Such a network reads 9 channels: noisy latents, m and the latents of (1 - m) x, with x the picture and m 1 in the
    hole. Each latent takes m from the pixel at its top left (nearest sampling), as the networks were trained.

    Args:
      pipe: the text-to-image model.
      cond: from `pipe.encode`, for B pictures.
      images: x, f[B, H, W, 3] in [-1, 1], or f[1, H, W, 3] for all; the values in the hole do not matter.
      holes: bool[B, H, W], or bool[1, H, W] for all; True where pixels are to be drawn.

    Returns:
      The condition with `extra_channels`, f32[B, h, w, 5], for `draw` and `redraw` at the size of the pictures.

    Raises:
      TypeError: images are no floats, or holes are not boolean.
      ValueError: the network reads another number of channels, or a shape does not fit.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> inpainting(pipe, pipe.encode(pipe.tokenize(["a"])), jnp.zeros((1, 64, 64, 3)), jnp.ones((1, 64, 64), bool))
      Traceback (most recent call last):
      ValueError: the network must read 9 channels to be told of a hole, but it reads 4: give draw the edit of...

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, section 4.5.
    """
    channels, wanted = pipe.unet.config.in_channels, 2 * pipe.autoencoder.latent_channels + 1
    if channels != wanted:
        raise ValueError(
            f"the network must read {wanted} channels to be told of a hole, but it reads {channels}: give draw the "
            "edit of inpaint_edit(pipe, images, holes), which works with any network."
        )
    images, holes = _checked(pipe, images, holes)
    around = pipe.autoencoder.encode(jnp.where(holes[..., None], 0.0, images))
    factor = pipe.autoencoder.downsampling
    mask = f32(holes[:, ::factor, ::factor, None])
    batch = cond.context.shape[0]
    if not {len(mask), len(around)} <= {1, batch}:
        raise ValueError(f"images and holes must be one or {batch}, as many as cond says, got {len(around)}.")
    extra = jnp.concatenate([jnp.broadcast_to(part, (batch, *part.shape[1:])) for part in (mask, around)], axis=-1)
    return cond.replace(extra_channels=extra)


def inpaint_edit(pipe: TextToImage, images: ArrayLike, holes: ArrayLike) -> editing.Inpaint:
    """Make the edit that fills a hole with any network: the latents outside of the hole are put back at every step.

    This is `editing.inpaint` of `pipe.autoencoder.encode(images)`, where a latent is free if any of its pixels is in
    the hole. The autoencoder decodes latents together, so that pixels around the hole may change a little. The pixels
    in the hole act on the latents at its border: fill them beforehand with something like their surroundings.

    Args:
      pipe: the text-to-image model.
      images: f[B, H, W, 3] in [-1, 1], or f[1, H, W, 3] for all.
      holes: bool[B, H, W], or bool[1, H, W] for all; True where pixels are to be drawn.

    Returns:
      The edit, for `draw` at the size of the pictures, and for `redraw`.

    Raises:
      TypeError: images are no floats, or holes are not boolean.
      ValueError: a shape does not fit.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> hole = jnp.zeros((1, 64, 64), bool).at[:, 24:40, 24:40].set(True)
      >>> edit = inpaint_edit(pipe, jnp.zeros((1, 64, 64, 3)), hole)
      >>> edit.reference.shape
      (1, 16, 16, 4)

    Differs from diffusers: its pipelines sample the mask at one pixel a latent, and put back latents that are noised to
    the level of each step, with one noise for all, in place of clean estimates.

    References:
      Song et al., Consistency Models, 2023, algorithm 4.
    """
    images, holes = _checked(pipe, images, holes)
    batch, height, width = holes.shape
    factor = pipe.autoencoder.downsampling
    free = holes.reshape(batch, height // factor, factor, width // factor, factor).any((2, 4))
    latents = pipe.autoencoder.encode(images)
    rows = max(batch, len(latents))
    latents = jnp.broadcast_to(latents, (rows, *latents.shape[1:]))
    return editing.inpaint(latents, free[..., None], bounds=None)


def _checked(pipe: TextToImage, images: ArrayLike, holes: ArrayLike) -> tuple[Array, Array]:
    """Refuse pictures and holes that do not fit each other, or have no latents."""
    images, holes = f32(floating("images", images)), as_array("holes", holes, "a boolean array")
    if holes.dtype != jnp.bool:
        raise TypeError(f"holes must be boolean, True where pixels are to be drawn, got {holes.dtype}: write > 0.5.")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape (batch, height, width, 3), got {images.shape}.")
    alike = holes.ndim == 3 and (len(holes) == len(images) or 1 in (len(holes), len(images)))
    if not alike or holes.shape[1:] != images.shape[1:3]:
        raise ValueError(
            f"holes must have shape (batch, height, width) for images of shape {images.shape}, got {holes.shape}."
        )
    batch, height, width, _ = images.shape
    pipe.latent_shape(batch, (height, width))
    return images, holes
