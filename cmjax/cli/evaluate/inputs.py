"""What an evaluation is given, checked before anything is computed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_model import UnloadedModel
from cmjax.evaluation import EMBEDDED, Extractor, feature_shapes, load_extractor
from cmjax.io import ImageData
from cmjax.io.atomic import check_writable

__all__ = ["NamedExtractor", "check_counts", "check_data", "check_file", "open_extractor"]


class NamedExtractor(NamedTuple):
    """An extractor, its name, and the numbers of its features and classes."""

    extractor: Extractor
    name: str
    features: int
    classes: int | None


def check_file(path: str | None, option: str, suffix: str) -> None:
    """Refuse a path that cannot be written, or is not of its kind; None is none."""
    if path is None:
        return
    if Path(path).suffix.lower() != suffix:
        raise UsageError(f"{option} must end in {suffix}, got {path}.")
    if Path(path).is_dir():
        raise UsageError(f"{option}: {path} is a folder, not a file.")
    with bad_input(option):
        check_writable(path)


def check_data(data: ImageData | None, opened: UnloadedModel) -> None:
    """Refuse images and labels that are not of the model's sizes and classes."""
    if data is None:
        return
    if data.images.shape[1:] != opened.shape:
        raise UsageError(
            f"--data: the images are {data.images.shape[1:]}, but the model makes {opened.shape}: bring them to its "
            "height, width and channels first (and say how, beside the figures)."
        )
    if data.labels is not None and opened.classes is not None and data.labels.max() >= opened.classes:
        raise UsageError(
            f"--data: the labels go to {data.labels.max()}, but the model has {opened.classes} classes, "
            f"0 ... {opened.classes - 1}."
        )


def open_extractor(args: argparse.Namespace, shape: tuple[int, int, int]) -> NamedExtractor:
    """Load the extractor, and see what it makes of images of a shape, (H, W, C)."""
    try:
        with bad_input("--features"):
            extractor = load_extractor(args.features)
            return NamedExtractor(extractor, args.features, *feature_shapes(extractor, shape))
    except TypeError as error:
        raise UsageError(f"--features: {' '.join(str(error).split())}") from error
    except UsageError as error:
        if args.features != EMBEDDED:
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
