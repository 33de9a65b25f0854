"""The batches of a run: from arrays, in an order that (seed, step) determines, or from any iterable of batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._order import batch_indices
from cmjax.io.image_sets import flat_labels

if TYPE_CHECKING:
    from cmjax.training.recipe import Recipe

__all__ = ["Batch", "batch_indices", "batches"]

Batch = tuple[np.ndarray, Any]  # images u8[B, H, W, C], or f[B, *S] in [-1, 1]; and cond, or None


def batches(images: Any, labels: np.ndarray | None, recipe: Recipe, start: int) -> Iterator[Batch]:
    """Yield the batches of a run from step `start` on.

    Earlier batches of an iterable are drawn and dropped. One with a method `starting_at(step)` is asked for the batches
    from that step on.
    """
    if isinstance(images, np.ndarray | jax.Array):
        labels = None if labels is None else flat_labels(labels)
        return _of_arrays(np.asarray(images), labels, recipe, start)
    if labels is not None:
        raise ValueError("labels go with images in an array; an iterable yields (images, cond).")
    return _of_iterable(images, recipe, start)


def _of_arrays(images: np.ndarray, labels: np.ndarray | None, recipe: Recipe, start: int) -> Iterator[Batch]:
    _check(images, labels, recipe)
    for step in itertools.count(start):
        chosen = batch_indices(recipe.seed, step, len(images), recipe.batch_size)
        yield images[chosen], None if labels is None else labels[chosen].astype(np.int32)


def _of_iterable(source: Iterable[Batch], recipe: Recipe, start: int) -> Iterator[Batch]:
    begin = getattr(source, "starting_at", None)
    given = enumerate(source) if begin is None else enumerate(begin(start), start)
    for step, (images, cond) in given:
        if len(images) != recipe.batch_size:
            raise ValueError(f"batch {step} of the data has {len(images)} images; batch_size is {recipe.batch_size}.")
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"batch {step} of the data must be u8, or f in [-1, 1]; got {images.dtype}.")
        if recipe.flip and images.ndim != 4:
            raise ValueError(f"flip is for images, [B, H, W, C]; batch {step} of the data is {list(images.shape)}.")
        if step >= start:
            yield images, cond
    raise ValueError(f"the data ended before step {recipe.steps}: give an iterable that goes on, or fewer steps.")


def _check(images: np.ndarray, labels: np.ndarray | None, recipe: Recipe) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images must be u8[N, H, W, C], got {images.dtype}{list(images.shape)}.")
    if len(images) < recipe.batch_size:
        raise ValueError(f"batch_size is {recipe.batch_size} but there are {len(images)} images: use a smaller batch.")
    if labels is None:
        return
    if labels.shape != (len(images),):
        raise ValueError(f"labels must be one for each of the {len(images)} images, got shape {labels.shape}.")
    if labels.dtype.kind not in "ui" or labels.min() < 0:
        raise ValueError(f"labels must be integers from 0, got {labels.dtype} from {labels.min()}.")
