"""The tasks: what is known of the pictures, the edit that keeps it, where the path starts, and what is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import cmjax
from cmjax import editing
from cmjax.cli.edit.inputs import InputPictures, check_hole, fit_all, flat_all, holes, in_channels, opaque, whole
from cmjax.cli.errors import UsageError
from cmjax.io.pictures import Picture, fit_picture, gray

__all__ = ["TASKS", "Task"]


class Task(NamedTuple):
    """One task on all pictures.

    Attributes:
      data: what is known of them, arrays [P, ...].
      columns: what is shown before the results, f32[P, H, W, C] each.
      edit: data -> the edit of a batch; None where nothing is measured.
      start: (state, edit, data, key, shape) -> the noisy x that the path starts from.
      settle: (images, data) -> images that lie in [-1, 1], which measure the same.
    """

    data: tuple[np.ndarray, ...]
    columns: dict[str, np.ndarray]
    edit: Callable[..., Any] | None
    start: Callable[..., Any]
    settle: Callable[..., np.ndarray]


def _inpaint(args: argparse.Namespace, shape: tuple[int, int, int], given: InputPictures) -> Task:
    """Fill what is white in a mask, or transparent."""
    plain, found, cut = flat_all(given, quiet=not given.masks), holes(given), []
    for (name, hole), picture, flat in zip(found, given.pictures, plain, strict=True):
        check_hole(name, hole, args.soft)
        cut.append(Picture((flat if given.masks else picture).pixels, 1 - hole))
    cut = fit_all(given, shape, cut)
    pixels = in_channels(given, [picture.pixels for picture in cut], shape)
    shown = in_channels(given, [picture.pixels for picture in fit_all(given, shape, plain)], shape)
    weight = 1 - np.stack([opaque(picture) for picture in cut])[..., None]
    if args.soft:
        columns = {"given": shown, "known": pixels * (1 - weight)}
        return Task((pixels, weight), columns, editing.blend, _from_known, _clipped)
    hole = weight > 0.5
    for (name, _), part in zip(found, hole, strict=True):
        check_hole(name, part.astype(np.float32), args.soft)
    columns = {"given": shown, "known": np.where(hole, np.float32(0), pixels)}
    return Task((pixels, hole), columns, editing.inpaint, _from_known, _clipped)


def _colorize(args: argparse.Namespace, shape: tuple[int, int, int], given: InputPictures) -> Task:
    """Colour what is grey; of colours, the luminance is kept."""
    pictures = flat_all(given)
    fitted = [picture.pixels for picture in fit_all(given, shape, pictures)]
    levels = np.stack([gray(pixels) for pixels in fitted])
    columns = {
        "given": np.stack([np.broadcast_to(pixels, shape) for pixels in fitted]),
        "known": np.broadcast_to(levels, (len(levels), *shape)),
    }
    return Task(
        (levels,), columns, editing.colorize, _from_known, lambda images, data: _towards(images, data[0][:, None], -1)
    )


def _upscale(args: argparse.Namespace, shape: tuple[int, int, int], given: InputPictures) -> Task:
    """Enlarge small pictures: each of their pixels is the mean of a block."""
    height, width, _ = shape
    pictures = flat_all(given)
    factors = {_factor(args, path, picture, shape) for path, picture in zip(given.paths, pictures, strict=True)}
    if len(factors) > 1:
        raise UsageError(f"the pictures are of several sizes, to be enlarged {sorted(factors)} times: give one size.")
    factor = factors.pop()
    small = (height // factor, width // factor, shape[-1])
    fitted = fit_all(given, small, pictures)
    low = in_channels(given, [picture.pixels for picture in fitted], small)
    blocks = low.repeat(factor, 1).repeat(factor, 2)
    columns = {"given": blocks}
    if all(min(p.pixels.shape[0] / height, p.pixels.shape[1] / width) >= 1 for p in pictures):
        large = [fit_picture(picture, height, width).pixels for picture in pictures]
        columns = {"given": in_channels(given._replace(notes=[]), large, shape), "known": blocks}

    def settle(images: np.ndarray, data: tuple[np.ndarray, ...]) -> np.ndarray:
        in_blocks = images.reshape(*images.shape[:2], small[0], factor, small[1], factor, shape[-1])
        return _towards(in_blocks, data[0][:, None, :, None, :, None], (-4, -2)).reshape(images.shape)

    return Task((low,), columns, lambda low: editing.super_resolution(low, factor), _from_known, settle)


def _factor(args: argparse.Namespace, path: str, picture: Picture, shape: tuple[int, int, int]) -> int:
    """How many times a picture is enlarged."""
    (height, width, _), (high, wide, _) = shape, picture.pixels.shape
    factor = args.factor or height // high or 1
    if args.factor and (height % factor or width % factor):
        raise UsageError(f"--factor must divide the model's size, {width}x{height}, got {factor}.")
    if args.factor is None and (factor == 1 or (factor * high, factor * wide) != (height, width)):
        raise UsageError(
            f"{path} is {wide}x{high}, which is no whole fraction of the model's {width}x{height}: "
            "--factor F --resize shrinks it first."
        )
    if factor == 1:
        raise UsageError("--factor must be at least 2, got 1.")
    return factor


def _denoise(args: argparse.Namespace, shape: tuple[int, int, int], given: InputPictures) -> Task:
    """Remove noise of a known level: the picture is the path's only x."""
    pixels = whole(given, shape)
    return Task((pixels,), {"given": pixels}, None, lambda state, edit, data, key, shape: data[0], _clipped)


def _stroke(args: argparse.Namespace, shape: tuple[int, int, int], given: InputPictures) -> Task:
    """Draw anew what some noise hides (SDEdit)."""
    pixels = whole(given, shape)

    def start(state, edit, data, key, shape):
        return cmjax.add_noise(state, data[0], key)

    return Task((pixels,), {"given": pixels}, None, start, _clipped)


TASKS: dict[str, Callable[[argparse.Namespace, tuple[int, int, int], InputPictures], Task]] = {
    "inpaint": _inpaint,
    "colorize": _colorize,
    "upscale": _upscale,
    "denoise": _denoise,
    "stroke": _stroke,
}


def _from_known(state: Any, edit: Any, data: Any, key: Any, shape: tuple[int, ...]) -> Any:
    return cmjax.add_noise(state, editing.known(edit, shape), key)


def _clipped(images: np.ndarray, data: Any) -> np.ndarray:
    return np.clip(images, -1, 1)


def _towards(images: np.ndarray, center: np.ndarray, axes: Any) -> np.ndarray:
    """Pull what left [-1, 1] towards a mean over axes that is to stay, all by one factor."""
    spread = images - center
    room = np.where(spread > 0, 1 - center, 1 + center)
    scale = (room / np.maximum(np.abs(spread), 1e-6)).min(axes, keepdims=True)
    return center + np.minimum(scale, 1) * spread
