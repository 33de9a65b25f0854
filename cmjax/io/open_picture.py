"""The one opener of picture files: pixels the right way up, or one sentence with the file's name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

__all__ = ["Levels", "read_levels", "read_size", "stream_levels"]

# What Pillow decodes itself. Without this list a file named .png may be a format that starts another program (EPS).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA")
_GREYS, _COLOURS = {"1", "L", "LA", "La"}, {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Levels(NamedTuple):
    """A picture's levels, as the file holds them.

    Attributes:
      levels: u8[H, W, C], C = 1 for grey and 3 for colour; or u16[H, W, 1].
      alpha: u8[H, W], 255 for opaque; None if all pixels are opaque.
    """

    levels: np.ndarray
    alpha: np.ndarray | None = None


def read_levels(path: str | Path) -> Levels:
    """Read a picture file, turned as its EXIF says. Palettes and CMYK become colours.

    Args:
      path: the file.

    Raises:
      OSError: nothing is there, or a folder.
      ValueError: the file is not a picture (or a pipe or device, for which one could wait for ever), or damaged,
        animated, far too large, or in a colour mode of unknown range.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a picture.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device: give a PNG or JPEG file.")
    # From a stream, not a name: a name is mapped into memory, where Pillow reads rows of turned TIFF files wrongly.
    with path.open("rb") as stream:
        return stream_levels(stream, os.fspath(path))


def stream_levels(stream: IO[bytes], name: str) -> Levels:
    """Read a picture from an open file, as `read_levels` does.

    Args:
      stream: the file, which stays open.
      name: what messages call it.

    Raises:
      ValueError: as for `read_levels`.
    """
    return _told(_decoded, stream, name)


def read_size(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Read a picture's height and width, once it is turned as its EXIF says, from its first bytes: nothing is decoded.

    Args:
      stream: the file, which stays open.
      name: what messages call it.

    Raises:
      ValueError: it is not a picture, or its beginning is damaged.
    """
    return _told(_size, stream, name)


_T = TypeVar("_T")


def _told(read: Callable[[IO[bytes]], _T], stream: IO[bytes], name: str) -> _T:
    """Read something, or say in one sentence why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of sizes and of metadata; too large is refused here
            return read(stream)
    except _RefusedError as error:
        raise ValueError(f"{name} {error}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture: give a PNG or JPEG file.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} {_too_large()}") from None
    except Exception as error:  # decoders raise anything: struct.error, TypeError, RuntimeError, SyntaxError
        reason = " ".join(str(error).split()).replace(name, "it").rstrip(".") or type(error).__name__
        raise ValueError(f"{name} is damaged, and cannot be read: {reason}.") from error


class _RefusedError(Exception):
    """A sound file that is not what is wanted; the message follows its name."""


@contextmanager
def _opened(stream: IO[bytes]) -> Iterator[Image.Image]:
    with Image.open(stream, formats=_FORMATS) as file:
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise _RefusedError(_too_large())
        yield file


def _size(stream: IO[bytes]) -> tuple[int, int]:
    with _opened(stream) as file:
        is_on_its_side = _orientation(file) >= 5
        return (file.width, file.height) if is_on_its_side else (file.height, file.width)


def _decoded(stream: IO[bytes]) -> Levels:
    with _opened(stream) as file:
        frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        if frames > 1:
            raise _RefusedError(f"has {frames} frames: give a single picture.")
        file.load()
        turn = _TURNS.get(_orientation(file))
        image = file.copy() if turn is None else file.transpose(turn)
        if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PNG"):
            levels = np.asarray(image)[..., None].astype(np.uint16)
            clear = levels[..., 0] == file.info.get("transparency", -1)
            return Levels(levels, np.where(clear, 0, 255).astype(np.uint8) if clear.any() else None)
        if image.mode in ("L", "RGB") and "transparency" not in file.info:
            return Levels(np.atleast_3d(np.asarray(image)))
        if image.mode not in _GREYS | _COLOURS:
            raise _RefusedError(f"has the colour mode {image.mode}: convert it to grey (L) or RGB first.")
        levels = np.asarray(image.convert("RGBA"))
        alpha = levels[..., 3]
        return Levels(levels[..., : 1 if image.mode in _GREYS else 3], alpha if (alpha < 255).any() else None)


def _orientation(file: Image.Image) -> int:
    """The tag's value. ImageOps.exif_transpose would encode all tags anew, and so stumble over others."""
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the tags are damaged, the pixels are not
        return 1


def _too_large() -> str:
    return f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which is not safe to open: make it smaller."
