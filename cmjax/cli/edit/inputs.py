"""What is given: pictures and masks from files, brought to the size and the channels of a model."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from cmjax.cli.errors import UsageError, bad_input
from cmjax.io.pictures import Picture, fit_picture, gray, on_white, read_picture

__all__ = [
    "InputPictures",
    "check_hole",
    "fit_all",
    "flat_all",
    "holes",
    "in_channels",
    "opaque",
    "read",
    "size",
    "whole",
]

_GREY, _FEW = (31.5 / 255, 223.5 / 255), 0.01  # what of a mask is neither black nor white, and how much of it may be


class InputPictures(NamedTuple):
    """Pictures and masks, and where they are from; what is done to the pictures is added to notes."""

    paths: list[str]
    pictures: list[Picture]
    mask_paths: list[str]
    masks: list[Picture]
    resize: bool
    notes: list[str]


def read(args: argparse.Namespace) -> InputPictures:
    """Read the files that are named."""
    masks = getattr(args, "mask", None) or []
    if masks and len(masks) not in (1, len(args.images)):
        raise UsageError(f"--mask: give one for all pictures or one each, {len(args.images)}, got {len(masks)}.")
    with bad_input():
        pictures = [read_picture(path) for path in args.images]
    with bad_input("--mask"):
        return InputPictures(args.images, pictures, masks, [read_picture(path) for path in masks], args.resize, [])


def flat_all(given: InputPictures, *, quiet: bool = False) -> list[Picture]:
    """Lay transparent pictures on white, and say so."""
    if not quiet:
        for path, picture in zip(given.paths, given.pictures, strict=True):
            if picture.alpha is not None:
                given.notes.append(f"{path} is transparent, and was laid on white")
    return [on_white(picture) for picture in given.pictures]


def fit_all(given: InputPictures, shape: tuple[int, ...], pictures: list[Picture]) -> list[Picture]:
    """Give all pictures the size (H, W), or refuse them."""
    height, width = shape[:2]
    for path, picture in zip(given.paths, pictures, strict=True):
        if picture.pixels.shape[:2] != (height, width):
            old = size(picture.pixels)
            if not given.resize:
                raise UsageError(f"{path} is {old}, but {width}x{height} is needed: --resize crops and resizes.")
            given.notes.append(f"{path} was resized from {old} to {width}x{height}")
    return [fit_picture(picture, height, width) for picture in pictures]


def in_channels(given: InputPictures, pixels: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Stack pictures as f32[P, *shape]: grey ones repeated for a model of colours, colours made grey for a grey one."""
    if shape[-1] == 1:
        for path, picture in zip(given.paths, pixels, strict=True):
            if np.ptp(picture, axis=-1).max() > 1e-6:
                given.notes.append(f"{path} was made grey, as the model's pictures are")
        pixels = [gray(picture) for picture in pixels]
    return np.stack([np.broadcast_to(picture, shape) for picture in pixels]).astype(np.float32)


def whole(given: InputPictures, shape: tuple[int, ...]) -> np.ndarray:
    """The pictures as the model takes them, f32[P, *shape]."""
    return in_channels(given, [picture.pixels for picture in fit_all(given, shape, flat_all(given))], shape)


def holes(given: InputPictures) -> list[tuple[str, np.ndarray]]:
    """What of each picture is to be filled, f32[H, W] from 0 to 1, and the file that says so: a mask, or its own."""
    return [_hole(given, i) for i in range(len(given.paths))]


def _hole(given: InputPictures, i: int) -> tuple[str, np.ndarray]:
    """White in a mask, but where the mask is transparent; without masks what is transparent."""
    path, (pixels, alpha) = given.paths[i], given.pictures[i]
    if not given.masks:
        if alpha is None:
            raise UsageError(f"{path} has no transparent pixels to fill: give --mask, a picture that is white there.")
        return path, 1 - alpha
    name, mask = list(zip(given.mask_paths, given.masks, strict=True))[i % len(given.masks)]
    if mask.pixels.shape[:2] != pixels.shape[:2]:
        raise UsageError(
            f"--mask: {name} is {size(mask.pixels)}, but {path} is {size(pixels)}: a mask must have its picture's size."
        )
    return name, (gray(mask.pixels)[..., 0] + 1) / 2 * opaque(mask)


def check_hole(name: str, hole: np.ndarray, soft: bool) -> None:
    """Refuse a mask that keeps all, or nothing, or that is grey without --soft."""
    between = ((hole > _GREY[0]) & (hole < _GREY[1])).mean()
    if between > _FEW and not soft:
        raise UsageError(
            f"{name} is neither black nor white, as a mask, in {between:.0%} of its pixels: --soft blends there."
        )
    if not (hole > (0 if soft else 0.5)).any():
        raise UsageError(f"{name} leaves nothing to fill: holes are what is white in a mask, or transparent.")
    if not (hole < (1 if soft else 0.5)).any():
        raise UsageError(f"{name} leaves nothing known: that is what cmjax sample is for.")


def opaque(picture: Picture) -> np.ndarray:
    """How opaque each pixel is, f32[H, W]."""
    return np.ones(picture.pixels.shape[:2], np.float32) if picture.alpha is None else picture.alpha


def size(pixels: np.ndarray) -> str:
    """Say a picture's size, as width x height."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
