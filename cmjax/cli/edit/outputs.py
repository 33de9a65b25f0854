"""The files that `cmjax edit` writes: their names, which are checked before anything is computed, and the strip."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmjax.cli.errors import UsageError
from cmjax.io.images import grid, to_uint8, write_png

__all__ = ["check_apart", "name_files", "write"]


def name_files(folder: Path, paths: Sequence[str], num: int) -> list[Path]:
    """Name the files of a folder that are to be written: `num` results of each picture, and last the strip."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{i}-{stem}" for i, stem in enumerate(stems)]
    return [*(folder / f"{stem}-{v + 1}.png" for stem in stems for v in range(num)), folder / "strip.png"]


def check_apart(files: Sequence[Path], read: Sequence[str]) -> None:
    """Refuse to write a file that is read."""
    real = {os.path.realpath(path) for path in read}
    for file in files:
        if os.path.realpath(file) in real:
            raise UsageError(f"--out: {file} is one of the input pictures, which would be lost.")


def write(files: Sequence[Path], results: np.ndarray, columns: Mapping[str, np.ndarray], paths: Sequence[str]) -> None:
    """Write the results, one file each if there is a folder for them, and a strip of what went in and came out.

    Args:
      files: from `name_files`, or one for the strip alone.
      results: u8[P, V, H, W, C].
      columns: what is shown before the results, by title, f32[P, H, W, C].
      paths: of the pictures, which name the rows.
    """
    variants = results.shape[1]
    shown = {title: to_uint8(tiles) for title, tiles in columns.items()}
    if "known" in shown and (shown["known"] == shown["given"]).all():
        del shown["known"]
    titles = [*shown, *(["result"] if variants == 1 else map(str, range(1, variants + 1)))]
    tiles = np.concatenate([np.stack(list(shown.values()), axis=1), results], axis=1)
    names = [Path(path).name if len(Path(path).name) <= 24 else f"{Path(path).name[:22]}..." for path in paths]
    *singles, strip = files
    if singles:
        strip.parent.mkdir(exist_ok=True)
        for file, image in zip(singles, results.reshape(-1, *results.shape[2:]), strict=True):
            write_png(image, file)
    write_png(grid(tiles.reshape(-1, *tiles.shape[2:]), len(titles), row_labels=names, column_labels=titles), strip)
