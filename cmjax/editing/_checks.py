"""Check the arrays of an edit: float dtypes, values in bounds, shapes that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from cmjax._numerics import f32, floating, is_real, is_traced
from cmjax.types import Array

__all__ = ["Bounds", "check_bounds", "check_shape", "few_numbers", "mask_for", "measured"]

# The least and the largest value of pictures; None for what has none, such as latents.
Bounds = tuple[float, float] | None


def measured(name: str, value: ArrayLike) -> Array:
    """Convert a measurement to float32; refuse grey levels, 0 ... 255."""
    return f32(floating(name, value))


def few_numbers(name: str, value: Any, rule: str) -> np.ndarray:
    """Convert numbers that a person writes, such as weights, to f64[n] on the host; refuse anything else."""
    if is_traced(value):
        raise TypeError(f"{name} must be concrete under jit, got {value}: make the edit outside.")
    try:
        found = np.asarray(value)
    except (TypeError, ValueError):  # a list of lists of unequal length
        found = np.array(None)
    if not is_real(found):
        raise TypeError(f"{name} must be {rule}, got {value!r:.60}.")
    if found.ndim != 1:
        raise ValueError(f"{name} must be {rule}, got shape {found.shape}.")
    return found.astype(np.float64)


_ON_ANOTHER_SCALE = ": clip it, scale it (x / 127.5 - 1), or, for latents, give bounds=None"


def check_bounds(
    name: str, value: Any, bounds: Bounds, *, free: Array | None = None, remedy: str = _ON_ANOTHER_SCALE
) -> None:
    """Refuse values on another scale, unless they do not matter. Rounding may exceed a bound by 0.1% of the range.

    On the host, so that it works under `jit` too, for arrays that are not traced.
    """
    if bounds is None:
        return
    ends = few_numbers("bounds", bounds, "two numbers, the least and the greatest, or None")
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(f"bounds must be two numbers, the least and the greatest, or None, got {bounds}.")
    if is_traced((value, free)) or not getattr(value, "is_fully_addressable", True):
        return
    found = np.asarray(value, np.float32)
    if free is not None:
        found = np.where(free, np.float32(0), found)
    if not found.size:
        return
    if wrong := int(np.isnan(found).sum()):
        raise ValueError(f"{name} holds NaN in {wrong} of {found.size} values: what is kept must be numbers.")
    lowest, highest = ends
    room = 1e-3 * (highest - lowest)
    least, most = found.min(), found.max()
    if not lowest - room <= least <= most <= highest + room:
        raise ValueError(f"{name} must lie in [{lowest:g}, {highest:g}], got {least:.4g} ... {most:.4g}{remedy}.")


def mask_for(name: str, mask: Array, reference: Array) -> Array:
    """Give a mask all axes of the reference; its batch may be longer than that of a single reference."""
    full = mask.reshape((1,) * (reference.ndim - mask.ndim) + mask.shape)
    fits = full.ndim == reference.ndim and all(
        m in (1, r) or (axis == 0 and r == 1)
        for axis, (m, r) in enumerate(zip(full.shape, reference.shape, strict=True))
    )
    if not fits:
        without = mask.shape in (reference.shape[:-1], reference.shape[1:-1])
        remedy = f"a mask without channels needs {name}[..., None]" if without else "axes must be equal or 1"
        raise ValueError(f"{name} has shape {mask.shape} for reference of shape {reference.shape}; {remedy}.")
    return full


def check_shape(name: str, value: Any, x0: Array) -> None:
    """Refuse a value that does not broadcast to x0; called while the loop is traced."""
    fits = value.ndim == x0.ndim and all(v in (1, n) for v, n in zip(value.shape, x0.shape, strict=True))
    if not fits:
        remedy = (
            f"give it a batch axis, {name}[None]" if value.ndim + 1 == x0.ndim else "one for all images, or one each"
        )
        raise ValueError(f"{name} has shape {value.shape} where {x0.shape} is needed: {remedy}.")
