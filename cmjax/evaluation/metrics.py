"""The figures of one set of images: statistics that are kept while it streams by, and what is measured in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cmjax.evaluation.features import Features
from cmjax.evaluation.manifold import precision_recall
from cmjax.evaluation.statistics import Gaussian, Moments, frechet_distance
from cmjax.io.image_sets import flat_labels

__all__ = ["Figures", "Seen", "look", "measure"]


class Seen(NamedTuple):
    """What an extractor saw in a set of N images, with d features.

    Attributes:
      moments: the moments of all images.
      features: f32[n, d] of the first n images, for precision and recall. Only this memory grows with n.
      guesses: i64[N], the class that the extractor assigned to each image, or None.
    """

    moments: Moments
    features: np.ndarray
    guesses: np.ndarray | None


class Figures(NamedTuple):
    """The figures that were measured; None for figures that could not be."""

    frechet_distance: float
    precision: float | None = None
    recall: float | None = None
    class_accuracy: float | None = None


def look(batches: Iterable[Features], dimension: int, *, keep: int = 0) -> Seen:
    """Collect the statistics of a set of images, batch by batch.

    Args:
      batches: what the extractor returned: features f[B, d], and logits f[B, k] or None.
      dimension: d.
      keep: the number of images whose features are kept, at 4 d bytes each.

    Raises:
      ValueError: features have another dimension, or are not finite.
    """
    moments, kept, guesses, left = Moments.none(dimension), [np.zeros((0, dimension), np.float32)], [], keep
    for features, logits in batches:
        moments = moments.update(np.asarray(features))
        if left:
            kept.append(np.asarray(features[:left], np.float32))
            left -= len(kept[-1])
        if logits is not None:
            guesses.append(np.argmax(logits, axis=-1))
    return Seen(moments, np.concatenate(kept), np.concatenate(guesses) if guesses else None)


def measure(
    seen: Seen,
    reference: Moments | Gaussian,
    manifold: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    k: int = 3,
) -> Figures:
    """Measure a set of images.

    Args:
      seen: what `look` returned.
      reference: the set to measure the distance from.
      manifold: features f[n, d] of real images, for precision and recall; equally many of `seen` are compared.
      labels: i[N] or i[N, 1], the class that each image should show, for the accuracy.
      k: which neighbour the balls of the manifolds reach to.

    Raises:
      ValueError: as for `frechet_distance` and `precision_recall`; or there is not one label for each image.
    """
    precision = recall = accuracy = None
    if manifold is not None:
        precision, recall = precision_recall(manifold, seen.features[: len(manifold)], k=k)
    if labels is not None and seen.guesses is not None:
        labels = flat_labels(labels)
        if labels.shape != seen.guesses.shape:
            got = len(labels) if labels.ndim == 1 else f"shape {labels.shape}"
            raise ValueError(f"labels must be one for each of the {len(seen.guesses)} images, got {got}.")
        accuracy = float((seen.guesses == labels).mean())
    return Figures(frechet_distance(seen.moments, reference), precision, recall, accuracy)
