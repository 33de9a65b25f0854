"""One picture from a file, as people have them: any colour mode, turned, transparent, 16 bits; in the model's range."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cmjax._numerics import whole
from cmjax.editing.colours import LUMA
from cmjax.io.open_picture import read_levels

__all__ = ["Picture", "fit_picture", "gray", "on_white", "read_picture"]


class Picture(NamedTuple):
    """A picture: its pixels and their opacity.

    Attributes:
      pixels: f32[H, W, C] in [-1, 1], C = 1 for grey, 3 for colour.
      alpha: f32[H, W] from 0, transparent, to 1, opaque; None if all pixels are opaque.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None


def read_picture(path: str | Path) -> Picture:
    """Read a PNG, JPEG, or other file of pixels, the right way up (as its EXIF says).

    Grey levels of 16 bits are scaled, not cut; palettes and CMYK become colours. Of a telephone's JPEG with several
    pictures (MPO) the first is read.

    Args:
      path: the file.

    Returns:
      The picture, in the file's size.

    Raises:
      OSError: nothing is there, or a folder.
      ValueError: the file is not a picture (or a pipe or device, for which one could wait for ever), or damaged,
        animated, far too large, or in a colour mode of unknown range.

    Example:
      From a file to a batch for a model, and back:

      >>> import pathlib, tempfile
      >>> from cmjax.io import fit_picture, on_white, to_uint8, write_png
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "photo.png"
      >>> write_png(np.full((64, 48, 3), 255, np.uint8), path)
      >>> photo = fit_picture(on_white(read_picture(path)), 28, 28).pixels[None]
      >>> photo.shape, photo.max().item()
      ((1, 28, 28, 3), 1.0)
      >>> write_png(to_uint8(photo[0]), path)
    """
    levels, alpha = read_levels(path)
    most = 127.5 if levels.dtype == np.uint8 else 32767.5
    return Picture(levels.astype(np.float32) / most - 1, None if alpha is None else alpha.astype(np.float32) / 255)


def gray(pixels: np.ndarray) -> np.ndarray:
    """Compute the luminance, f32[H, W, 1], of a picture f32[H, W, 1 or 3], as `cmjax.editing.luminance` does.

    Example:
      >>> gray(np.full((1, 1, 3), 0.5, np.float32))
      array([[[0.5]]], dtype=float32)
    """
    if pixels.shape[-1] == 1:
        return pixels
    return (pixels.astype(np.float64) @ (np.array(LUMA) / sum(LUMA)))[..., None].astype(np.float32)


def on_white(picture: Picture) -> Picture:
    """Blend a transparent picture with white, as a viewer does.

    Example:
      >>> on_white(Picture(np.array([[[0.0]]]), np.array([[0.25]]))).pixels.item()
      0.75
    """
    if picture.alpha is None:
        return picture
    alpha = picture.alpha[..., None]
    return Picture(picture.pixels * alpha + (1 - alpha))


def fit_picture(picture: Picture, height: int, width: int) -> Picture:
    """Crop the middle of a picture to an aspect ratio, and resize it without aliasing.

    If the size is divided by a whole number, a pixel is the mean of a block, as in `cmjax.editing.block_mean`;
    otherwise a Lanczos window is used. Transparent pixels do not affect the colour of their neighbours.

    Args:
      picture: a picture of any size.
      height: the height of the result.
      width: the width of the result.

    Returns:
      The picture, of height x width pixels.

    Raises:
      TypeError: height or width is not an int.
      ValueError: height or width is less than 1.

    Example:
      >>> fit_picture(Picture(np.array([[[0.0], [1.0]], [[0.5], [0.5]]])), 1, 1).pixels.item()
      0.5
    """
    height, width = whole("height", height, 1), whole("width", width, 1)
    pixels, alpha = picture
    old_height, old_width = pixels.shape[:2]
    if (old_height, old_width) == (height, width):
        return picture
    scale = min(old_height / height, old_width / width)
    top, left = (old_height - scale * height) / 2, (old_width - scale * width) / 2
    box = (left, top, left + scale * width, top + scale * height)
    is_block = all(side.is_integer() for side in (scale, top, left))
    window = Image.Resampling.BOX if is_block else Image.Resampling.LANCZOS

    def resized(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), window, box=box))

    def each(pixels: np.ndarray) -> np.ndarray:
        return np.stack([resized(pixels[..., c]) for c in range(pixels.shape[-1])], axis=-1)

    if alpha is None:
        return Picture(np.clip(each(pixels), -1, 1))
    opaque = resized(alpha)  # a Lanczos window goes a little beyond 1, of this and of the colours alike
    colours = each(pixels * alpha[..., None]) / np.maximum(opaque, 1e-3)[..., None]
    return Picture(np.clip(colours, -1, 1), np.clip(opaque, 0, 1))
