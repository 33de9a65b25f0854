"""Compile, load the weights, and draw with a progress bar: the order and the timing that commands share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from cmjax.cli.errors import bad_input
from cmjax.drawing import Batches, draw_all

__all__ = ["Drawing", "Ready", "draw", "get_ready", "progress_bar"]


class Ready(NamedTuple):
    """A compiled call, the model on its devices, and the seconds that compiling took."""

    draw: Batches
    model: Any
    compile_seconds: float


class Drawing(NamedTuple):
    """What was drawn, a pytree of arrays [count, ...], and the seconds that compiling and drawing took."""

    images: Any
    compile_seconds: float
    seconds: float


def get_ready(compile: Callable[[], Batches], load: Callable[[], Any]) -> Ready:
    """Compile and then load the weights: compiling takes memory that the weights can have after it.

    Raises:
      UsageError: the weights cannot be loaded.
    """
    start = time.perf_counter()
    compiled = compile()
    seconds = time.perf_counter() - start
    with bad_input():
        return Ready(compiled, compiled.place(load()), seconds)


def draw(compile: Callable[[], Batches], load: Callable[[], Any], count: int) -> Drawing:
    """Draw the images 0 ... count - 1.

    Raises:
      UsageError: the weights cannot be loaded.
    """
    ready = get_ready(compile, load)
    start = time.perf_counter()
    images = draw_all(ready.draw, ready.model, count, progress=partial(progress_bar, what="drawing"))
    return Drawing(images, ready.compile_seconds, time.perf_counter() - start)


def progress_bar(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Go through items with a bar and the time left on standard error, if there are several."""
    return track(items, what, console=Console(stderr=True), transient=True, disable=len(items) == 1)
