"""The files of a network's weights: one file or pieces that an index lists, in one variant or several."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.io.configs import read_json
from cmjax.io.safetensors_files import read_safetensors
from cmjax.io.weights import some_of
from cmjax.models.families import FAMILIES

__all__ = ["of_variant", "read_pieces", "read_weights"]


def of_variant(stem: str, variant: str | None) -> str:
    """Name what a variant's files begin with.

    Raises:
      ValueError: variant is not a word.

    Example:
      >>> of_variant("diffusion_pytorch_model", "fp16")
      'diffusion_pytorch_model.fp16'
    """
    if variant is None:
        return stem
    if not isinstance(variant, str) or not re.fullmatch(r"[\w-]+", variant):
        raise ValueError(f"variant must be a word such as fp16, got {variant!r}.")
    return f"{stem}.{variant}"


def read_weights(folder: Path, variant: str | None, *, stem: str) -> dict[str, np.ndarray]:
    """Read one file, or all the pieces that an index lists.

    Args:
      folder: a network's folder, such as unet/.
      variant: the variant of the weights, or None.
      stem: the stem of the family's files.

    Raises:
      FileNotFoundError: there are no such weights.
      ValueError: variant is not a word, or a file is damaged.
    """
    whole = folder / f"{of_variant(stem, variant)}.safetensors"
    if whole.exists():
        return read_safetensors(whole)
    index = folder / f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
    if not index.exists():
        raise FileNotFoundError(f"{folder} has no {whole.name}: the network has no weights.{_remedy(folder, stem)}")
    return read_pieces(index, read_safetensors)


def read_pieces(index: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read weights from the files that an index lists; from each file, only the tensors that the index assigns to it.

    Args:
      index: the JSON file, which is beside the pieces.
      read: the function that reads one piece.

    Raises:
      FileNotFoundError: a piece is missing.
      ValueError: the index names no files beside it, a piece is damaged, or it lacks a tensor.
    """
    listed = read_json(index)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not names or not all(map(_is_file_name, names.values())):
        raise ValueError(f"{index} must hold a weight_map from tensors to the names of files beside it.")
    pieces = {piece: read(index.parent / piece) for piece in sorted(set(names.values()))}
    if missing := [name for name, piece in names.items() if name not in pieces[piece]]:
        raise ValueError(f"{index} lists tensors that are not in their files: {some_of(missing)}.")
    return {name: pieces[piece][name] for name, piece in names.items()}


def _is_file_name(name: Any) -> bool:
    """Check that a name is a file beside the index, and not a path to another folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _remedy(folder: Path, stem: str) -> str:
    """Suggest what to do if the weights are of another variant or format."""
    names = sorted(path.name for path in folder.glob(f"{stem}*"))
    variants = sorted(
        {found[1] for name in names if (found := re.fullmatch(rf"{re.escape(stem)}\.([\w-]+)\.safetensors", name))}
    )
    if variants:
        return f" There is a variant: load(..., variant={variants[0]!r})."
    if f"{stem}.safetensors" in names:
        return " There are weights that are no variant: leave variant out."
    others = [name for name in names if not name.endswith(".json")]
    model = folder.parent if folder.name in [family.folder for family in FAMILIES] else folder
    remedy = f"cmjax convert {model} OUT" if any(name.endswith(".bin") for name in others) else "convert it first"
    return f" It holds {', '.join(others)}: only safetensors are loaded; {remedy}." if others else ""
