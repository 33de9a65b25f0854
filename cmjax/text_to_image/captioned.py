"""Batches of captioned pictures to train a text-to-image network on: latents, and encoded captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._order import batch_indices
from cmjax.guidance import WithNull
from cmjax.io.captions import Captioned
from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.autoencoder import LatentCoder
from cmjax.text_to_image.pipeline import PromptTokens, TextToImage
from cmjax.types import Array

__all__ = ["CaptionedBatches", "captioned_batches"]

_AT_ONCE = 16  # pictures that are encoded in one call


class _Recipe(Protocol):
    """The fields of a `training.Recipe` that decide the batches."""

    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def flip(self) -> bool: ...


def captioned_batches(
    pipe: TextToImage, data: Captioned, recipe: _Recipe, *, drop: float = 0.1, with_null: bool = False
) -> CaptionedBatches:
    """Prepare captioned pictures for training the network of a text-to-image model.

    The pictures are encoded once, to the means of their latents, which stay in memory. At each step, one of each
    picture's captions is chosen and encoded; text encoders and autoencoder stay as they are. A share of the captions
    is dropped, so that the network also learns what pictures are like without a text, and can be guided.

    Args:
      pipe: the model. Its network is not used.
      data: pictures u8[N, H, W, C] and their captions, as `io.read_captions` reads them. Height and width must be
        multiples of what the autoencoder makes one latent of.
      recipe: a `training.Recipe`, for its batch_size and seed.
      drop: the share of captions to drop, in [0, 1]. Give 0 for distillation, whose teacher is guided already.
      with_null: whether each condition comes with that of no text beside it (`guidance.WithNull`), for methods that
        guide the teacher, by `guidance_scale` or `guidance_range`, or that drop captions themselves.

    Returns:
      An endless iterable of (latents f32[B, h, w, c], `TextCond`) for `training.train`. The batch of a step
      depends on the recipe's seed and on the step alone, so that a run resumes to the same bits, and at once.

    Raises:
      ValueError: drop is outside of [0, 1], a picture has no caption, there are fewer pictures than a batch has, their
        size does not fit the autoencoder, or the recipe has flip.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> data = cmjax.io.Captioned(np.zeros((2, 64, 64, 3), np.uint8), (("night",), ("a dark night", "no light")))
      >>> batches = captioned_batches(pipe, data, cmjax.training.Recipe(batch_size=2))
      >>> latents, cond = next(iter(batches))
      >>> latents.shape, cond.context.shape[0]
      ((2, 16, 16, 4), 2)

      Then `cmjax.training.train(pipe.unet, pipe.config, batches, recipe=recipe)`.

    References:
      Rombach et al. 2022, section 3.3; Ho & Salimans 2022, algorithm 1.
    """
    _check(pipe, data, recipe, drop)
    return CaptionedBatches(pipe, data, recipe.seed, recipe.batch_size, drop, with_null)


class CaptionedBatches:
    """An iterable of batches, (latents f32[B, h, w, c], `TextCond`); see `captioned_batches`."""

    def __init__(
        self, pipe: TextToImage, data: Captioned, seed: int, batch_size: int, drop: float, with_null: bool = False
    ):
        self._pipe, self._seed, self._batch_size, self._drop = pipe, seed, batch_size, drop
        self._with_null = with_null
        self._size = np.array(data.images.shape[1:3], np.float32)
        texts = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain(*data.captions)))}
        self._texts = [np.array([texts[text] for text in of_one]) for of_one in data.captions]
        self._tokens = tuple(np.asarray(tokens) for tokens in pipe.tokenize(list(texts)))
        self._latents = _latents(pipe.autoencoder, data.images)

    def batch(self, step: int) -> tuple[np.ndarray, TextCond | WithNull]:
        """The batch of one step."""
        chosen = batch_indices(self._seed, step, len(self._latents), self._batch_size)
        rng = np.random.default_rng([self._seed, step, 1])  # 1: no other draw of the run begins like this
        texts = [self._texts[i][rng.integers(len(self._texts[i]))] for i in chosen]
        is_dropped = rng.random(len(chosen)) < self._drop
        tokens = tuple(tokens[texts] for tokens in self._tokens)
        told = _told(self._pipe, tokens, is_dropped, self._size)
        return self._latents[chosen], told if self._with_null else told.cond

    def starting_at(self, step: int) -> Iterator[tuple[np.ndarray, TextCond | WithNull]]:
        """The batches from a step on: a run that resumes asks for these."""
        return map(self.batch, itertools.count(step))

    def __iter__(self) -> Iterator[tuple[np.ndarray, TextCond | WithNull]]:
        return self.starting_at(0)


@jax.jit
def _told(pipe: TextToImage, tokens: PromptTokens, is_dropped: Array, size: Array) -> WithNull:
    """What the network is told: of texts, or of no text where they are dropped, and of the pictures' size."""
    cond = pipe.encode(tokens)
    if cond.sizes is not None:
        sizes = cond.sizes.at[:, :2].set(size)
        cond = cond.replace(sizes=sizes.at[:, 4:].set(size) if sizes.shape[1] == 6 else sizes)

    def choose(told: Array, empty: Array) -> Array:
        return jnp.where(is_dropped.reshape(-1, *(1,) * (told.ndim - 1)), empty, told)

    empty = pipe.without_text(cond).replace(sizes=cond.sizes)
    return WithNull(jax.tree.map(choose, cond, empty), empty)


def _latents(coder: LatentCoder, images: np.ndarray) -> np.ndarray:
    """Encode pictures in parts of one size, which one program serves: f32[N, h, w, c]."""
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        count = len(part)
        full = np.concatenate([part, np.repeat(part[-1:], min(_AT_ONCE, len(images)) - count, axis=0)])
        x = full.astype(np.float32) / np.float32(127.5) - 1
        if x.shape[-1] == 1 and coder.config.in_channels == 3:
            x = np.repeat(x, 3, axis=-1)
        parts.append(np.asarray(coder.encode(jnp.asarray(x)))[:count])
    return np.concatenate(parts)


def _check(pipe: TextToImage, data: Captioned, recipe: _Recipe, drop: float) -> None:
    images, captions = data
    if not 0 <= drop <= 1:
        raise ValueError(f"drop must lie in [0, 1], a share of the captions, got {drop}.")
    if getattr(images, "ndim", 0) != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"data.images must be u8[N, H, W, C], got {getattr(images, 'dtype', type(images).__name__)}"
            f"{list(getattr(images, 'shape', ()))}: io.read_captions reads them."
        )
    if len(captions) != len(images) or not all(captions):
        lacking = sum(1 for of_one in captions if not of_one)
        raise ValueError(
            f"data.captions must be one or more texts for each of the {len(images)} pictures, got {len(captions)}, of "
            f"which {lacking} are empty."
        )
    if len(images) < recipe.batch_size:
        raise ValueError(
            f"batch_size is {recipe.batch_size} but there are {len(images)} pictures: use a smaller batch."
        )
    if recipe.flip:
        raise ValueError(
            "flip must be False: mirrored latents are not those of mirrored pictures; mirror the pictures."
        )
    pipe.latent_shape(1, images.shape[1:3])
