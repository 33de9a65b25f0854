"""Files of torch.save, `.pt`, `.pth` and `.bin`: their tensors as NumPy arrays, with no torch and nothing executed.

Such a file is a zip archive since torch 1.6: `NAME/data.pkl` is a pickle (which `pickled` reads as data) that says how
tensors lie in the records `NAME/data/0`, `NAME/data/1`, ... The older form is five pickles followed by the numbers.
Either way the numbers lie in the file as they are, so that the arrays are views of the file, mapped into memory:
reading takes no time and no copy, and the system reads what is used.

References:
  torch.save's documentation, notes on serialization: "Saved file format", "torch.load with legacy format".
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmjax.io.torch_files.archives import Record, stored_records
from cmjax.io.torch_files.pickles import LONGEST, Storage, StridedTensor, printable, read_pickle

__all__ = ["TorchFile", "check_path", "open_pt", "read_pt"]

_NESTED = ("state_dict", "model", "ema")
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_UNKNOWN_VERSION = "it is of a version of torch.save that is not known; load it with torch and save it again."

# Views may show the same numbers many times over (an expanded tensor takes no room in a file): of honest files a few
# times, and never so often that a small file becomes a large network.
_MOST_SHARING = 16

_Locate = Callable[[Storage], Record]


class TorchFile(NamedTuple):
    """What a file of torch.save holds.

    Attributes:
      value: as `read_pickle` gives it: tensors are records. Do not walk what is nested, which may hold itself.
      arrays: from tensors by name to views of the file; it raises ValueError as `read_pt` does.
    """

    value: Any
    arrays: Callable[[Mapping[str, StridedTensor]], dict[str, np.ndarray]]


def read_pt(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a file of torch.save: `.pt`, `.pth` or `.bin`.

    Nothing in the file is executed: it may hold a dict of tensors, and what else it asks for is refused by name. Sums
    of its bytes are not checked, as torch does not check them either.

    Args:
      path: the file. It holds a dict from names to tensors (or parameters), or such a dict as `state_dict`, `model` or
        `ema` beside other things.

    Returns:
      The tensors by name, in the file's order and dtypes (bfloat16 through ml_dtypes): read-only views of the file,
      which must stay as it is while they are used.

    Raises:
      TypeError: path is no path.
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another kind, holds something else than tensors, or was written on a
        big-endian machine.

    Example:
      >>> read_pt("cd_imagenet64_l2.pt")
      Traceback (most recent call last):
      FileNotFoundError: there is no weights file cd_imagenet64_l2.pt.
    """
    opened = open_pt(path)
    try:
        tensors = _state_dict(opened.value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return opened.arrays(tensors)


def open_pt(path: str | Path) -> TorchFile:
    """Read what a file of torch.save holds, whatever it is made of, and leave its tensors where they are.

    Args:
      path: as for `read_pt`.

    Raises:
      TypeError: path is no path.
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another kind, asks for what no dict of tensors needs, or was written on a
        big-endian machine.
    """
    check_path(path)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    with path.open("rb") as opened:
        file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def arrays(tensors: Mapping[str, StridedTensor]) -> dict[str, np.ndarray]:
        try:
            if sum(tensor.nbytes for tensor in tensors.values()) > _MOST_SHARING * len(file):
                raise ValueError(
                    f"its tensors would take more than {_MOST_SHARING} times the file's size; save copies, not views."
                )
            return {name: _view(file, name, tensor, locate(tensor.storage)) for name, tensor in tensors.items()}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    try:
        top, locate = _read_zip(file) if file[:4] == b"PK\3\4" else _read_legacy(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return TorchFile(top, arrays)


def check_path(path: str | Path) -> None:
    """Refuse what is no path.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be the path of a file, got a {type(path).__name__}.")


def _read_zip(file: mmap.mmap) -> tuple[Any, _Locate]:
    records = stored_records(file)
    tops = [name for name in records if name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise ValueError(f"a zip archive of torch.save holds one data.pkl in a folder, but this one holds {len(tops)}.")
    prefix = tops[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        start, size = records[prefix + name]
        return file[start : start + min(size, LONGEST + 1)]

    if prefix + "byteorder" in records and read("byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine; load it there and save it as safetensors.")

    def locate(storage: Storage) -> Record:
        name = f"{prefix}data/{storage.key}"
        if name not in records:
            raise ValueError(f"record {printable(name)} is missing; the file is damaged.")
        return records[name]

    return read_pickle(read("data.pkl")).value, locate


def _read_legacy(file: mmap.mmap) -> tuple[Any, _Locate]:
    """Read the form of torch before 1.6: magic number, version, system, tensors, order of the storages; then those."""
    if file[:1] != b"\x80":
        raise ValueError("it is no file of torch.save: neither a zip archive nor a pickle.")
    head = file[: LONGEST + 1]  # all five share it
    magic = read_pickle(head)
    if magic.value != _LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save.")
    version = read_pickle(head, magic.end)
    if version.value != _LEGACY_VERSION:
        raise ValueError(_UNKNOWN_VERSION)
    system = read_pickle(head, version.end)
    if type(system.value) is not dict:
        raise ValueError(_UNKNOWN_VERSION)
    if system.value.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine; load it there and save it as safetensors.")
    top = read_pickle(head, system.end)
    order = read_pickle(head, top.end)
    if type(order.value) is not list:
        raise ValueError(_UNKNOWN_VERSION)
    storages, end = top.storages, order.end
    records: dict[str, Record] = {}
    for key in order.value:
        if type(key) is not str or key not in storages or end + 8 > len(file):
            raise ValueError("its list of storages does not fit its tensors; the file is damaged or truncated.")
        size = int.from_bytes(file[end : end + 8], "little") * storages[key].dtype.itemsize
        records[key] = Record(end + 8, size)
        end += 8 + size

    def locate(storage: Storage) -> Record:
        if storage.key not in records:
            raise ValueError(f"its storage {printable(storage.key)} is missing; the file is damaged.")
        return records[storage.key]

    return top.value, locate


def _state_dict(top: Any) -> dict[str, StridedTensor]:
    """Find the one dict of tensors that a file holds."""
    if _is_state_dict(top):
        return top
    nested = [name for name in _NESTED if type(top) is dict and name in top]
    if len(nested) == 1 and _is_state_dict(top[nested[0]]):
        return top[nested[0]]
    raise ValueError(f"it must hold a dict from names to tensors, but it holds {_said(top)}.")


def _is_state_dict(value: Any) -> bool:
    return (
        type(value) is dict
        and bool(value)
        and all(type(key) is str and type(item) is StridedTensor for key, item in value.items())
    )


def _said(top: Any, most: int = 8) -> str:
    """What a file holds in place of a dict of tensors."""
    if type(top) is not dict:
        return "a single tensor" if type(top) is StridedTensor else f"something of type {type(top).__name__}"
    if not top:
        return "an empty dict"
    odd = [f"{key!r:.80}" for key in top if type(key) is not str][:most]
    if odd:
        return f"things under keys that are not names: {', '.join(odd)}"
    others = {key: item for key, item in top.items() if type(item) is not StridedTensor}
    tensors = ["tensors"] if len(others) < len(top) else []
    items = [f"{printable(key)!r} (of type {type(item).__name__})" for key, item in [*others.items()][:most]]
    return ", ".join([*tensors, *items, *(["more"] if len(others) > most else [])])


def _view(file: mmap.mmap, name: str, tensor: StridedTensor, record: Record) -> np.ndarray:
    """Show a tensor's numbers where they lie, after making sure that they lie inside of the record."""
    storage, shape, name = tensor.storage, tensor.shape, printable(name)
    size = storage.dtype.itemsize
    if record.size != storage.numel * size or record.start + record.size > len(file):
        raise ValueError(
            f"the numbers of tensor {name} take {storage.numel * size} bytes, but {record.size} are said to be there; "
            "the file is damaged or truncated."
        )
    if math.prod(max(n, 1) for n in shape) > 1 << 60:
        raise ValueError(f"tensor {name} has a shape that no tensor has.")
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, tensor.strides, strict=True))
    if last >= storage.numel:
        raise ValueError(
            f"tensor {name} reaches to number {last} of a storage of {storage.numel}; the file is damaged."
        )
    strides = [step * size if n > 1 else size for n, step in zip(shape, tensor.strides, strict=True)]
    return np.ndarray(shape, storage.dtype, file, record.start + tensor.offset * size, strides)
