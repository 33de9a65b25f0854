"""Halving and doubling pictures without weights: by means, by repeating, or by a filter (1, 3, 3, 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from cmjax.types import Array

__all__ = ["avg_pool", "fir_double", "fir_halve", "interleave", "resize_nearest", "upsample_nearest"]

Edges = Literal["constant", "reflect"]


def avg_pool(x: Array) -> Array:
    """Halve a picture f[B, H, W, C] by taking means of 2 x 2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample_nearest(x: Array) -> Array:
    """Double a picture f[B, H, W, C] by repeating its pixels."""
    return interleave([interleave([x, x], axis=2)] * 2, axis=1)


def resize_nearest(x: Array, size: tuple[int, ...]) -> Array:
    """Give a picture f[B, H, W, C] another size, by repeating pixels or leaving some out: y[i] = x[floor(i H / H')].

    Args:
      x: the picture.
      size: its new height and width.

    Returns:
      f[B, *size, C].

    Example:
      >>> resize_nearest(jnp.arange(2.0).reshape(1, 2, 1, 1), (3, 1))[0, :, 0, 0].tolist()
      [0.0, 0.0, 1.0]
    """
    for axis, new in zip((1, 2), size, strict=True):
        x = jnp.take(x, np.arange(new) * x.shape[axis] // new, axis=axis)
    return x


def interleave(pair: Sequence[Array], axis: int) -> Array:
    """Take pixels from two pictures in turn, along an axis: one at a time, so that no sharded axis is merged."""
    shape = list(pair[0].shape)
    shape[axis] *= 2
    return jnp.stack(pair, axis + 1).reshape(shape)


def fir_halve(x: Array, edges: Edges = "constant") -> Array:
    """Halve a picture: along each axis, y[i] = (x[2i - 1] + 3 x[2i] + 3 x[2i + 1] + x[2i + 2]) / 8.

    Args:
      x: f[B, H, W, C], with H and W even.
      edges: what lies beyond the picture: "constant" (zeros) or "reflect" (the pixel next to the last).

    Returns:
      f[B, H / 2, W / 2, C].

    Example:
      >>> fir_halve(jnp.ones((1, 4, 4, 1)), "reflect")[0, :, :, 0].tolist()
      [[1.0, 1.0], [1.0, 1.0]]

    References:
      Zhang, Making Convolutional Networks Shift-Invariant Again, 2019; Karras et al., StyleGAN2, 2020, appendix B.
    """
    for axis in (1, 2):
        even, odd = (_every_other(_padded(x, axis, edges), axis, start) for start in (0, 1))
        here, after = slice(None, -1), slice(1, None)
        x = (
            _cut(even, axis, here) + 3 * (_cut(odd, axis, here) + _cut(even, axis, after)) + _cut(odd, axis, after)
        ) / 8
    return x


def fir_double(x: Array, edges: Edges = "constant") -> Array:
    """Double a picture: along each axis, y[2i] = (3 x[i] + x[i - 1]) / 4 and y[2i + 1] = (3 x[i] + x[i + 1]) / 4.

    With edges of zeros it is four times the transpose of `fir_halve`.

    Args:
      x: f[B, H, W, C].
      edges: what lies beyond the picture: "constant" (zeros) or "reflect" (the pixel next to the last; an axis of one
        pixel is repeated).

    Returns:
      f[B, 2 H, 2 W, C].
    """
    for axis in (1, 2):
        padded = _padded(x, axis, edges)
        before, after = _cut(padded, axis, slice(None, -2)), _cut(padded, axis, slice(2, None))
        x = interleave([(3 * x + before) / 4, (3 * x + after) / 4], axis)
    return x


def _padded(x: Array, axis: int, edges: Edges) -> Array:
    """Add one row at both ends of an axis."""
    return jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)], mode=edges)


def _every_other(x: Array, axis: int, start: int) -> Array:
    return _cut(x, axis, slice(start, None, 2))


def _cut(x: Array, axis: int, part: slice) -> Array:
    return x[(slice(None),) * axis + (part,)]
