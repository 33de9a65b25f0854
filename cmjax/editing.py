"""From clean estimates to clean estimates: what `edit=` takes. Zero-shot, with any sampler."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax._numerics import f32, refuse_integers
from cmjax._struct import Struct
from cmjax.types import Array, Edit

__all__ = ["Chain", "Inpaint", "chain", "inpaint"]


class Inpaint(Struct):
    """Keep the known pixels; see `inpaint`."""

    photo: Array
    hole: Array

    def __call__(self, x0: Array) -> Array:
        """Put the known pixels back, f32[B, *S]."""
        return jnp.where(self.hole, x0, self.photo)


class Chain(Struct):
    """Several edits, one after another; see `chain`."""

    edits: tuple[Edit, ...]

    def __call__(self, x0: Array) -> Array:
        """Apply every edit, f32[B, *S]."""
        for edit in self.edits:
            x0 = edit(x0)
        return x0


def inpaint(photo: ArrayLike, hole: ArrayLike) -> Inpaint:
    """Fill a hole: at each step the known pixels are put back.

    Args:
      photo: f[B, *S] or f[1, *S], in the model's range, [-1, 1]; what is in the hole does not matter.
      hole: bool, True where pixels are unknown; broadcasts against photo.

    Returns:
      An edit.

    Raises:
      TypeError: hole is not boolean, or photo is not of a float dtype.
      ValueError: hole does not broadcast against photo.

    Example:
      >>> edit = inpaint(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[False, True, False]]))
      >>> edit(jnp.zeros((1, 3)))
      Array([[1., 0., 3.]], dtype=float32)

    References:
      Song et al. 2023, algorithm 4.
    """
    refuse_integers("photo", photo)
    photo, hole = f32(photo), jnp.asarray(hole)
    if hole.dtype != jnp.bool:
        raise TypeError(f"hole must be boolean, True where pixels are unknown, got {hole.dtype}: write hole > 0.5.")
    try:
        fits = jnp.broadcast_shapes(photo.shape, hole.shape) == photo.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"hole has shape {hole.shape} for photo of shape {photo.shape}; "
            "a mask without channels needs hole[..., None]."
        )
    return Inpaint(photo, hole.reshape((1,) * (photo.ndim - hole.ndim) + hole.shape))


def chain(*edits: Edit) -> Chain:
    """Apply several edits, the first first.

    Args:
      *edits: x0 -> x0 each, callable pytrees.

    Returns:
      An edit.

    Example:
      >>> photo, left, right = jnp.array([[1.0, 2.0]]), jnp.array([[True, False]]), jnp.array([[False, True]])
      >>> chain(inpaint(photo, left), inpaint(photo, right))(jnp.zeros((1, 2)))
      Array([[1., 2.]], dtype=float32)
    """
    return Chain(edits)
