"""Read image folders and arrays; write labelled grids, PNG and npz files, completely or not at all."""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from cmjax.io.atomic import atomic_file

__all__ = ["ImageData", "grid", "read_images", "to_uint8", "write_npz", "write_png"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}
_NPZ_NAMES = {
    "train": (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"), ("x", "y")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("images", "labels"), ("x", "y")),
}


_IN_MEMORY = 1 << 30  # bytes; larger folders lie in a temporary file
_ON_DISK = "/var/tmp"  # where such files belong: /tmp often is memory
_AT_ONCE = 64  # images that a thread reads in one go


class ImageData(NamedTuple):
    """A data set: images u8[N, H, W, C], labels i32[N] or None, and the names of the labels or None."""

    images: np.ndarray
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None


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
        raise ValueError(f"images hold NaN in {int(np.isnan(images).sum())} of {images.size} values.")
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def grid(
    images: np.ndarray,
    columns: int,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Draw images as one picture, row by row, with optional labels of rows and columns.

    Args:
      images: u8[N, H, W, C] with C = 1 or 3. An incomplete last row is filled with white.
      columns: images in a row, at least 1.
      row_labels: one text per row.
      column_labels: one text per column.
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
    for name, labels, wanted in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"{name} must hold {wanted} texts, got {len(labels)}.")
    if scale is None:
        scale = max(1, 64 // min(height, width))
    height, width, gap = height * scale, width * scale, 2

    font = ImageFont.load_default(size=max(10, min(16, height // 3)))
    left = gap + (max(map(_text_width(font), row_labels)) + 8 if row_labels else 0)
    top = gap + (_text_height(font) + 6 if column_labels else 0)
    mode, white, ink = ("L", 255, 0) if channels == 1 else ("RGB", (255, 255, 255), (0, 0, 0))
    canvas = Image.new(mode, (left + columns * (width + gap), top + rows * (height + gap)), white)
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(row_labels or ()):
        draw.text((left - 6, top + row * (height + gap) + height // 2), text, fill=ink, font=font, anchor="rm")
    for column, text in enumerate(column_labels or ()):
        draw.text((left + column * (width + gap) + width // 2, top - 4), text, fill=ink, font=font, anchor="ms")
    for i, pixels in enumerate(images):
        row, column = divmod(i, columns)
        tile = _picture(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + column * (width + gap), top + row * (height + gap)))
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


def read_images(path: str | Path, split: Literal["train", "test"] = "train") -> ImageData:
    """Read a data set from an npz file or a folder of images.

    An npz file holds `images` (u8[N, H, W] or u8[N, H, W, C]) and, if there are classes, `labels` (integers, [N]);
    `train_images` and `train_labels`, `x_train` and `y_train`, `x` and `y` will do; `label_names` is read if present.
    For the split "test" the names are `test_images` and `test_labels`, `x_test` and `y_test`, or, where a file has but
    one set, `images` and `labels`, `x` and `y`.

    A folder holds images, or one sub-folder a class, whose names in alphabetical order become the labels 0, 1, ...
    All are decoded at once, so that damage shows early. More than a GiB of them are kept in a temporary file (in
    TMPDIR, or /var/tmp), whose pages are read when they are needed.

    Args:
      path: the npz file or the folder.
      split: which images of an npz file that holds both; of a folder, all are read.

    Returns:
      The images, with a channel axis, as u8; the labels as i32 or None; their names or None.

    Raises:
      FileNotFoundError: nothing is there, or the folder holds no images.
      OSError: there is no room for the temporary file.
      ValueError: the file is damaged or lacks `images`; sizes or colour modes are mixed; labels do not fit the images.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give an .npz file or a folder of images.")
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise ValueError(f"data must be an .npz file or a folder of images, got {path}.")
    return _read_npz(path, _NPZ_NAMES[split])


def _read_npz(path: Path, known: tuple[tuple[str, str], ...]) -> ImageData:
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip archive")
        with np.load(path, allow_pickle=False) as file:
            found = next(((x, y) for x, y in known if x in file), None)
            if found is None:
                raise ValueError(
                    f"it must hold an array named {known[0][0]!r}, but it holds {', '.join(file) or 'nothing'}"
                )
            images = file[found[0]]
            labels = file.get(found[1])
            names = tuple(map(str, np.ravel(file["label_names"]))) if "label_names" in file else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, MemoryError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not an npz file of arrays that can be read: {error}.") from error
    if not all(isinstance(array, np.ndarray) for array in (images, images if labels is None else labels)):
        raise ValueError(f"{path} is not an npz file of arrays that can be read: {found[0]} is not an array.")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"{found[0]} in {path} must be u8[N, H, W] or u8[N, H, W, 1 or 3] with N at least 1, "
            f"got {images.dtype}{list(images.shape)}."
        )
    if labels is not None:
        if (
            labels.shape != images.shape[:1]
            or labels.dtype.kind not in "ui"
            or not 0 <= labels.min() <= labels.max() < 2**31
        ):
            raise ValueError(
                f"{found[1]} in {path} must be {len(images)} integers from 0, one for each image, "
                f"got {labels.dtype}{list(labels.shape)}{_span(labels)}."
            )
        labels = labels.astype(np.int32)
    return ImageData(images, labels, names)


def _span(labels: np.ndarray) -> str:
    return f" from {labels.min()} to {labels.max()}" if labels.size and labels.dtype.kind in "uif" else ""


def _read_folder(folder: Path) -> ImageData:
    def images_in(parent: Path) -> list[Path]:
        return sorted(p for p in parent.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))

    direct = images_in(folder)
    classes = [(p, files) for p in sorted(folder.iterdir()) if p.is_dir() and (files := images_in(p))]
    if direct and classes:
        raise ValueError(f"{folder} holds both images and folders of images; use one or the other.")
    paths = direct or [file for _, files in classes for file in files]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))}), neither itself nor one folder down."
        )
    first = _read_image(paths[0])
    images = _room((len(paths), *first.shape))

    def read(start: int) -> None:
        for i in range(start, min(start + _AT_ONCE, len(paths))):
            image = _read_image(paths[i])
            if image.shape != first.shape:
                raise ValueError(
                    f"images must share one size and colour mode, but {paths[i]} is {_describe(image)} "
                    f"and {paths[0]} is {_describe(first)}. Convert them first."
                )
            images[i] = image

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(0, len(paths), _AT_ONCE)):
            pass
    if not classes:
        return ImageData(images)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for _, files in classes])
    return ImageData(images, labels, tuple(p.name for p, _ in classes))


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """Make room for so many bytes: in memory, or where they are many in a temporary file, which goes when they do."""
    size = math.prod(shape)
    if size <= _IN_MEMORY:
        return np.empty(shape, np.uint8)
    folder = os.environ.get("TMPDIR") or (_ON_DISK if os.path.isdir(_ON_DISK) else tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is to be known now: written through a map, it kills
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(
                f"the images take {size / 2**30:.1f} GiB in {folder}, which are not there ({error}): "
                "name a roomier folder, TMPDIR=..."
            ) from error
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _read_image(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")  # of a pipe, one would wait for ever
    try:
        with Image.open(path) as image:
            channels = _CHANNELS.get(image.mode)
            if "transparency" in image.info:
                raise ValueError(f"{path} has transparent pixels; flatten it to grey (L) or RGB first.")
            if channels is None:
                raise ValueError(f"{path} has the colour mode {image.mode}; convert it to grey (L) or RGB first.")
            array = np.asarray(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image: {error}.") from error
    return array.reshape(*array.shape[:2], channels)


def _picture(pixels: np.ndarray) -> Image.Image:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"a picture must be u8[H, W, 1 or 3], got {pixels.dtype}{list(pixels.shape)}: to_uint8 makes grey levels."
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _describe(array: np.ndarray) -> str:
    height, width, channels = array.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _text_width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont):
    return lambda text: math.ceil(font.getlength(text))


def _text_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return math.ceil(font.getbbox("Ag")[3])
