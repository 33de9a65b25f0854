"""Combine several edits, and show what an edit knows."""

from __future__ import annotations

import jax.numpy as jnp

from cmjax._numerics import f32, floating, refuse_no_function, whole
from cmjax._struct import Struct
from cmjax.types import Array, Edit

__all__ = ["Chain", "chain", "known"]


class Chain(Struct):
    """Several edits, one after another; see `chain`."""

    edits: tuple[Edit, ...]

    def __call__(self, x0: Array) -> Array:
        """Apply every edit, f32[B, *S]."""
        for edit in self.edits:
            x0 = edit(x0)
        return x0


def chain(*edits: Edit) -> Chain:
    """Apply several edits in order.

    Args:
      *edits: x0 -> x0 each, callable pytrees. The last edit's measurement is kept exactly; those of earlier edits, only
        if later ones do not change them.

    Returns:
      An edit.

    Raises:
      TypeError: one of them is not a function.

    Example:
      >>> from cmjax.editing import inpaint
      >>> photo, left, right = jnp.array([[0.1, 0.2]]), jnp.array([[True, False]]), jnp.array([[False, True]])
      >>> chain(inpaint(photo, left), inpaint(photo, right))(jnp.zeros((1, 2)))
      Array([[0.1, 0.2]], dtype=float32)
    """
    for edit in edits:
        refuse_no_function("each edit", edit, "x0 -> x0; of a list of edits, chain(*edits)")
    return Chain(edits)


def known(edit: Edit, shape: tuple[int, ...]) -> Array:
    """Show what an edit knows and nothing else, as a starting point: the edit applied to a picture of zeros.

    Args:
      edit: x0 -> x0.
      shape: (B, *S).

    Returns:
      f32[B, *S]: holes are 0, colours are along the weights, blocks are flat. The paper starts editing from this
      picture, noised to the path's first level: `x = cmjax.add_noise(state, known(edit, shape), key)`.

    Raises:
      TypeError: edit is not a function that returns floats, or shape does not consist of ints.

    Example:
      >>> from cmjax.editing import inpaint
      >>> known(inpaint(jnp.array([[0.5, 0.2]]), jnp.array([[False, True]])), (1, 2))
      Array([[0.5, 0. ]], dtype=float32)

    References:
      Song et al. 2023, algorithm 4, lines 1 and 2.
    """
    refuse_no_function("edit", edit, "x0 -> x0")
    try:
        sizes = tuple(whole("shape", n, 0) for n in shape)
    except TypeError as error:
        raise TypeError(f"shape must be ints, (B, *S), such as images.shape, got {shape!r:.60}.") from error
    return f32(floating("what edit returns", edit(jnp.zeros(sizes, jnp.float32))))
