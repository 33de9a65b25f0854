"""safetensors files: read by mapping them into memory, written tensor after tensor, so that no second copy is made."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cmjax.io.atomic import atomic_file
from cmjax.io.memory import forget_pages, forget_written_pages

__all__ = ["read_metadata", "read_safetensors", "write_safetensors"]

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_METADATA = "__metadata__"


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file, without copying any: the numbers are fetched when they are used.

    Args:
      path: the file. It must not be written to while the tensors are in use (to replace it by a new one is no harm).

    Returns:
      The tensors by name, read-only, in the file's dtypes (bfloat16 through ml_dtypes).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a safetensors file, its end is missing, or it holds a dtype that NumPy has not.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
      >>> write_safetensors({"a": np.arange(3.0)}, path)
      >>> read_safetensors(path)
      {'a': array([0., 1., 2.])}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}.")
    try:
        with safe_open(path, framework="np"):  # the library's own check of the header and of every offset
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); it may be truncated: fetch or write it again."
        ) from error
    return _map(path, mmap.ACCESS_READ)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts in the header of a safetensors file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}.")
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}).") from error


def _map(path: Path, access: int) -> dict[str, np.ndarray]:
    """Show the tensors of a whole safetensors file where they lie."""
    with path.open("rb" if access == mmap.ACCESS_READ else "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=access)
    start = 8 + int.from_bytes(mapped[:8], "little")
    entries = dict(_no_name_twice(json.loads(mapped[8:start], object_pairs_hook=list), path))
    entries.pop(_METADATA, None)
    return {name: _view(mapped, start, name, dict(entry), path) for name, entry in entries.items()}


def _no_name_twice(entries: list[tuple[str, Any]], path: Path) -> list[tuple[str, Any]]:
    names = [name for name, _ in entries]
    if len(names) != len(set(names)):
        raise ValueError(f"{path} names a tensor twice: {max(names, key=names.count)}.")
    return entries


def _view(mapped: mmap.mmap, start: int, name: str, entry: Mapping[str, Any], path: Path) -> np.ndarray:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"tensor {name} of {path} holds {entry['dtype']}; cmjax reads {', '.join(_DTYPES)}.")
    shape = tuple(entry["shape"])
    try:
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, buffer=mapped, offset=start + entry["data_offsets"][0])
    except ValueError as error:  # more axes, or longer ones, than NumPy has
        raise ValueError(f"tensor {name} of {path} has a shape that NumPy has not: {error}.") from error


def write_safetensors(
    tensors: Mapping[str, np.ndarray], path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file.

    Args:
      tensors: the tensors by name, in any memory layout.
      path: the file; it is replaced in one step, so that tensors may be views of the same file.
      metadata: texts for its header. The same tensors and texts make the same file, byte for byte.

    Raises:
      TypeError: something that is not an array.
      ValueError: a dtype that such files have not.
      OSError: it cannot be written.
    """
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise TypeError(f"tensors must map names to NumPy arrays, got a {type(value).__name__} for {name!r:.60}.")
        if name == _METADATA or not name.isprintable():
            raise ValueError(f"{name!r:.60} is not a name for a tensor of a safetensors file.")
        if value.dtype not in _DTYPES.values():
            raise ValueError(f"tensor {name} holds {value.dtype}; a safetensors file holds {', '.join(_DTYPES)}.")
    # The library lays the file out. The numbers follow one tensor at a time, because many are views with turned axes,
    # and copies of all of them at once would take as much memory as the network.
    blank = np.zeros(max((value.nbytes for value in tensors.values()), default=0), np.uint8)
    laid_out = {name: blank[: value.nbytes].view(value.dtype).reshape(value.shape) for name, value in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(
                laid_out, temporary, metadata={**(metadata or {}), "format": "pt"}
            )  # by which diffusers knows PyTorch's layout
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}.") from error
        _sort_header(temporary)
        for name, place in _map(temporary, mmap.ACCESS_WRITE).items():
            place[...] = tensors[name]
            forget_pages(tensors[name])
            forget_written_pages(place)


def _sort_header(path: Path) -> None:
    """Put the texts of a header in order: the library has none, and what is the same is to have the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
