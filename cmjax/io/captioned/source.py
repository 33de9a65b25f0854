"""What all forms of captioned pictures are once they are open: numbered pictures, decoded when they are asked for."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple, Protocol

import numpy as np

from cmjax.io.images import to_uint8
from cmjax.io.open_picture import read_size, stream_levels

__all__ = ["CaptionedPicture", "CaptionedSource", "Files"]

_AT_ONCE = 256  # pictures that a thread measures in one go


class CaptionedPicture(NamedTuple):
    """A picture u8[H, W, 3], its captions, any of which may stand for it, and the name of its file."""

    image: np.ndarray
    captions: tuple[str, ...]
    name: str


class Files(Protocol):
    """Where the files of pictures lie."""

    def __len__(self) -> int:
        """Say how many there are."""
        ...

    def name(self, index: int) -> str:
        """Name one, for messages."""
        ...

    def stamp(self, index: int) -> str:
        """Tell one from another file of its name, without reading it."""
        ...

    def open(self, index: int) -> IO[bytes]:
        """Open one to be read."""
        ...


class CaptionedSource:
    """Captioned pictures in files, by number: `len(source)`, `source[i]`. Only captions and places are in memory.

    Any picture can be read at any time, from several threads or processes, so that an order can be exact. Grain takes
    a source as it is: `grain.MapDataset.source(source)`.

    Attributes:
      captions: of each picture, one or more texts that may stand for one another.

    Example:
      >>> import pathlib, tempfile
      >>> from cmjax.io import open_captions, write_png
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> write_png(np.zeros((8, 12, 3), np.uint8), folder / "night.png")
      >>> _ = (folder / "night.txt").write_text("a dark night")
      >>> source = open_captions(folder)
      >>> len(source), source[0].image.shape, source[0].captions, source.size(0)
      (1, (8, 12, 3), ('a dark night',), (8, 12))
    """

    def __init__(self, files: Files, captions: Sequence[tuple[str, ...]], what: str) -> None:
        """Describe pictures.

        Args:
          files: where they lie.
          captions: of each.
          what: names all of them, for `repr`.
        """
        self._files, self.captions, self._what = files, captions, what

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> CaptionedPicture:
        """Decode a picture. Grey becomes colours, 16 bits become 8, and what is transparent is laid on white.

        Raises:
          IndexError: there is no such number.
          ValueError: the picture is damaged, animated or far too large; the message has its name.
        """
        index = self._known(index)
        name = self._files.name(index)
        with self._files.open(index) as stream:
            levels, alpha = stream_levels(stream, name)
        image = levels if levels.dtype == np.uint8 else to_uint8(levels / np.float32(32767.5) - 1)
        if alpha is not None:
            opaque = alpha[..., None].astype(np.float32) / 255
            image = np.rint(image * opaque + 255 * (1 - opaque)).astype(np.uint8)
        image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        return CaptionedPicture(image, tuple(self.captions[index]), name)

    def name(self, index: int) -> str:
        """Name the file of a picture."""
        return self._files.name(self._known(index))

    def size(self, index: int) -> tuple[int, int]:
        """Read the height and width of a picture, turned as its EXIF says, from the beginning of its file.

        Raises:
          ValueError: it is damaged.
        """
        index = self._known(index)
        with self._files.open(index) as stream:
            return read_size(stream, self._files.name(index))

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Height and width of all pictures, i32[N, 2], read once; (0, 0) where a file cannot be read."""

        def measure(start: int) -> list[tuple[int, int]]:
            return [self._size_or_none(i) for i in range(start, min(start + _AT_ONCE, len(self)))]

        with ThreadPoolExecutor() as pool:
            found = list(itertools.chain(*pool.map(measure, range(0, len(self), _AT_ONCE))))
        return np.array(found, np.int32).reshape(-1, 2)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tell the data from others: a SHA-256 of all names, sizes of files, and captions. No picture is read."""
        sums = hashlib.sha256()
        for i, captions in enumerate(self.captions):
            sums.update("\0".join((self._files.stamp(i), *captions, "")).encode() + b"\n")
        return sums.hexdigest()

    def __repr__(self) -> str:
        return f"CaptionedSource({len(self):,} pictures in {self._what})"

    def _known(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self):,}, the number of pictures, got {index}.")
        return index % len(self)

    def _size_or_none(self, index: int) -> tuple[int, int]:
        try:
            return self.size(index)
        except (ValueError, OSError):
            return 0, 0
