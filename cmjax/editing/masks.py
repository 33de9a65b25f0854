"""Mask edits: some pixels are known, and are put back."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax._numerics import as_array, f32, floating
from cmjax._struct import Struct
from cmjax.editing._checks import Bounds, check_bounds, check_shape, mask_for, measured
from cmjax.types import Array

__all__ = ["Blend", "Inpaint", "blend", "inpaint"]


class Inpaint(Struct):
    """Keep the known pixels; see `inpaint`."""

    reference: Array
    hole: Array

    def __call__(self, x0: Array) -> Array:
        """Put the known pixels back, f32[B, *S]."""
        x0 = measured("x0", x0)
        check_shape("reference", self.reference, x0)
        check_shape("hole", self.hole, x0)
        return jnp.where(self.hole, x0, self.reference)


def inpaint(reference: ArrayLike, hole: ArrayLike, *, bounds: Bounds = (-1.0, 1.0)) -> Inpaint:
    """Fill a hole: put the known pixels back at every step.

    Args:
      reference: f[B, *S], or f[1, *S] for all images, in the model's range; its values in the hole do not matter.
      hole: bool[B, *S], True where pixels are unknown; axes of length 1 broadcast, and leading axes may be left out.
        One reference may have many holes, and many references may share one hole.
      bounds: the range of valid values; a reference outside it, such as 0 ... 255, is refused. None for latents, which
        have no bounds. Traced arrays are not checked.

    Returns:
      An edit, which returns float32. The known pixels are the reference's, bit for bit.

    Raises:
      TypeError: hole is not boolean, or reference is not of a float dtype.
      ValueError: hole does not broadcast against reference, or reference is out of bounds.

    Example:
      >>> edit = inpaint(jnp.array([[1.0, 0.2, 0.3]]), jnp.array([[False, True, False]]))
      >>> edit(jnp.zeros((1, 3)))
      Array([[1. , 0. , 0.3]], dtype=float32)

    References:
      Song et al. 2023, algorithm 4 and appendix D.
    """
    given, reference, hole = reference, measured("reference", reference), as_array("hole", hole, "a boolean array")
    if hole.dtype != jnp.bool:
        raise TypeError(
            f"hole must be boolean, True where pixels are unknown, got {hole.dtype}: write hole > 0.5, or use blend "
            "for a soft mask."
        )
    hole = mask_for("hole", hole, reference)
    check_bounds("reference", given, bounds, free=hole)
    return Inpaint(reference, hole)


class Blend(Struct):
    """Mix the estimate with a reference; see `blend`."""

    reference: Array
    weight: Array

    def __call__(self, x0: Array) -> Array:
        """Mix, f32[B, *S]."""
        x0 = measured("x0", x0)
        check_shape("reference", self.reference, x0)
        check_shape("weight", self.weight, x0)
        reference = jnp.where(self.weight < 1, self.reference, x0)
        return reference + self.weight * (x0 - reference)


def blend(reference: ArrayLike, weight: ArrayLike, *, bounds: Bounds = (-1.0, 1.0)) -> Blend:
    """Mix with a soft mask: reference + weight (x0 - reference). Weights of 0 and 1 act as the mask of `inpaint`.

    Args:
      reference: as for `inpaint`; its values where weight is 1 do not matter.
      weight: f, from 0 (keep the reference) to 1 (keep the model's estimate); it broadcasts as hole does.
      bounds: as for `inpaint`.

    Returns:
      An edit. It is not a projection: every step pulls towards the reference again, by 1 - weight.

    Raises:
      TypeError: reference or weight is not of a float dtype.
      ValueError: weight does not broadcast against reference, or has values outside [0, 1], or reference is out of
        bounds.

    Example:
      >>> blend(jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 0.5]]))(jnp.zeros((1, 2)))
      Array([[1. , 0.5]], dtype=float32)
    """
    given, reference = reference, measured("reference", reference)
    share = f32(floating("weight", weight, " (from 0, kept, to 1, free)"))
    check_bounds("weight", weight, (0.0, 1.0), remedy="")
    weight = mask_for("weight", share, reference)
    check_bounds("reference", given, bounds, free=weight == 1)
    return Blend(reference, weight)
