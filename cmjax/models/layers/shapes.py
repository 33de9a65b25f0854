"""What pictures must look like for a network."""

from __future__ import annotations

from cmjax.types import Array

__all__ = ["check_pictures"]


def check_pictures(name: str, x: Array, channels: int, multiple: int = 1) -> None:
    """Refuse what is no batch of pictures with these channels.

    Args:
      name: of the argument, for the message.
      x: what was given.
      channels: how many it must have.
      multiple: its height and width must be multiples of this number.

    Raises:
      ValueError: it has another shape.

    Example:
      >>> import numpy as np
      >>> check_pictures("z", np.zeros((1, 8, 8, 3)), channels=4)
      Traceback (most recent call last):
      ValueError: z must have shape (batch, height, width, 4), got (1, 8, 8, 3).
    """
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"{name} must have shape (batch, height, width, {channels}), got {x.shape}.")
    if x.shape[1] % multiple or x.shape[2] % multiple:
        raise ValueError(
            f"{name} must have a height and width that are multiples of {multiple}, got {x.shape[1]} x {x.shape[2]}."
        )
