"""Pictures in tar shards, as WebDataset writes them: an index of offsets is built once, and nothing is extracted."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from cmjax.io.captioned.source import CaptionedSource
from cmjax.io.captions import caption_lines, caption_texts, some
from cmjax.io.image_sets import is_picture

__all__ = ["open_tars"]

_KEYS = ("caption", "text")  # of a .json beside a picture
_LARGEST_TEXT = 16 << 20  # bytes; what is larger is no caption


class _Place(NamedTuple):
    name: str
    start: int
    size: int


class _Members:
    """Pictures in tar files, by file, offset and length."""

    def __init__(self, paths: Sequence[Path], files: list[int], places: list[_Place]):
        self._paths, self._names = list(paths), [place.name for place in places]
        self._files = np.array(files, np.int32)
        self._spans = np.array([place[1:] for place in places], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"{self._names[index]} in {self._paths[self._files[index]]}"

    def stamp(self, index: int) -> str:
        return f"{self._paths[self._files[index]].name} {self._names[index]} {self._spans[index, 1]}"

    def open(self, index: int) -> IO[bytes]:
        start, size = self._spans[index].tolist()
        return _open_part(self._paths[self._files[index]], start, size)


def open_tars(paths: Sequence[Path]) -> CaptionedSource:
    """Open tar files: `KEY.jpg` (or another picture) with `KEY.txt`, or with a `KEY.json` of `caption` or `text`.

    Raises:
      ValueError: a file is no plain tar file or is cut off, a picture has no caption, or a caption no picture.
    """
    files: list[int] = []
    places: list[_Place] = []
    captions: list[tuple[str, ...]] = []
    lacking: list[str] = []
    for number, path in enumerate(paths):
        with path.open("rb") as stream:
            for key, group in _groups(path).items():
                picture = _only(group, is_picture_name, f"{path}: pictures of {key}")
                told = _captions(stream, group, path)
                if picture is None and told is not None:
                    raise ValueError(f"{path} must hold a picture for each caption, but there is none of {key}.")
                if picture is None:
                    continue
                if told is None:
                    lacking.append(picture.name)
                    continue
                files.append(number)
                places.append(picture)
                captions.append(told)
    what = str(paths[0]) if len(paths) == 1 else f"{len(paths):,} tar files"
    if lacking:
        raise ValueError(
            f"{what} must hold a caption for each picture, but {len(lacking):,} of {len(lacking) + len(places):,} lack "
            f"one, such as {some(lacking)}: write it into KEY.txt, or into KEY.json as 'caption'."
        )
    if not places:
        raise FileNotFoundError(f"{what} holds no pictures.")
    return CaptionedSource(_Members(paths, files, places), captions, what)


def is_picture_name(name: str) -> bool:
    """Whether a member is a picture, by its name."""
    return is_picture(Path(PurePosixPath(name).name))


def _groups(path: Path) -> dict[str, list[_Place]]:
    """The regular files of a tar file by key: the path up to the first dot of the file's name."""
    groups: dict[str, list[_Place]] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[assignment]  # else it keeps them all
                base = PurePosixPath(member.name).name
                if not member.isreg() or member.issparse() or base.startswith(".") or "." not in base:
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"{member.name} goes on after its end")
                key = member.name[: len(member.name) - len(base)] + base.partition(".")[0]
                groups.setdefault(key, []).append(_Place(member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        remedy = "it may be cut off: fetch it again" if path.suffix == ".tar" else "decompress it first (gzip -d)"
        raise ValueError(f"{path} is not a whole tar file without compression ({error}); {remedy}.") from error
    return groups


def _only(group: list[_Place], counts: Any, what: str) -> _Place | None:
    found = [place for place in group if counts(place.name)]
    if len(found) > 1:  # KEY.jpg before KEY.mask.png
        found = [place for place in found if PurePosixPath(place.name).name.count(".") == 1] or found
    if len(found) > 1:
        raise ValueError(f"{what} must be one, but there are {len(found)}: {some([place.name for place in found])}.")
    return found[0] if found else None


def _captions(stream: IO[bytes], group: list[_Place], path: Path) -> tuple[str, ...] | None:
    """The captions of a group: of its .txt, else of its .json; None where neither has any."""
    for suffix in (".txt", ".json"):
        place = _only(group, lambda name, suffix=suffix: name.lower().endswith(suffix), f"{path}: files {suffix}")
        if place is None:
            continue
        where = f"{place.name} in {path}"
        if place.size > _LARGEST_TEXT:
            raise ValueError(f"{where} must be a caption, but it has {place.size:,} bytes.")
        stream.seek(place.start)
        raw = stream.read(place.size)
        if suffix == ".txt":
            return caption_lines(raw, where)
        if (told := _of_json(raw, where)) is not None:
            return told
    return None


def _of_json(raw: bytes, where: str) -> tuple[str, ...] | None:
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON object, but it is not valid JSON: {error}.") from error
    said = next((entry[key] for key in _KEYS if key in entry), None) if isinstance(entry, Mapping) else None
    return None if said is None else caption_texts(said, where)


def _open_part(path: Path, start: int, size: int) -> IO[bytes]:
    return io.BufferedReader(_Part(path, start, size), buffer_size=1 << 16)


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, path: Path, start: int, size: int):
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        if not len(view):
            return 0
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
