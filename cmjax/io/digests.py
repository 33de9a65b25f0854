"""Identify files and models by their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cmjax.io.locate import resolve

__all__ = ["digest", "file_digest"]

_DIGESTED = {".json", ".safetensors", ".bin", ".npz"}


def _counts(path: Path) -> bool:
    """Whether a file is a part of a model: weights, configs, a tokenizer's merges."""
    return (path.suffix in _DIGESTED or path.name == "merges.txt") and path.is_file()


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(
    path_or_name: str | Path, *, revision: str | None = None, variant: str | None = None, whole: bool = False
) -> str:
    """Identify a model or an artifact: the SHA-256 of its files' names and contents, except documents such as a README.

    All weights count, whichever variant is read.

    Args:
      path_or_name: as for `load`, or an artifact's folder.
      revision: as for `load`.
      variant: as for `load`: which weights to download from a repository.
      whole: whether to download all parts of a text-to-image model.

    Raises:
      FileNotFoundError: there is no such model.
      ModuleNotFoundError: as for `load`.

    Example:
      >>> import cmjax
      >>> cmjax.io.digest("fashion-mnist-cm") == cmjax.io.digest("fashion-mnist-tcd")
      False
    """
    path = resolve(path_or_name, revision=revision, variant=variant, whole=whole)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _counts(p))
    sums = hashlib.sha256()
    for file in files:
        sums.update(f"{file.relative_to(path) if path.is_dir() else ''} {file_digest(file)}\n".encode())
    return sums.hexdigest()
