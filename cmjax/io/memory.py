"""Memory that is not needed any more, given back to the system before much more is asked for."""

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
    """Have the C library return the pages that nothing uses.

    Call it between compiling a large network and loading its weights. glibc keeps freed pages for later, in a heap for
    each thread, where large arrays are never put: more than half a GiB after XLA has compiled a network of 300 million
    parameters. Other C libraries do not have the call, nor the need.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def forget_pages(view: np.ndarray) -> None:
    """Drop the pages of a mapped file that an array looks at; looked at again, they are read again.

    Args:
      view: of a read-only map, through any number of other views. Of anything else, nothing is dropped.
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
