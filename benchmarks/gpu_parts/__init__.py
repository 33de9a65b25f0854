"""The parts of `gpu.py`. A part is a function with a decorator; a file in this folder is found by being here.

    @part("name", place=3, share=40)
    def name(run: Run) -> None:
        '''One line for the table.'''
        run.row("a network, batch 64", batch=64, ms=12.3)
        run.target(1.04, 1.05, "loop over forward calls")

Every part has a process of its own. The file is imported while the part before still runs, so nothing may touch the
device, or take long, before the function is called; other benchmark programs are imported inside it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common import target

__all__ = ["PARTS", "Part", "Run", "find", "part", "read", "write"]


class Part(NamedTuple):
    """A registered part: where it stands in the order of worth, and its share of the time that is left."""

    name: str
    place: float
    share: float
    about: str
    measure: Callable[[Run], None]
    warm: tuple[str, ...]
    jax: bool
    xla_flags: str


PARTS: dict[str, Part] = {}


def part(
    name: str, *, place: float, share: float, warm: tuple[str, ...] = (), jax: bool = True, xla_flags: str = ""
) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Register a part.

    Args:
        name: of the part and of its result file.
        place: parts run in ascending order: the more a result is worth, the lower.
        share: a part may take `share` over the sum of the shares from it to the last, of the time that is left.
        warm: modules that its process imports while the part before runs, if they are installed.
        jax: whether it computes with JAX, so that its process gets the device ready as well.
        xla_flags: added to XLA_FLAGS of its process.
    """

    def register(measure: Callable[[Run], None]) -> Callable[[Run], None]:
        about = (measure.__doc__ or "").strip().splitlines()[0]
        PARTS[name] = Part(name, place, share, about, measure, warm, jax, xla_flags)
        return measure

    return register


def find() -> list[Part]:
    """Import every file of this folder; the parts in order of worth."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        importlib.import_module(f"gpu_parts.{path.stem}")
    return sorted(PARTS.values(), key=lambda each: each.place)


def read(folder: Path, name: str) -> dict[str, Any]:
    """Read the result of a part; empty where there is none."""
    try:
        return json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write a result so that its file is whole at every moment."""
    path = folder / f"{name}.json"
    half = path.with_suffix(".half")
    half.write_text(json.dumps(result, indent=1, default=float) + "\n")
    os.replace(half, path)


class Run:
    """What a part is given: a clock, the size to measure at, and a place for results."""

    def __init__(self, folder: Path, result: dict[str, Any], seconds: float, *, tiny: bool):
        self.folder, self.result, self.tiny = folder, result, tiny
        self._start, self._end = time.monotonic(), time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left to this part."""
        return self._end - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Whether so many seconds are left; if not, what is left out is written down."""
        if self.tiny or self.left() >= seconds:
            return True
        self.leave_out(what)
        return False

    def leave_out(self, what: str) -> None:
        """Write down what there was no time for."""
        self.result["left_out"].append(what)
        self.save()

    def earlier(self, name: str) -> dict[str, Any]:
        """The result of another part of this run; empty where there is none."""
        return read(self.folder, name)

    def row(self, name: str, **figures: Any) -> None:
        """Write a measurement down at once."""
        self.result["rows"].append({"name": name, **figures})
        self.save()

    def target(self, value: float, limit: float, rule: str, *, at_least: bool = False, **about: Any) -> None:
        """Write down whether a figure keeps to its limit; `about` says what it was, for the profile of a miss."""
        self.result["targets"].append(target(value, limit, rule, at_least=at_least) | about)
        self.save()

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Let a failure be written down, and not stop the part."""
        try:
            yield
        except Exception:
            self.result["errors"].append({"what": what, "traceback": traceback.format_exc()[-6000:]})
            self.save()

    def save(self) -> None:
        """Write all that is known so far."""
        self.result["seconds"] = round(time.monotonic() - self._start, 2)
        write(self.folder, self.result["part"], self.result)
