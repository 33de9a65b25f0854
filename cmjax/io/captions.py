"""Read pictures with their captions: text files beside them, or the lines of a metadata.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cmjax.io.image_sets import is_picture, read_pictures

__all__ = ["Captioned", "caption_lines", "caption_texts", "captioned_files", "read_captions", "some"]

_METADATA = "metadata.jsonl"


class Captioned(NamedTuple):
    """Pictures u8[N, H, W, C], and the captions of each: one or more texts that may stand for one another."""

    images: np.ndarray
    captions: tuple[tuple[str, ...], ...]


def read_captions(folder: str | Path) -> Captioned:
    r"""Read a folder of pictures and their captions.

    In a folder with a `metadata.jsonl`, each of its lines is a JSON object with `file_name`, a picture's path within
    the folder, and `text`, its caption or a list of alternatives; other keys are ignored. The Hugging Face hub's
    `imagefolder` data sets have this form. Pictures come in the order of the lines.

    Else the captions of `NAME.png` are the lines of `NAME.txt` beside it, alternatives of one another. Blank lines are
    skipped. Pictures come in the order of their paths.

    Pictures may lie in folders within the folder. Hidden files and folders are skipped. The pictures are read as
    `read_images` reads them, and must have one size. Nothing in the files is executed.

    Args:
      folder: the folder.

    Returns:
      The pictures and their captions.

    Raises:
      FileNotFoundError: there is no such folder, it holds no pictures, or a picture that metadata.jsonl names is not
        there.
      ValueError: a picture has no caption, a caption has no picture, a text is empty or not UTF-8, a line is not such
        an object or names a path outside of the folder, or the pictures are not as `read_images` wants them.

    Example:
      >>> import pathlib, tempfile
      >>> from cmjax.io import write_png
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> write_png(np.zeros((8, 8, 3), np.uint8), folder / "night.png")
      >>> _ = (folder / "night.txt").write_text("a dark night\nno light at all\n")
      >>> data = read_captions(folder)
      >>> data.images.shape, data.captions
      ((1, 8, 8, 3), (('a dark night', 'no light at all'),))
    """
    told = captioned_files(folder)
    return Captioned(read_pictures(list(told)), tuple(told.values()))


def captioned_files(folder: str | Path) -> dict[Path, tuple[str, ...]]:
    """Read the captions of a folder of pictures, and no picture.

    Args:
      folder: as for `read_captions`.

    Returns:
      The captions of each picture's file, in the order of the pictures.

    Raises:
      FileNotFoundError: as for `read_captions`.
      ValueError: as for `read_captions`, but for what pictures hold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}; give a folder of pictures with {_METADATA}, or with .txt files.")
    pictures, texts = _files(folder)
    if not pictures:
        raise FileNotFoundError(
            f"{folder} holds no pictures; give a folder of .png, .jpg or .webp files with {_METADATA}, or with .txt "
            "files."
        )
    return _of_metadata(folder, pictures) if (folder / _METADATA).exists() else _of_texts(folder, pictures, texts)


