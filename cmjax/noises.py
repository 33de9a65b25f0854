"""Paths and grids between starting noises, on great circles.

Noise of n numbers has a length close to √n, and so has every point of the great circle between two of them. A straight
line passes through shorter points, which hold less noise than the model is told. Pictures drawn from a great circle
change smoothly from one end to the other (Song et al. 2023, appendix D).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax._numerics import as_array, expand_like, f32, floating, is_real, safe_sqrt, whole
from cmjax.types import Array

__all__ = ["slerp", "slerp_grid", "slerp_path"]


def slerp(a: Array, b: Array, t: ArrayLike) -> Array:
    """Interpolate from a to b along a great circle: (sin((1 - t) θ) a + sin(t θ) b) / sin θ, θ the angle between them.

    Args:
      a: f[B, *S]; lengths and angles are those of whole images.
      b: f[B, *S].
      t: from 0 (a) to 1 (b), f[] or one for each image, f[B]. May be traced.

    Returns:
      f[B, *S], in a's dtype; exactly a and b at the ends. Between parallel images it is a straight line. Between
      opposite images no circle is the shortest, and the result is undefined (its gradient is finite).

    Raises:
      TypeError: a or b is not of a float dtype, or t is not numeric.
      ValueError: shapes differ, or t is neither one number nor one for each image.

    Example:
      >>> slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5).round(4)
      Array([[0.7071, 0.7071]], dtype=float32)

    References:
      Shoemake 1985, section 3.3; Song et al. 2023, appendix D.
    """
    a, b, t = floating("a", a), floating("b", b), as_array("t", t, "a number, from 0 to 1")
    if a.ndim < 2:
        raise ValueError(f"noises must have a batch axis before their own, f[B, *S], got shape {a.shape}.")
    if a.shape != b.shape:
        raise ValueError(f"the two noises must have one shape, got {a.shape} and {b.shape}.")
    if not is_real(t):
        raise TypeError(f"t must be a number, from 0 to 1, or one for each image, got {t.dtype}.")
    t = f32(t)
    if t.shape not in ((), a.shape[:1]):
        raise ValueError(f"t must be a number, or one for each of {a.shape[0]} images, got shape {t.shape}.")
    u, v = (f32(z).reshape(z.shape[0], math.prod(z.shape[1:])) for z in (a, b))
    lengths = safe_sqrt((u * u).sum(-1)) * safe_sqrt((v * v).sum(-1))
    cosine = jnp.where(lengths > 0, (u * v).sum(-1) / jnp.where(lengths > 0, lengths, 1.0), 1.0)
    is_circle = jnp.abs(cosine) < 1 - 1e-6  # beyond, float32 does not know the angle, and a line is as good
    theta = jnp.arccos(jnp.where(is_circle, cosine, 0.0))
    weight_a = jnp.where(is_circle, jnp.sin((1 - t) * theta) / jnp.sin(theta), 1 - t)
    weight_b = jnp.where(is_circle, jnp.sin(t * theta) / jnp.sin(theta), t)
    return (expand_like(weight_a, a) * f32(a) + expand_like(weight_b, b) * f32(b)).astype(a.dtype)


def slerp_path(ends: Array, num: int) -> Array:
    """Place num points evenly on the great circle between two noises.

    Args:
      ends: f[2, *S].
      num: the number of points, with both ends; at least 2.

    Returns:
      f[num, *S]: a batch for `cmjax.sample`, from one end to the other.

    Raises:
      TypeError: ends are not of a float dtype, or num is not an int.
      ValueError: there are not two ends, or num is less than 2.

    Example:
      >>> slerp_path(jnp.eye(2), 3).round(4)
      Array([[1.    , 0.    ],
             [0.7071, 0.7071],
             [0.    , 1.    ]], dtype=float32)
    """
    ends, num = _several("ends", ends, 2), whole("num", num, 2)
    shape = (num, *ends.shape[1:])
    a, b = (jnp.broadcast_to(ends[i : i + 1], shape) for i in range(2))
    return slerp(a, b, jnp.linspace(0.0, 1.0, num))


def slerp_grid(corners: Array, rows: int, columns: int) -> Array:
    """Fill a grid between four noises: great circles down the left and right sides, then across each row.

    Args:
      corners: f[4, *S]: top left, top right, bottom left, bottom right.
      rows: at least 2.
      columns: at least 2.

    Returns:
      f[rows * columns, *S], row after row: a batch for `cmjax.sample`, and for `cmjax.io.grid` after it.

    Raises:
      TypeError: corners are not of a float dtype, or rows or columns is not an int.
      ValueError: there are not four corners, or rows or columns is less than 2.

    Example:
      >>> slerp_grid(jnp.eye(4), 3, 5).shape
      (15, 4)
    """
    corners, rows, columns = _several("corners", corners, 4), whole("rows", rows, 2), whole("columns", columns, 2)
    left, right = slerp_path(corners[0::2], rows), slerp_path(corners[1::2], rows)
    across = jnp.tile(jnp.linspace(0.0, 1.0, columns), rows)
    return slerp(left.repeat(columns, axis=0), right.repeat(columns, axis=0), across)


def _several(name: str, noises: Array, count: int) -> Array:
    noises = floating(name, noises)
    if noises.shape[:1] != (count,):
        raise ValueError(f"{name} must be {count} noises, f[{count}, *S], got shape {noises.shape}.")
    return noises
