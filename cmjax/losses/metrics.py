"""Distances between two batches of samples, one value per example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from cmjax._numerics import f32, safe_sqrt

if TYPE_CHECKING:
    from cmjax.types import Array

__all__ = ["Metric", "elementwise_huber", "l1", "l2", "pseudo_huber"]

Metric = Callable[["Array", "Array"], "Array"]


def _difference(a: Array, b: Array) -> Array:
    """Subtract, f32[B, d]; shapes must be equal."""
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {a.shape} and {b.shape}.")
    return (f32(a) - f32(b)).reshape(a.shape[0], -1)


def l1(a: Array, b: Array) -> Array:
    """Average |a - b| over each example: f[B, *S], f[B, *S] -> f32[B]."""
    return jnp.abs(_difference(a, b)).mean(axis=1)


def l2(a: Array, b: Array) -> Array:
    """Average (a - b)² over each example: f[B, *S], f[B, *S] -> f32[B]."""
    return jnp.square(_difference(a, b)).mean(axis=1)


def pseudo_huber(a: Array, b: Array, c: float | None = None) -> Array:
    """Measure √(‖a - b‖² + c²) - c over each example: f[B, *S], f[B, *S] -> f32[B].

    It grows like ‖·‖² / 2c below c and like ‖·‖ above it; its gradient is finite where a equals b.

    Args:
      a: f[B, *S].
      b: f[B, *S].
      c: the length at which it turns from square to linear; by default 0.00054 √d for d values in an example.

    Returns:
      f32[B].

    Example:
      >>> import jax.numpy as jnp
      >>> pseudo_huber(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]), c=12.0)
      Array([1.], dtype=float32)

    References:
      Song & Dhariwal 2023, section 3.3.
    """
    difference = _difference(a, b)
    c = 0.00054 * math.sqrt(difference.shape[1]) if c is None else c
    return safe_sqrt(jnp.square(difference).sum(axis=1) + c**2) - c


def elementwise_huber(a: Array, b: Array, c: float = 0.001) -> Array:
    """Average √((a - b)² + c²) - c over each example: f[B, *S], f[B, *S] -> f32[B].

    `pseudo_huber` measures the length of the whole difference; this one measures each of its values.

    Args:
      a: f[B, *S].
      b: f[B, *S].
      c: the size at which it turns from square to linear.

    Returns:
      f32[B].

    Example:
      >>> import jax.numpy as jnp
      >>> elementwise_huber(jnp.zeros((1, 2)), jnp.array([[3.0, 0.0]]), c=4.0)
      Array([0.5], dtype=float32)

    References:
      The "huber" of the published training scripts of latent consistency models.
    """
    return (safe_sqrt(jnp.square(_difference(a, b)) + c**2) - c).mean(axis=1)