def some(names: Sequence[object], most: int = 3) -> str:
    """Name the first few of many.

    Example:
      >>> some(["a.png", "b.png", "c.png", "d.png"]), some(["a.png"])
      ('a.png, b.png, c.png, ...', 'a.png')
    """
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures and the texts anywhere in a folder."""
    files = sorted(path for path in folder.rglob("*") if not _is_hidden(path.relative_to(folder)))
    return [p for p in files if is_picture(p)], [p for p in files if p.suffix.lower() == ".txt" and p.is_file()]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# ---- text files ------------------------------------------------------------------------------------------------------


def _of_texts(folder: Path, pictures: list[Path], texts: list[Path]) -> dict[Path, tuple[str, ...]]:
    by_stem = {path.with_suffix(""): path for path in texts}
    alone = [path for path in pictures if path.with_suffix("") not in by_stem]
    if len(alone) == len(pictures):
        raise ValueError(
            f"{folder} must hold captions, but has neither {_METADATA} nor a text for any of {len(pictures):,} "
            f"pictures: write the caption of {alone[0].name} into {_text(alone)}, and so for each picture."
        )
    if alone:
        raise ValueError(
            f"{folder} must hold a caption for each picture, but {_count(alone, pictures)} lack one, such as "
            f"{some(alone)}: write it into {_text(alone)}, or move the picture away."
        )
    stems = {path.with_suffix("") for path in pictures}
    if lost := [path for stem, path in by_stem.items() if stem not in stems]:
        raise ValueError(
            f"{folder} must hold a picture for each caption, but {_count(lost, texts)} lack one, such as {some(lost)}: "
            "move the text away, or put its picture beside it."
        )
    read = {stem: caption_lines(path.read_bytes(), str(path)) for stem, path in by_stem.items()}
    return {path: read[path.with_suffix("")] for path in pictures}


def caption_lines(raw: bytes, where: str) -> tuple[str, ...]:
    """Read the contents of a text file: captions, one a line.

    Raises:
      ValueError: there is none, or the file is not UTF-8.
    """
    lines = [line.strip() for line in _decoded(raw, where).splitlines()]
    if not any(lines):
        raise ValueError(f"{where} must hold a caption, but it is empty: write one, or move its picture away too.")
    return tuple(filter(None, lines))


def _text(pictures: list[Path]) -> str:
    return pictures[0].with_suffix(".txt").name


def _count(some: list[Path], of: list[Path]) -> str:
    return f"{len(some):,} of {len(of):,}"


# ---- metadata.jsonl --------------------------------------------------------------------------------------------------


def _of_metadata(folder: Path, pictures: list[Path]) -> dict[Path, tuple[str, ...]]:
    file, there = folder / _METADATA, set(pictures)
    found: dict[Path, tuple[str, ...]] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        where = f"{file}, line {number}"
        if not (text := _decoded(line, where).strip()):
            continue
        name, captions = _entry(text, where)
        path = folder / name
        if path in found:
            raise ValueError(f"{where}: file_name must be new, but {name} had a line before: give a list of texts.")
        if path not in there:
            what = "is not there" if not path.exists() else "is not a picture, by its name"
            raise FileNotFoundError(f"{where}: file_name must be a picture in {folder}, but {name} {what}.")
        found[path] = captions
    if alone := [path for path in pictures if path not in found]:
        raise ValueError(
            f"{file} must hold a line for each picture, but {_count(alone, pictures)} lack one, such as {some(alone)}: "
            "add it, or move the picture away."
        )
    return found


def _entry(line: str, where: str) -> tuple[PurePosixPath, tuple[str, ...]]:
    """Read one line: a path within the folder, and its captions."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON object, but it is not valid JSON: {error}.") from error
    if not isinstance(entry, Mapping) or not {"file_name", "text"} <= entry.keys():
        raise ValueError(f"{where} must be a JSON object with file_name and text, got {line:.60}.")
    return _path(entry["file_name"], where), caption_texts(entry["text"], where)


def _path(name: Any, where: str) -> PurePosixPath:
    path = PurePosixPath(name if isinstance(name, str) else "")
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(path) or _is_hidden(Path(path)):
        raise ValueError(
            f"{where}: file_name must be a path within the folder, of files that are not hidden, got {name!r:.60}: "
            "write it from the folder on, such as a/0001.png."
        )
    return path


def caption_texts(text: Any, where: str) -> tuple[str, ...]:
    """Read a caption, or a list of alternatives, from what JSON holds.

    Raises:
      ValueError: it is neither, or one is empty.
    """
    texts = text if isinstance(text, list) else [text]
    if not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise ValueError(
            f"{where}: text must be a caption that is not empty, or a list of such, got {text!r:.60}: write one, or "
            "take out the line and its picture."
        )
    return tuple(one.strip() for one in texts)


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} must be UTF-8, but is not at byte {error.start}: save it as UTF-8.") from None
