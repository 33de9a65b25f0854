"""What is compiled for a batch of edits: the walk of pictures, or, for models of texts, of their latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax._random import image_keys, split
from cmjax.cli.edit.tasks import Task
from cmjax.cli.sampler_path import SamplerSetup
from cmjax.drawing import Batches, BatchPlan, compile_batches
from cmjax.text_to_image import guided, inpainting

__all__ = ["compile_edits"]


def compile_edits(
    setup: SamplerSetup,
    task: Task,
    cond_of: Callable[[np.ndarray], Any],
    batch: BatchPlan,
    shape: tuple[int, int, int],
    *,
    num: int,
    seed: int,
    is_text: bool = False,
) -> Batches:
    """Compile the walk of a batch. Variant v of any picture has the seed's key folded with v, whatever is beside it.

    Args:
      setup: the model and its path.
      task: what is done to the pictures.
      cond_of: from numbers of pictures, i[B], to their condition.
      batch: how many at once, and on which devices.
      shape: of the pictures, (H, W, C).
      num: variants of each picture.
      seed: which variants.
      is_text: whether the model is one of texts, and the condition a `Prompt`.
    """

    def walk(model, shared, rows):
        (state, key), (variants, data, cond) = shared, rows
        k_x, k_z = split(image_keys(key, variants), 2)
        if is_text:
            return _walk_latents(model, state, task, data, cond, k_x, k_z)
        edit = None if task.edit is None else task.edit(*data)
        x = task.start(state, edit, data, k_x, (len(variants), *shape))
        return cmjax.sample(model, state, x, k_z, cond, edit=edit)

    def rows(indices: np.ndarray) -> Any:
        pictures, variants = indices // num % len(task.data[0]), indices % num
        return variants, tuple(part[pictures] for part in task.data), cond_of(pictures)

    return compile_batches(walk, setup.model, (setup.state, jax.random.key(seed)), batch.batch, rows, batch.devices)


def _walk_latents(pipe: Any, state: Any, task: Task, data: Any, prompt: Any, k_x: Any, k_z: Any) -> Any:
    """Edit latents, where all that touches a hole is unknown; known pixels are put back, as they were."""
    pixels, *masks = data
    cond, negative = prompt.encoded(pipe, pixels.shape[1:3])
    if masks and pipe.unet.config.in_channels != pipe.autoencoder.latent_channels:
        return _told_of_holes(pipe, state, pixels, masks[0], (cond, prompt.guidance, negative), k_x, k_z)
    known = (pipe.autoencoder.encode(pixels), *(_coarse(mask, pipe.autoencoder.downsampling) for mask in masks))
    edit = None if task.edit is None else task.edit(*known, bounds=None)
    x = task.start(state, edit, known, k_x, known[0].shape)
    latents = cmjax.sample(guided(pipe, cond, prompt.guidance, negative), state, x, k_z, cond, edit=edit)
    images = pipe.autoencoder.decode(latents)
    for mask in masks:
        images = _put_back(pixels, mask, images)
    return images


def _told_of_holes(pipe: Any, state: Any, pixels: Any, hole: Any, asked: Any, k_x: Any, k_z: Any) -> Any:
    """Draw with a network that is told of the hole and of what is around it."""
    cond, guidance, negative = asked
    cond = inpainting(pipe, cond, pixels, hole[..., 0] > 0.5)
    negative = None if negative is None else negative.replace(extra_channels=cond.extra_channels)
    batch, height, width, _ = pixels.shape
    x = cmjax.prior(state, k_x, pipe.latent_shape(batch, (height, width)))
    latents = cmjax.sample(guided(pipe, cond, guidance, negative), state, x, k_z, cond)
    return _put_back(pixels, hole, pipe.autoencoder.decode(latents))


def _put_back(pixels: Any, mask: Any, images: Any) -> Any:
    """Put known pixels back: those where the mask is 0, bit for bit."""
    return jnp.where(mask > 0, pixels + mask.astype(images.dtype) * (images - pixels), pixels)


def _coarse(mask: Any, factor: int) -> Any:
    """The largest value that a mask [B, H, W, 1] has in the pixels of a latent."""
    batch, height, width, channels = mask.shape
    blocks = mask.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return jnp.max(blocks, axis=(2, 4))
