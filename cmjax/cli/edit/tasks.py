"""The tasks on pictures: what is known of them, the edit that keeps it, where the path starts, and what is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import cmjax
from cmjax import editing
from cmjax.cli.edit.inputs import (
    Pictures,
    check_hole,
    find_holes,
    fit,
    in_channels,
    lay_on_white,
    opaque,
    read_masks,
    size,
    whole,
)
from cmjax.cli.errors import UsageError
from cmjax.cli.options import (
    ColorizeOptions,
    DenoiseOptions,
    InpaintOptions,
    PictureOptions,
    StrokeOptions,
    UpscaleOptions,
)
from cmjax.io.pictures import Picture, fit_picture, gray

__all__ = ["Task", "prepare_task"]

_Shape = tuple[int, int, int]


class Task(NamedTuple):
    """One task on all pictures.

    Attributes:
      data: what is known of them, arrays [P, ...].
      columns: what is shown before the results, f32[P, H, W, C] each.
      edit: data -> the edit of a batch; None where nothing is measured.
      start: (state, edit, data, key, shape) -> the noisy x that the path starts from.
      bound: (images, data) -> images in [-1, 1], which measure the same.
      notes: what was done to the pictures.
    """

    data: tuple[np.ndarray, ...]
    columns: dict[str, np.ndarray]
    edit: Callable[..., Any] | None
    start: Callable[..., Any]
    bound: Callable[..., np.ndarray]
    notes: tuple[str, ...]


def prepare_task(options: PictureOptions, shape: _Shape, given: Pictures) -> Task:
    """Prepare the task that was asked for.

    Args:
      options: of the task.
      shape: (H, W, C) of the model's images.
      given: the pictures, as read.

    Raises:
      UsageError: a picture does not suit the task or the model.
    """
    if isinstance(options, InpaintOptions):
        return _inpaint(options, shape, given)
    if isinstance(options, ColorizeOptions):
        return _colorize(options, shape, given)
    if isinstance(options, UpscaleOptions):
        return _upscale(options, shape, given)
    if isinstance(options, DenoiseOptions):
        return _denoise(options, shape, given)
    assert isinstance(options, StrokeOptions)
    return _stroke(options, shape, given)


def _inpaint(options: InpaintOptions, shape: _Shape, given: Pictures) -> Task:
    """Fill what is white in a mask, or transparent."""
    masks = read_masks(options.mask, len(given.paths))
    plain = lay_on_white(given)
    if not masks.paths:  # what is transparent is filled, so that it is no matter what lay behind it
        plain = given.replace(plain.pictures)
    holes = find_holes(given, masks)
    for name, hole in holes:
        check_hole(name, hole, options.soft)
    known = plain if masks.paths else given
    cut = [Picture(picture.pixels, 1 - hole) for (_, hole), picture in zip(holes, known.pictures, strict=True)]
    fitted = fit(plain.replace(cut), shape, resize=options.resize)
    pixels, _ = in_channels(fitted, shape)
    shown, notes = in_channels(fit(plain, shape, resize=options.resize), shape)
    weight = 1 - np.stack([opaque(picture) for picture in fitted.pictures])[..., None]
    if options.soft:
        columns = {"given": shown, "known": pixels * (1 - weight)}
        return Task((pixels, weight), columns, editing.blend, _from_known, _clipped, notes)
    hole = weight > 0.5
    for (name, _), part in zip(holes, hole, strict=True):
        check_hole(name, part.astype(np.float32), options.soft)
    columns = {"given": shown, "known": np.where(hole, np.float32(0), pixels)}
    return Task((pixels, hole), columns, editing.inpaint, _from_known, _clipped, notes)


def _colorize(options: ColorizeOptions, shape: _Shape, given: Pictures) -> Task:
    """Colour what is grey; of colours, the luminance is kept."""
    fitted = fit(lay_on_white(given), shape, resize=options.resize)
    pixels = [picture.pixels for picture in fitted.pictures]
    levels = np.stack([gray(picture) for picture in pixels])
    columns = {
        "given": np.stack([np.broadcast_to(picture, shape) for picture in pixels]),
        "known": np.broadcast_to(levels, (len(levels), *shape)),
    }

    def bound(images: np.ndarray, data: tuple[np.ndarray, ...]) -> np.ndarray:
        return _towards(images, data[0][:, None], -1)

    return Task((levels,), columns, editing.colorize, _from_known, bound, fitted.notes)


def _upscale(options: UpscaleOptions, shape: _Shape, given: Pictures) -> Task:
    """Enlarge small pictures: each of their pixels is the mean of a block."""
    height, width, _ = shape
    given = lay_on_white(given)
    sizes = zip(given.paths, given.pictures, strict=True)
    factors = {_factor(options.factor, path, picture, shape) for path, picture in sizes}
    if len(factors) > 1:
        raise UsageError(f"the pictures are of several sizes, to be enlarged {sorted(factors)} times: give one size.")
    factor = factors.pop()
    small = (height // factor, width // factor, shape[-1])
    low, notes = in_channels(fit(given, small, resize=options.resize), small)
    blocks = low.repeat(factor, 1).repeat(factor, 2)
    columns = {"given": blocks}
    if all(min(p.pixels.shape[0] / height, p.pixels.shape[1] / width) >= 1 for p in given.pictures):
        large = [fit_picture(picture, height, width) for picture in given.pictures]
        columns = {"given": in_channels(given.replace(large), shape)[0], "known": blocks}

    def bound(images: np.ndarray, data: tuple[np.ndarray, ...]) -> np.ndarray:
        in_blocks = images.reshape(*images.shape[:2], small[0], factor, small[1], factor, shape[-1])
        return _towards(in_blocks, data[0][:, None, :, None, :, None], (-4, -2)).reshape(images.shape)

    return Task((low,), columns, lambda low: editing.super_resolution(low, factor), _from_known, bound, notes)


def _factor(asked: int | None, path: str, picture: Picture, shape: _Shape) -> int:
    """Find how many times a picture is enlarged."""
    (height, width, _), (high, wide, _) = shape, picture.pixels.shape
    factor = asked or height // high or 1
    if asked and (height % factor or width % factor):
        raise UsageError(f"--factor must divide the model's size, {width}x{height}, got {factor}.")
    if asked is None and (factor == 1 or (factor * high, factor * wide) != (height, width)):
        raise UsageError(
            f"{path} is {size(picture.pixels)}, which is not a whole fraction of the model's {width}x{height}: "
            "--factor F --resize shrinks it first."
        )
    if factor == 1:
        raise UsageError("--factor must be at least 2, got 1.")
    return factor


def _denoise(options: DenoiseOptions, shape: _Shape, given: Pictures) -> Task:
    """Remove noise of a known level: the picture itself is the path's only x."""
    pixels, notes = whole(given, shape, resize=options.resize)

    def start(state, edit, data, key, shape):
        return data[0]

    return Task((pixels,), {"given": pixels}, None, start, _clipped, notes)


def _stroke(options: StrokeOptions, shape: _Shape, given: Pictures) -> Task:
    """Redraw what some noise hides (SDEdit)."""
    pixels, notes = whole(given, shape, resize=options.resize)

    def start(state, edit, data, key, shape):
        return cmjax.add_noise(state, data[0], key)

    return Task((pixels,), {"given": pixels}, None, start, _clipped, notes)


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
