"""The log of a run: one JSON object a line. A kill and a resume leave the same log as an uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cmjax.io.atomic import atomic_file

__all__ = ["append", "cut", "read_log"]


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line."""
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


def cut(path: Path, step: int) -> None:
    """Remove what a resumed run logged after its checkpoint, and half-written lines."""
    if path.exists():
        kept = [entry for entry in read_log(path) if entry["step"] <= step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a log in order, skipping lines that are not entries."""
    entries = [_entry(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry is not None]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    is_entry = isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] >= 0
    return entry if is_entry else None
