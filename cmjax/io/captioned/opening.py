"""From what a user calls the data to captioned pictures: a folder, tar files, parquet files, or a pattern of names."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cmjax.io.captioned.folders import open_folder
from cmjax.io.captioned.parquet import open_parquet
from cmjax.io.captioned.source import CaptionedSource
from cmjax.io.captioned.tars import open_tars
from cmjax.io.captions import some
from cmjax.io.image_sets import is_picture

__all__ = ["open_captions"]

_OPENERS: dict[str, Callable[[Sequence[Path]], CaptionedSource]] = {".tar": open_tars, ".parquet": open_parquet}


def open_captions(data: str | Path | Sequence[str | Path]) -> CaptionedSource:
    """Open captioned pictures without decoding them: there may be more than memory holds, and of many sizes.

    - A folder of pictures with their captions, as `read_captions` describes it.
    - Tar files in WebDataset's form: `KEY.jpg` (or another kind of picture) with `KEY.txt`, one caption a line, or
      with `KEY.json`, an object with `caption` or `text`: a caption, or a list of alternatives. KEY is the path up to
      the first dot of the file's name. Other members are ignored. The files must not be compressed.
    - Parquet files with a column `image`, of bytes or of structs with `bytes`, and a column `text` or `caption`. They
      need pyarrow (`pip install 'cmjax[data]'`). A picture costs reading its row group: small ones are read fastest.

    Offsets and captions are read once, now, and kept: some 300 bytes a picture beside its texts. Nothing is unpacked
    to disk, nothing that a file names is followed, and nothing is executed.

    Args:
      data: a folder, a file, a pattern such as `photos/*.tar`, or several files of one kind. A folder without pictures
        stands for the tar or parquet files in it. Files are read in the order of their names.

    Returns:
      The pictures, by number.

    Raises:
      FileNotFoundError: nothing is there, or it holds no pictures.
      ModuleNotFoundError: pyarrow is missing.
      ValueError: a picture has no caption (the message says how many), a caption no picture, a file is damaged, or
        files are of several kinds.

    Example:
      >>> import io, pathlib, tarfile, tempfile
      >>> from PIL import Image
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "000.tar"
      >>> picture = io.BytesIO()
      >>> Image.new("RGB", (12, 8)).save(picture, "PNG")
      >>> with tarfile.open(path, "w") as file:
      ...     for name, raw in (("0001.png", picture.getvalue()), ("0001.txt", b"a dark night")):
      ...         member = tarfile.TarInfo(name)
      ...         member.size = len(raw)
      ...         file.addfile(member, io.BytesIO(raw))
      >>> source = open_captions(path)
      >>> source[0].captions, source[0].image.shape
      (('a dark night',), (8, 12, 3))
    """
    paths = [Path(one) for one in _named(data)]
    if len(paths) == 1 and paths[0].is_dir():
        inner = [path for path in sorted(paths[0].iterdir()) if not path.name.startswith(".")]
        packed = [path for path in inner if path.suffix.lower() in _OPENERS and path.is_file()]
        if not packed or any(map(is_picture, inner)):
            return open_folder(paths[0])
        paths = packed
    for path in paths:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise FileNotFoundError(f"{path} {what}; give a folder, or .tar or .parquet files.")
    kinds = sorted({path.suffix.lower() for path in paths})
    if len(kinds) != 1 or kinds[0] not in _OPENERS:
        raise ValueError(
            f"data must be a folder, .tar files or .parquet files, got {some(paths)}: give files of one kind "
            "(and decompress .tar.gz first)."
        )
    return _OPENERS[kinds[0]](paths)


def _named(data: str | Path | Sequence[str | Path]) -> list[str]:
    """The files that are named, a pattern's in order."""
    if not isinstance(data, str | os.PathLike):
        return sorted({os.fspath(one) for one in data})
    text = os.fspath(data)
    if os.path.exists(text) or not glob.has_magic(text):
        return [text]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise FileNotFoundError(f"no file matches {text}.")
    return found
