"""Write images: labelled grids, PNG and npz files, completely or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cmjax.io.atomic import atomic_file

_LINES = 4  # of a caption

__all__ = ["grid", "to_uint8", "write_npz", "write_png"]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert images in [-1, 1] to grey levels: round(127.5 (x + 1)), clipped to 0 ... 255.

    Args:
      images: f[...], any shape.

    Returns:
      u8[...] of the same shape.

    Raises:
      ValueError: a value is NaN.

    Example:
      >>> to_uint8(np.array([-1.0, 0.0, 1.0, 2.0]))
      array([  0, 128, 255, 255], dtype=uint8)
    """
    images = np.asarray(images, np.float32)
    if np.isnan(images).any():
        raise ValueError(
            f"images hold NaN in {int(np.isnan(images).sum())} of {images.size} values: if the model computes in "
            "float16, whose range some networks leave, take bfloat16 or float32; else its weights are damaged."
        )
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def grid(
    images: np.ndarray,
    columns: int,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    row_captions: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Draw images as one picture, row by row, with optional labels of rows and columns.

    Args:
      images: u8[N, H, W, C] with C = 1 or 3. An incomplete last row is filled with white.
      columns: images in a row, at least 1.
      row_labels: one text per row.
      column_labels: one text per column.
      row_captions: one text per row, under it; a long one takes several lines.
      scale: the whole number by which pixels are enlarged; by default, small images grow to about 64 pixels.

    Returns:
      A Pillow image of mode `L` for grey images, `RGB` for colour.

    Raises:
      ValueError: `images` is not u8[N, H, W, 1 or 3], or there is not one label for each row or column.

    Example:
      >>> grid(np.zeros((4, 8, 8, 1), np.uint8), 2, scale=1).size
      (22, 22)
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"images must be u8[N, H, W, 1 or 3], got {images.dtype}{list(images.shape)}.")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    for name, labels, wanted in (
        ("row_labels", row_labels, rows),
        ("column_labels", column_labels, columns),
        ("row_captions", row_captions, rows),
    ):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"{name} must hold {wanted} texts, got {len(labels)}.")
    if scale is None:
        scale = max(1, 64 // min(height, width))
    height, width, gap = height * scale, width * scale, 2

    font = ImageFont.load_default(size=max(10, min(16, height // 3)))
    left = gap + (max(map(_text_width(font), row_labels)) + 8 if row_labels else 0)
    top = gap + (_text_height(font) + 6 if column_labels else 0)
    wrapped = [_wrapped(text, font, columns * (width + gap)) for text in row_captions or ()]
    line = _text_height(font) + 2
    below = line * max(map(len, wrapped)) + 6 if wrapped else 0
    mode, white, ink = ("L", 255, 0) if channels == 1 else ("RGB", (255, 255, 255), (0, 0, 0))
    canvas = Image.new(mode, (left + columns * (width + gap), top + rows * (height + gap + below)), white)
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(row_labels or ()):
        draw.text((left - 6, top + row * (height + gap + below) + height // 2), text, fill=ink, font=font, anchor="rm")
    for column, text in enumerate(column_labels or ()):
        draw.text((left + column * (width + gap) + width // 2, top - 4), text, fill=ink, font=font, anchor="ms")
    for row, lines in enumerate(wrapped):
        for k, text in enumerate(lines):
            y = top + row * (height + gap + below) + height + 3 + k * line
            draw.text((left + 2, y), text, fill=ink, font=font, anchor="lt")
    for i, pixels in enumerate(images):
        row, column = divmod(i, columns)
        tile = _picture(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + column * (width + gap), top + row * (height + gap + below)))
    return canvas


def write_png(picture: Image.Image | np.ndarray, path: str | Path) -> None:
    """Write one picture as a PNG file, completely or not at all.

    Args:
      picture: a Pillow image, or u8[H, W, C] with C = 1 or 3.
      path: the file. Its folder must exist; an existing file is replaced.

    Raises:
      OSError: the folder is missing or not writable.
      ValueError: the array is not u8[H, W, 1 or 3].
    """
    drawn = picture if isinstance(picture, Image.Image) else _picture(picture)
    with atomic_file(path) as temporary:
        drawn.save(temporary, format="PNG")


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed npz file, completely or not at all.

    Args:
      path: the file. Its folder must exist; an existing file is replaced.
      **arrays: the arrays. `read_images` reads `images` u8[N, H, W, C] and `labels` i32[N] back.

    Raises:
      OSError: the folder is missing or not writable.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def _picture(pixels: np.ndarray) -> Image.Image:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"a picture must be u8[H, W, 1 or 3], got {pixels.dtype}{list(pixels.shape)}: to_uint8 makes grey levels."
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines of at most so many pixels; a single word may be longer, and an end is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"{lines[_LINES - 1]} ..."]


def _text_width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont):
    return lambda text: math.ceil(font.getlength(text))


def _text_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return math.ceil(font.getbbox("Ag")[3])
