"""What comes out: the names of the files, settled before anything is computed, the results and the strip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cmjax.cli.edit.inputs import InputPictures
from cmjax.cli.errors import UsageError
from cmjax.io.images import grid, to_uint8, write_png

__all__ = ["check_apart", "name_files", "write"]


def name_files(folder: Path, given: InputPictures, num: int) -> list[Path]:
    """Name the files of a folder that are to be written: one for each result, and last the strip."""
    stems = [Path(path).stem for path in given.paths]
    if len(set(stems)) < len(stems):
        stems = [f"{i}-{stem}" for i, stem in enumerate(stems)]
    return [*(folder / f"{stem}-{v + 1}.png" for stem in stems for v in range(num)), folder / "strip.png"]


def check_apart(files: list[Path], given: InputPictures) -> None:
    """Refuse to write what is read."""
    read = {os.path.realpath(path) for path in (*given.paths, *given.mask_paths)}
    for file in files:
        if os.path.realpath(file) in read:
            raise UsageError(f"--out: {file} is one of the pictures that are read, and would be lost.")


def write(files: list[Path], results: np.ndarray, columns: dict[str, np.ndarray], paths: list[str]) -> None:
    """Write the results, u8[P, V, H, W, C], if there is a folder for them, and the strip of what went in and out."""
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
