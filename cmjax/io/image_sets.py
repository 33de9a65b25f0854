"""Read data sets: npz files and folders of images, with their classes."""

from __future__ import annotations

import math
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cmjax.io.images import to_uint8
from cmjax.io.open_picture import read_levels

__all__ = ["ImageData", "class_labels", "flat_labels", "is_picture", "read_images", "read_pictures"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_ONE_SET = (("images", "labels"), ("x", "y"), ("arr_0", "arr_1"))
_NPZ_NAMES = {
    "train": (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"), *_ONE_SET[1:]),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), *_ONE_SET),
}
_NOT_DATA = {"__MACOSX", "@eaDir"}  # folders that archives of macOS and disks of Synology leave

# Names of folders that are seldom classes.
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout", "unlabeled"}
_CHUNK = re.compile(
    r"(0\d{3,}|(part|chunk|shard|batch|images?|imgs?|split|fold|set|dir|data)[-_. ]?\d+)", re.IGNORECASE
)

_IN_MEMORY = 1 << 30  # bytes; larger folders lie in a temporary file
_ON_DISK = "/var/tmp"  # where such files belong: /tmp often is memory
_AT_ONCE = 64  # images that a thread reads in one go


class ImageData(NamedTuple):
    """A data set: images u8[N, H, W, C], labels i32[N] or None, and the names of the labels or None."""

    images: np.ndarray
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None


def read_images(
    path: str | Path, split: Literal["train", "test"] = "train", *, classes: bool | None = None
) -> ImageData:
    """Read a data set from an npz file or a folder of images.

    An npz file holds `images` (u8[N, H, W] or u8[N, H, W, C]) and, if there are classes, `labels` (integers, [N] or
    [N, 1]); `train_images` and `train_labels`, `x_train` and `y_train`, `x` and `y`, `arr_0` and `arr_1` will do;
    `label_names` is read if present. For the split "test" the names are `test_images` and `test_labels`, `x_test` and
    `y_test`, or, where a file has but one set, the same as above.

    A folder holds images, or one sub-folder a class, whose names in alphabetical order become the labels 0, 1, ...
    Hidden files and folders are skipped. Images are read as `read_picture` reads them; where some are grey and some
    have colours, all get three channels. All are decoded at once, so that damage shows early. More than a GiB of them
    are kept in a temporary file (in TMPDIR, or /var/tmp), whose pages are read when they are needed.

    Args:
      path: the npz file or the folder.
      split: which images of an npz file that holds both; of a folder, all are read.
      classes: whether sub-folders, or an npz file's labels, are classes. Without it they are, unless the folders'
        names look like splits or chunks of a data set: then say which.

    Returns:
      The images, with a channel axis, as u8; the labels as i32 or None; their names or None.

    Raises:
      FileNotFoundError: nothing is there, or the folder holds no images.
      OSError: there is no room for the temporary file.
      ValueError: the file is damaged or lacks `images`; images differ in size, or are transparent or animated; labels
        do not fit the images; or classes is True, but there are none.
    """
    path = Path(path)
    if path.is_dir():
        data = _read_folder(path, classes)
    elif not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give an .npz file or a folder of images.")
    elif path.suffix.lower() != ".npz" or not path.is_file():
        raise ValueError(f"data must be an .npz file or a folder of images, got {path}.")
    else:
        data = _read_npz(path, _NPZ_NAMES[split], classes)
    if classes and data.labels is None:
        raise ValueError(f"classes must be False or left out, as {path} has neither labels nor folders of images.")
    return data


def flat_labels(labels: Any) -> np.ndarray:
    """Drop a last axis of length 1 from labels, [N, 1] -> [N]: MedMNIST and others have it."""
    labels = np.asarray(labels)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def class_labels(name: str, labels: Any, count: int) -> np.ndarray:
    """Read labels, one for each image. A last axis of length 1 is dropped.

    Args:
      name: what messages call the labels.
      labels: integers from 0, [N] or [N, 1].
      count: N.

    Returns:
      i32[N].

    Raises:
      ValueError: they are not N integers from 0.

    Example:
      >>> class_labels("labels", np.array([[3], [1]], np.uint8), 2)
      array([3, 1], dtype=int32)
    """
    labels, flat = np.asarray(labels), flat_labels(labels)
    if flat.shape != (count,) or flat.dtype.kind not in "ui" or not 0 <= flat.min() <= flat.max() < 2**31:
        span = f" from {labels.min()} to {labels.max()}" if labels.size and labels.dtype.kind in "uif" else ""
        raise ValueError(
            f"{name} must be {count} integers from 0, one for each image, got {labels.dtype}{list(labels.shape)}{span}."
        )
    return flat.astype(np.int32)


# ---- npz files -------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, known: Sequence[tuple[str, str]], classes: bool | None) -> ImageData:
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
            labels = None if classes is False else file.get(found[1])
            names = file.get("label_names")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, MemoryError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not an npz file of arrays that can be read: {error}.") from error
    if not all(isinstance(array, np.ndarray) for array in (images, *(a for a in (labels, names) if a is not None))):
        raise ValueError(f"{path} is not an npz file of arrays that can be read: {found[0]} is not an array.")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"{found[0]} in {path} must be u8[N, H, W] or u8[N, H, W, 1 or 3] with N at least 1, "
            f"got {images.dtype}{list(images.shape)}."
        )
    if labels is None:
        return ImageData(images)
    labels = class_labels(f"{found[1]} in {path}", labels, len(images))
    return ImageData(images, labels, None if names is None else _names(path, names))


def _names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.dtype.kind not in "USiu":
        raise ValueError(f"label_names in {path} must be texts, got {names.dtype}{list(names.shape)}.")
    try:
        return tuple(n.decode("utf-8") if isinstance(n, bytes) else str(n) for n in np.ravel(names).tolist())
    except UnicodeDecodeError:
        raise ValueError(f"label_names in {path} must be texts, but hold bytes that are not UTF-8.") from None


# ---- folders ---------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, classes: bool | None) -> ImageData:
    direct = _images_in(folder)
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "." and p.name not in _NOT_DATA]
    groups = [(p, files) for p in inner if (files := _images_in(p))]
    if direct and groups and classes is not False:
        raise ValueError(f"{folder} holds both images and folders of images; use one or the other.")
    if classes is None:
        _ask(folder, [p.name for p, _ in groups])
    paths = direct + [file for _, files in groups for file in files]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))}), neither itself nor one folder down."
        )
    images = read_pictures(paths)
    if classes is False or not groups:
        return ImageData(images)
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(files) for _, files in groups])
    return ImageData(images, labels, tuple(p.name for p, _ in groups))


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_picture(p))


