"""Pictures that are files of their own, in a folder with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from cmjax.io.captioned.source import CaptionedSource
from cmjax.io.captions import captioned_files

__all__ = ["open_folder"]


class _Paths:
    def __init__(self, folder: Path, paths: Sequence[Path]):
        self._folder, self._paths = folder, [str(path.relative_to(folder)) for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return str(self._folder / self._paths[index])

    def stamp(self, index: int) -> str:
        return f"{self._paths[index]} {(self._folder / self._paths[index]).stat().st_size}"

    def open(self, index: int) -> IO[bytes]:
        return (self._folder / self._paths[index]).open("rb")


def open_folder(folder: Path) -> CaptionedSource:
    """Open a folder that `read_captions` could read; but its pictures may differ in size."""
    told = captioned_files(folder)
    return CaptionedSource(_Paths(folder, list(told)), list(told.values()), str(folder))
