"""Compare real images with real images, to know the figures that real images get."""

from __future__ import annotations

import numpy as np

from cmjax.io.image_sets import flat_labels

__all__ = ["halves"]


def halves(labels: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a data set in two, class by class: one half as the reference, the other to be compared as samples are.

    Each half has its classes in turn while they last, so that its first images are as representative as the whole half.
    Without labels, the images are first shuffled, always in the same way, since many data sets are stored in some
    order.

    Args:
      labels: i[N] or i[N, 1], or None.
      count: N.

    Returns:
      Indices i64[floor] and i64[ceil]: of N / 2, or of the sum over the classes.

    Example:
      >>> [half.tolist() for half in halves(np.array([0, 0, 0, 0, 1, 1, 1]), 7)]
      [[0, 4, 1], [2, 5, 3, 6]]
    """
    if labels is None:
        order = np.random.default_rng(0).permutation(count)
        return order[: count // 2], order[count // 2 :]
    labels = flat_labels(labels)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return _in_turn([m[: len(m) // 2] for m in members]), _in_turn([m[len(m) // 2 :] for m in members])


def _in_turn(groups: list[np.ndarray]) -> np.ndarray:
    """Interleave groups: the first of each, then the second of each, and so on."""
    rank = np.concatenate([np.arange(len(group)) for group in groups])
    return np.concatenate(groups)[np.argsort(rank, kind="stable")]
