"""The pictures and masks of `cmjax edit`, brought to the size and the channels of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmjax.cli.errors import UsageError, bad_input
from cmjax.io.pictures import Picture, fit_picture, gray, on_white, read_picture

__all__ = [
    "Pictures",
    "check_hole",
    "find_holes",
    "fit",
    "in_channels",
    "lay_on_white",
    "opaque",
    "read_masks",
    "read_pictures",
    "size",
    "whole",
]

_GREY, _FEW = (31.5 / 255, 223.5 / 255), 0.01  # what of a mask is neither black nor white, and how much of it may be


@dataclass(frozen=True)
class Pictures:
    """Pictures, the files that they are from, and what was done to them: each step returns new ones.

    Attributes:
      paths: of the files.
      pictures: as read, or as changed since.
      notes: sentences on what was done, for the report.
    """

    paths: tuple[str, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def replace(self, pictures: Sequence[Picture], notes: Sequence[str] = ()) -> Pictures:
        """Return the changed pictures, with what was done to them."""
        return Pictures(self.paths, tuple(pictures), (*self.notes, *notes))


def read_pictures(paths: Sequence[str]) -> Pictures:
    """Read the pictures that are named.

    Raises:
      UsageError: a file is missing, damaged, or no picture.
    """
    with bad_input():
        return Pictures(tuple(paths), tuple(read_picture(path) for path in paths))


def read_masks(paths: Sequence[str], pictures: int) -> Pictures:
    """Read the masks that are named: none, one for all pictures, or one for each.

    Raises:
      UsageError: there is another number, or a file is missing, damaged, or no picture.
    """
    if paths and len(paths) not in (1, pictures):
        raise UsageError(f"--mask: give one for all pictures or one each, {pictures}, got {len(paths)}.")
    with bad_input("--mask"):
        return Pictures(tuple(paths), tuple(read_picture(path) for path in paths))


def lay_on_white(given: Pictures) -> Pictures:
    """Lay transparent pictures on white."""
    notes = [
        f"{path} is transparent, and was laid on white"
        for path, picture in zip(given.paths, given.pictures, strict=True)
        if picture.alpha is not None
    ]
    return given.replace([on_white(picture) for picture in given.pictures], notes)


def fit(given: Pictures, shape: tuple[int, ...], *, resize: bool) -> Pictures:
    """Give all pictures the size (H, W).

    Raises:
      UsageError: one has another size, and resizing was not asked for.
    """
    (height, width), notes = shape[:2], []
    for path, picture in zip(given.paths, given.pictures, strict=True):
        if picture.pixels.shape[:2] != (height, width):
            old = size(picture.pixels)
            if not resize:
                raise UsageError(f"{path} is {old}, but must be {width}x{height}: --resize crops and resizes.")
            notes.append(f"{path} was resized from {old} to {width}x{height}")
    return given.replace([fit_picture(picture, height, width) for picture in given.pictures], notes)


def in_channels(given: Pictures, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stack pictures: grey ones are repeated for a model of colours, colours become grey for a grey one.

    Args:
      given: of one size.
      shape: (H, W, C).

    Returns:
      f32[P, *shape], and the notes of all that was done to them.
    """
    pixels, notes = [picture.pixels for picture in given.pictures], given.notes
    if shape[-1] == 1:
        coloured = [np.ptp(picture, axis=-1).max() > 1e-6 for picture in pixels]
        made = (f"{path} was made grey, as the model's pictures are" for path in given.paths)
        notes = (*notes, *(note for note, colour in zip(made, coloured, strict=True) if colour))
        pixels = [gray(picture) for picture in pixels]
    return np.stack([np.broadcast_to(picture, shape) for picture in pixels]).astype(np.float32), notes


def whole(given: Pictures, shape: tuple[int, ...], *, resize: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return pictures as the model takes them, f32[P, *shape], and the notes of what was done to them."""
    return in_channels(fit(lay_on_white(given), shape, resize=resize), shape)


def find_holes(given: Pictures, masks: Pictures) -> list[tuple[str, np.ndarray]]:
    """Find what of each picture is to be filled.

    A hole is white in a mask, unless the mask is transparent there; without masks, it is what is transparent.

    Returns:
      For each picture, the file that says so, a mask or its own, and f32[H, W] from 0 to 1.

    Raises:
      UsageError: a picture is not transparent anywhere, or a mask has another size than its picture.
    """
    return [_hole(given.paths[i], given.pictures[i], masks, i) for i in range(len(given.paths))]


def _hole(path: str, picture: Picture, masks: Pictures, i: int) -> tuple[str, np.ndarray]:
    pixels, alpha = picture
    if not masks.paths:
        if alpha is None:
            raise UsageError(f"{path} has no transparent pixels to fill: give --mask, a picture that is white there.")
        return path, 1 - alpha
    name, mask = masks.paths[i % len(masks.paths)], masks.pictures[i % len(masks.paths)]
    if mask.pixels.shape[:2] != pixels.shape[:2]:
        raise UsageError(
            f"--mask: {name} is {size(mask.pixels)}, but {path} is {size(pixels)}: a mask must have its picture's size."
        )
    return name, (gray(mask.pixels)[..., 0] + 1) / 2 * opaque(mask)


def check_hole(name: str, hole: np.ndarray, soft: bool) -> None:
    """Refuse a mask that keeps everything or nothing, or that is grey without --soft."""
    between = ((hole > _GREY[0]) & (hole < _GREY[1])).mean()
    if between > _FEW and not soft:
        raise UsageError(
            f"{name} is neither black nor white, as a mask, in {between:.0%} of its pixels: --soft blends there."
        )
    if not (hole > (0 if soft else 0.5)).any():
        raise UsageError(f"{name} leaves nothing to fill: holes are white in a mask, or transparent.")
    if not (hole < (1 if soft else 0.5)).any():
        raise UsageError(f"{name} leaves nothing known: cmjax sample draws whole images.")


def opaque(picture: Picture) -> np.ndarray:
    """Say how opaque each pixel is, f32[H, W]."""
    return np.ones(picture.pixels.shape[:2], np.float32) if picture.alpha is None else picture.alpha


def size(pixels: np.ndarray) -> str:
    """Say a picture's size, as width x height."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
