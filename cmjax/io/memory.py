"""Return unused memory to the system before more is needed, and refuse what there is no room for."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import jax
import numpy as np
from numpy.lib.array_utils import byte_bounds

__all__ = ["forget_pages", "forget_written_pages", "refuse_too_much", "return_freed_memory"]

# With a page the system maps what lies around it, up to the largest piece that it caches files in.
_AROUND = 2 << 20


def return_freed_memory() -> None:
    """Let the C library return unused pages to the system.

    Call it between compiling a large network and loading its weights. glibc keeps freed pages in a heap for each
    thread, which large arrays never use: more than half a GiB after XLA has compiled a network of 300 million
    parameters. Other C libraries neither have nor need the call.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def refuse_too_much(what: str, needed: int) -> None:
    """Refuse weights that this machine has no memory for, where it holds them and says how much is free (Linux).

    Args:
      what: is to be loaded, for the message.
      needed: bytes.

    Raises:
      MemoryError: there is less.
    """
    if jax.default_backend() != "cpu" or (free := _free_memory()) is None or needed <= free:
        return
    raise MemoryError(
        f"the weights of {what} take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: store them in half with "
        "param_dtype='bfloat16', or spread them over devices with sharding=."
    )


def _free_memory() -> int | None:
    """Bytes that programs can have without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def forget_pages(view: np.ndarray) -> None:
    """Drop the pages of a mapped file under an array; they are read again when they are needed.

    Args:
      view: an array over a read-only map, directly or through other views. Other arrays are left alone.
    """
    whole, base = _origin(view)
    if not whole.flags.writeable:  # what was written to a private map is nowhere else
        _drop(view, base)


def forget_written_pages(view: np.ndarray) -> None:
    """Drop the pages under an array that was written; the system keeps what is written until the file has it.

    Args:
      view: an array over a map that is shared with its file, directly or through other views. It is not checked.
    """
    _drop(view, _origin(view)[1])


def _origin(view: np.ndarray) -> tuple[np.ndarray, object]:
    """Find the array that was made over a map, and the map."""
    whole, base = view, view.base
    while isinstance(base, np.ndarray):
        whole, base = base, base.base
    return whole, base


def _drop(view: np.ndarray, base: object) -> None:
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and view.size:
        origin = np.frombuffer(base, np.uint8).ctypes.data
        start, end = (bound - origin for bound in byte_bounds(view))
        start, end = max(0, start - _AROUND), min(len(base), end + _AROUND)
        start -= start % mmap.PAGESIZE
        base.madvise(mmap.MADV_DONTNEED, start, end - start)
