"""Lay drawn images out as one picture: rows of classes, and strips of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cmjax.drawing.batches import Drawn
from cmjax.io.images import grid

__all__ = ["class_grid", "strips"]


def strips(drawn: Drawn) -> np.ndarray:
    """Show each image, or, where the steps were kept, the strip of its steps.

    Args:
      drawn: images f[N, H, W, C], and the estimates x0 f[N, n, H, W, C] or None.

    Returns:
      [N, H, W, C], or [N, H, n W, C]. The last column is the sample, where the path
      ends, in place of the last estimate.

    Example:
      >>> strips(Drawn(np.zeros((2, 4, 4, 1)), np.zeros((2, 3, 4, 4, 1)))).shape
      (2, 4, 12, 1)
    """
    if drawn.x0 is None:
        return drawn.images
    return np.concatenate([*np.moveaxis(drawn.x0, 1, 0)[:-1], drawn.images], axis=2)


def class_grid(images: np.ndarray, names: Sequence[str] | None, *, under: bool = False) -> Image.Image:
    """Lay images out, one row a class; without classes, in a square.

    Args:
      images: u8[N, H, W, C], in the order of `class_of`.
      names: the names of the classes, or the prompts, drawn in turn; or None.
      under: whether names stand under their rows, where long ones have room.

    Returns:
      The picture, with the names beside its rows, or under them.

    Example:
      >>> class_grid(np.zeros((4, 8, 8, 1), np.uint8), None).mode
      'L'
    """
    count = len(images)
    if names is None:
        return grid(images, math.ceil(math.sqrt(count)))
    rows = min(len(names), count)
    columns = math.ceil(count / rows)
    full = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    full[:count] = images
    by_row = full.reshape(columns, rows, *images.shape[1:]).swapaxes(0, 1).reshape(full.shape)
    named = names[:rows]
    return grid(by_row, columns, row_labels=None if under else named, row_captions=named if under else None)
