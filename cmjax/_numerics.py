"""A few small functions that every formula here needs: float32, square roots at zero, broadcasting, reading a table."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cmjax.types import Array

__all__ = [
    "as_array",
    "expand_like",
    "f32",
    "floating",
    "is_real",
    "is_traced",
    "read",
    "refuse_no_function",
    "safe_sqrt",
    "whole",
]


def f32(x: ArrayLike) -> Array:
    """Bring x to float32, in which all coefficients are computed (bfloat16 tells apart 733 of 1000 timesteps)."""
    return jnp.asarray(x).astype(jnp.float32)


def safe_sqrt(x: Array) -> Array:
    """√max(x, 0) whose gradient is 0, not infinite, where x <= 0. NaN stays NaN."""
    is_positive = ~(x <= 0)
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, x, 1.0)), 0.0)


def expand_like(v: Array, x: Array) -> Array:
    """Give a coefficient, f[] or f[B], trailing axes of length 1, so that it multiplies x, f[B, *S]."""
    return v if v.ndim == 0 else v.reshape(v.shape + (1,) * (x.ndim - v.ndim))


def read(table: Array, index: Array) -> Array:
    """table[index], but NaN (-1 for integers) outside of the table, where JAX would clamp or wrap without a word."""
    missing = jnp.nan if jnp.issubdtype(table.dtype, jnp.inexact) else -1
    return table.at[index].get(mode="fill", fill_value=missing, wrap_negative_indices=False)


def as_array(name: str, x: Any, kind: str) -> Array:
    """Give x as an array, or raise TypeError for what is none: None, texts, lists of unequal length."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        got = f"{x!r:.60}" if isinstance(x, str | list | tuple) else f"a {type(x).__name__}"
        raise TypeError(f"{name} must be {kind}, got {got}: give an array of JAX or NumPy.") from error


def floating(name: str, x: Any, hint: str = " (images in [-1, 1])") -> Array:
    """Give x as an array of floats, or raise TypeError: grey levels, 0 ... 255, are not samples."""
    array = as_array(name, x, "a float array")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a float array{hint}, got {array.dtype}.")
    return array


def refuse_no_function(name: str, value: Any, kind: str) -> None:
    """Raise TypeError for what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, {kind}, got a {type(value).__name__}.")


def whole(name: str, value: Any, least: int) -> int:
    """Check a number that decides shapes: a Python int (or NumPy's) of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a Python int, since it decides shapes, got {value!r:.60}.") from error
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}.")
    return number


def is_real(x: Array | np.ndarray) -> bool:
    """Whether x holds whole or broken numbers: no truth values, no complex ones, no keys, no objects."""
    return jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)


def is_traced(x: Any) -> bool:
    """Whether x, or a part of it, has no value yet: an argument under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))
