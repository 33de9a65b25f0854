"""What `cmjax evaluate` reads and writes: data, extractor and files, each checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.cli.errors import UsageError, bad_input
from cmjax.evaluation import EMBEDDED, PICTOGRAMS, Extractor, feature_shapes, load_extractor
from cmjax.io import ImageData
from cmjax.io.atomic import check_writable

__all__ = ["NamedExtractor", "check_counts", "check_data", "check_file", "open_extractor"]


class NamedExtractor(NamedTuple):
    """A feature extractor, its name, and the numbers of its features and classes."""

    extractor: Extractor
    name: str
    features: int
    classes: int | None


def check_file(path: str | None, option: str, suffix: str) -> None:
    """Refuse a file that cannot be written or has another ending; None is none."""
    if path is None:
        return
    if Path(path).suffix.lower() != suffix:
        raise UsageError(f"{option} must end in {suffix}, got {path}.")
    if Path(path).is_dir():
        raise UsageError(f"{option}: {path} is a folder, not a file.")
    with bad_input(option):
        check_writable(path)


def check_data(data: ImageData | None, shape: tuple[int, int, int], classes: int | None) -> None:
    """Refuse images and labels that are not of the model's size and classes.

    Args:
      data: the images, if there are any.
      shape: (H, W, C) of the model's images.
      classes: how many the model has, or None.
    """
    if data is None:
        return
    if data.images.shape[1:] != shape:
        raise UsageError(
            f"--data: the images are {data.images.shape[1:]}, but the model makes {shape}: convert them to "
            "its height, width and channels first (and report how, with the figures)."
        )
    if data.labels is not None and classes is not None and data.labels.max() >= classes:
        raise UsageError(
            f"--data: the labels go to {data.labels.max()}, but the model has {classes} classes, 0 ... {classes - 1}."
        )


def open_extractor(name: str, shape: tuple[int, int, int]) -> NamedExtractor:
    """Load the extractor, and find out what it returns for images of a shape, (H, W, C)."""
    try:
        with bad_input("--features"):
            extractor = load_extractor(name)
            return NamedExtractor(extractor, name, *feature_shapes(extractor, shape))
    except TypeError as error:
        raise UsageError(f"--features: {' '.join(str(error).split())}") from error
    except UsageError as error:
        if name not in (EMBEDDED, PICTOGRAMS):
            raise
        raise UsageError(f"{error} Name an extractor of your own: --features package.module:make.") from error


def check_counts(count: int, cut: tuple[np.ndarray, np.ndarray] | None, k: int) -> None:
    """Refuse too few images for a covariance, or for k neighbours; `cut` is the data in halves."""
    if cut is None:
        if count < 2:
            raise UsageError(f"--num: a covariance needs at least 2 images, got {count}.")
        return
    if len(cut[0]) <= k:
        raise UsageError(
            f"--data: half of it, {len(cut[0])} images, must be more than the {k} neighbours of precision and recall."
        )
    if count <= k:
        raise UsageError(f"--num must be more than the {k} neighbours of precision and recall, got {count}.")
