"""Make what later steps need while an earlier one runs."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(make: Callable[[int], T], start: int = 0, *, depth: int = 2, workers: int = 1) -> Iterator[T]:
    """Yield make(start), make(start + 1), ... without end; `depth` of them are made ahead, in threads.

    An error of make(i) is raised where the i-th value is asked for. Threads end with the iterator.

    Args:
      make: makes one value. With several workers it is called from several threads at once.
      start: the first number.
      depth: how many are made, or waiting, ahead of the one that is asked for.
      workers: threads.

    Example:
      >>> list(itertools.islice(ahead(lambda i: i * i, 3), 3))
      [9, 16, 25]
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cmjax-data")
    try:
        numbers = itertools.count(start)
        waiting = deque(pool.submit(make, next(numbers)) for _ in range(depth))
        while True:
            value = waiting.popleft().result()
            waiting.append(pool.submit(make, next(numbers)))
            yield value
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