def is_picture(path: Path) -> bool:
    """Whether a path in a data set is a picture, by its name: hidden ones are none."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _ask(folder: Path, names: Sequence[str]) -> None:
    """Raise ValueError where folders may be no classes: what they are is for the user to say."""
    if len(names) == 1:
        looks = f"one folder of images, {names[0]}"
    elif names and all(name.casefold() in _SPLITS for name in names):
        looks = f"folders named like splits ({', '.join(names[:3])})"
    elif names and all(map(_CHUNK.fullmatch, names)):
        looks = f"folders named like chunks ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    else:
        return
    raise ValueError(
        f"{folder} holds {looks}. Are they classes? Say classes=True (--classes) if they are, and classes=False "
        f"(--no-classes) to read all images without labels; or give one folder, such as {folder / names[0]}."
    )


class _ColourError(Exception):
    """A picture with colours stands behind grey ones."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape


def read_pictures(paths: Sequence[Path]) -> np.ndarray:
    """Read pictures of one size into one array, u8[N, H, W, C]; more than a GiB of them lie in a temporary file.

    Where some are grey and some have colours, all get three channels.

    Args:
      paths: the files, at least one.

    Raises:
      OSError: a file is not there, or there is no room for the temporary file.
      ValueError: a file is damaged, transparent or animated, or they differ in size.
    """
    try:
        return _read_all(paths, _read_image(paths[0]).shape)
    except _ColourError as found:  # the first is grey, but not all are
        return _read_all(paths, found.shape)


def _read_all(paths: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Read images into one array of their shape; grey ones are repeated where it has colours."""
    images = _room((len(paths), *shape))

    def read(start: int) -> None:
        for i in range(start, min(start + _AT_ONCE, len(paths))):
            image = _read_image(paths[i])
            if image.shape[:2] != shape[:2]:
                raise ValueError(
                    f"images must share one size, but {paths[i]} is {image.shape[1]}x{image.shape[0]} "
                    f"and {paths[0]} is {shape[1]}x{shape[0]}. Resize them first."
                )
            if image.shape[2] > shape[2]:
                raise _ColourError(image.shape)
            images[i] = image

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(0, len(paths), _AT_ONCE)):
            pass
    return images


def _read_image(path: Path) -> np.ndarray:
    """Read one image as u8[H, W, C]."""
    levels, alpha = read_levels(path)
    if alpha is not None:
        raise ValueError(f"{path} has transparent pixels; flatten it to grey (L) or RGB first.")
    return levels if levels.dtype == np.uint8 else to_uint8(levels / np.float32(32767.5) - 1)


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
