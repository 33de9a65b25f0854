"""Return unused memory to the system before more is needed."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from numpy.lib.array_utils import byte_bounds

__all__ = ["forget_pages", "return_freed_memory"]

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


def forget_pages(view: np.ndarray) -> None:
    """Drop the pages of a mapped file under an array; they are read again when they are needed.

    Args:
      view: an array over a read-only map, directly or through other views. Other arrays are left alone.
    """
    whole, base = view, view.base
    while isinstance(base, np.ndarray):
        whole, base = base, base.base
    if whole.flags.writeable:  # what was written to a private map is nowhere else
        return
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and view.size:
        origin = np.frombuffer(base, np.uint8).ctypes.data
        start, end = (bound - origin for bound in byte_bounds(view))
        start, end = max(0, start - _AROUND), min(len(base), end + _AROUND)
        start -= start % mmap.PAGESIZE
        base.madvise(mmap.MADV_DONTNEED, start, end - start)
