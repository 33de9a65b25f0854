"""Pictures in parquet files, as the Hugging Face hub has them; read by pyarrow, row group after row group."""

from __future__ import annotations

import importlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cmjax.io.captioned.source import CaptionedSource
from cmjax.io.captions import caption_texts, some

__all__ = ["open_parquet"]

_PICTURES, _TEXTS = ("image", "bytes", "jpg", "png"), ("text", "caption", "captions")
_KEPT = 4  # row groups in memory


class _Rows:
    """Pictures by row. A row group is decoded as a whole, and the last few are kept."""

    def __init__(self, paths: Sequence[Path], groups: list[tuple[int, int, int]], column: str):
        self._paths, self._column = list(paths), column
        self._groups = np.array(groups, np.int64).reshape(-1, 3)  # file, row group of the file, rows
        self._ends = np.cumsum(self._groups[:, 2])
        self._begin()

    def _begin(self) -> None:
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """Row group, and row in it."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - int(self._ends[group] - self._groups[group, 2])

    def name(self, index: int) -> str:
        group, _ = self._place(index)
        file = self._groups[group, 0]
        first = np.searchsorted(self._groups[:, 0], file)
        before = 0 if first == 0 else int(self._ends[first - 1])
        return f"row {index - before} of {self._paths[file]}"

    def stamp(self, index: int) -> str:
        group, row = self._place(index)
        path = self._paths[self._groups[group, 0]]
        return f"{path.name} {self._groups[group, 1]} {row} {path.stat().st_size if row == 0 else ''}"

    def open(self, index: int) -> IO[bytes]:
        group, row = self._place(index)
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
            else:
                self._kept[group] = self._read(group)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            cell = self._kept[group][row].as_py()
        raw = cell.get("bytes") if isinstance(cell, dict) else cell
        if not raw or not isinstance(raw, bytes):
            raise ValueError(f"{self.name(index)} holds no picture: bytes of a file are wanted, not a path.")
        return io.BytesIO(raw)

    def _read(self, group: int) -> Any:
        file, number, _ = self._groups[group].tolist()
        with _pyarrow()[0].ParquetFile(self._paths[file]) as parquet:
            return parquet.read_row_group(number, columns=[self._column]).column(0)


def open_parquet(paths: Sequence[Path]) -> CaptionedSource:
    """Open parquet files with a column of pictures (`image`, of bytes or with `bytes`) and one of texts.

    Raises:
      ModuleNotFoundError: pyarrow is not installed.
      ValueError: a file is damaged, lacks a column, or a picture has no caption.
    """
    parquet, arrow = _pyarrow()
    groups: list[tuple[int, int, int]] = []
    captions: list[tuple[str, ...]] = []
    lacking: list[str] = []
    column = None
    for number, path in enumerate(paths):
        try:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                own, text = (_column(names, known, path) for known in (_PICTURES, _TEXTS))
                column = column or own
                if own != column:
                    raise ValueError(f"{path} must have its pictures in a column {column}, as {paths[0]} has.")
                groups += [(number, i, file.metadata.row_group(i).num_rows) for i in range(file.num_row_groups)]
                texts = file.read(columns=[text]).column(0).to_pylist()
        except (OSError, arrow.ArrowException) as error:
            raise ValueError(f"{path} is not a parquet file that can be read: {error}.") from error
        for row, said in enumerate(texts):
            if said is None or said == "" or said == []:
                lacking.append(f"row {row} of {path}")
            else:
                captions.append(caption_texts(said, f"row {row} of {path}"))
    if lacking:
        raise ValueError(
            f"parquet files must hold a caption for each picture, but {len(lacking):,} of "
            f"{len(lacking) + len(captions):,} lack one, such as {some(lacking)}: fill or drop these rows."
        )
    what = str(paths[0]) if len(paths) == 1 else f"{len(paths):,} parquet files"
    if not captions or column is None:
        raise FileNotFoundError(f"{what} holds no pictures.")
    return CaptionedSource(_Rows(paths, groups, column), captions, what)


def _column(names: Sequence[str], known: Sequence[str], path: Path) -> str:
    found = next((name for name in known if name in names), None)
    if found is None:
        raise ValueError(f"{path} must have a column {' or '.join(known)}, but it has {', '.join(names) or 'none'}.")
    return found


def _pyarrow() -> Any:
    """Import what reads the files, and what its errors are."""
    try:
        return importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow.lib")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "parquet files need pyarrow: pip install 'cmjax[data]'. Folders and tar files need no more."
        ) from error
