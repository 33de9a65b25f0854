"""The names of a model's classes: its folder's labels.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmjax.io.configs import read_json
from cmjax.io.folder import folder_of
from cmjax.io.locate import resolve

__all__ = ["LABELS", "check_label_names", "label_names"]

LABELS = "labels.json"


def label_names(
    path_or_name: str | Path, *, revision: str | None = None, variant: str | None = None
) -> tuple[str, ...] | None:
    """Read the names of a model's classes, in order, or None if they have no names.

    Args:
      path_or_name: as for `load`.
      revision: as for `load`.
      variant: as for `load`, so that a repository is downloaded once for both.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: labels.json is not a list of strings.

    Example:
      >>> import cmjax.io
      >>> cmjax.io.label_names("fashion-mnist-cm")[0]
      'T-shirt/top'
    """
    found = resolve(path_or_name, revision=revision, variant=variant)
    folder = folder_of(found) if found.is_file() else found
    if folder is None or not (folder / LABELS).exists():
        return None
    path = folder / LABELS
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must be a list of texts, one a class.")
    return tuple(names)


def check_label_names(names: Any, classes: int | None) -> None:
    """Check that there is one name for each class.

    Raises:
      ValueError: they are not one text for each.
    """
    is_list = (
        isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names)
    )
    if not is_list or len(names) != (classes or 0):
        got = len(names) if is_list else f"{names!r:.60}"
        raise ValueError(f"label_names must be {classes or 0} texts, one for each class of the network, got {got}.")
