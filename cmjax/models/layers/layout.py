"""How a layer's leaves lie in files: under which word, and in which order of axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

__all__ = ["CONV", "LINEAR", "LINEAR_AS_CONV", "NORM", "Layout", "Stored"]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One leaf as a diffusers file holds it.

    Args:
      word: the last word of its name there.
      axes: our axes in the file's order; None for the same order.
      ones: axes of length 1 that the file has after them.

    Example:
      >>> LINEAR["kernel"].shape((3, 2)), LINEAR_AS_CONV["kernel"].shape((3, 2))
      ((2, 3), (2, 3, 1, 1))
    """

    word: str
    axes: tuple[int, ...] | None = None
    ones: int = 0

    def shape(self, here: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a leaf of shape `here`."""
        return tuple(here[axis] for axis in self.axes or range(len(here))) + (1,) * self.ones

    def fits(self, value: np.ndarray, here: tuple[int, ...]) -> bool:
        """Whether a file's tensor is a leaf of shape `here`; of a linear layer, a 1x1 convolution is one too."""
        shapes = [self.shape(here)]
        if self.axes == (1, 0):
            shapes += [here[::-1], (*here[::-1], 1, 1)]
        return value.shape in shapes

    def to_file(self, value: np.ndarray) -> np.ndarray:
        """Show a leaf as the file holds it; a view."""
        return value.transpose(self.axes).reshape(self.shape(value.shape)) if self.axes else value

    def from_file(self, value: np.ndarray) -> np.ndarray:
        """Show a file's tensor as the leaf; a view."""
        if not self.axes:
            return value
        return value.reshape(value.shape[: len(self.axes)]).transpose(
            sorted(range(len(self.axes)), key=self.axes.__getitem__)
        )


# From the names of a layer's leaves to how files hold them.
Layout = Mapping[str, Stored]

CONV = {"kernel": Stored("weight", (3, 2, 0, 1)), "bias": Stored("bias")}
LINEAR = {"kernel": Stored("weight", (1, 0)), "bias": Stored("bias")}
LINEAR_AS_CONV = {"kernel": Stored("weight", (1, 0), ones=2), "bias": Stored("bias")}
NORM = {"scale": Stored("weight"), "bias": Stored("bias")}
