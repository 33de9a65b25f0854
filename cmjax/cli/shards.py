"""A large set of images as a folder of numbered shards: what is done stays, what is missing is drawn.

    run.json                       what the images are: the model, the path, the seed, the classes
    shard-00003-of-00050.npz       images u8[n, H, W, C], labels i32[n], indices i64[n]; or a folder of .png files

A shard appears whole or not at all. Image i is the same whoever draws it, and each device always draws as many images
at once as run.json says: so the files are the same, byte for byte, however many devices, hosts and interruptions it
took (on one kind of machine, with one version of JAX).
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmjax.cli.errors import UsageError
from cmjax.io.atomic import atomic_folder
from cmjax.io.configs import read_json, write_json
from cmjax.io.images import write_npz, write_png

__all__ = ["Shards", "recorded"]

_ABOUT = "run.json"
_TEMPORARY = re.compile(r"\.(shard-\d{5,}-of-\d{5,}|run)-[a-z0-9_]{8}(\.npz|\.json)?")  # of `io.atomic`
_HINT = "choose another --out, or ask for the same images to go on with them"


class Shards(NamedTuple):
    """A folder of shards.

    Attributes:
      folder: where they are.
      count: images in all.
      size: images in a shard; the last may have fewer.
      kind: "npz" or "png".
      said: what run.json says of the images.
    """

    folder: Path
    count: int
    size: int
    kind: str
    said: Mapping[str, Any]

    @property
    def number(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.size)

    def path(self, i: int) -> Path:
        """The file, or the folder, of shard i."""
        return self.folder / f"shard-{i:05}-of-{self.number:05}{'.npz' if self.kind == 'npz' else ''}"

    def indices(self, i: int) -> range:
        """The numbers of its images."""
        return range(i * self.size, min((i + 1) * self.size, self.count))

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
          UsageError: it holds other files, or the images of another run.
        """
        if not self.folder.is_dir():
            return
        if not (self.folder / _ABOUT).exists():
            if others := sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(".")):
                lacks = f", and no {_ABOUT} to say what they are" if others[0].startswith("shard-") else ""
                raise UsageError(
                    f"--out: {self.folder} holds other files ({others[0]}){lacks}: choose a new or empty folder."
                )
        else:
            self._compare(recorded(self.folder))

    def _compare(self, there: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(dict(self.said)))
        for name, value in now.items():
            if there.get(name) != value:
                was, asked = (json.dumps(v) for v in (there.get(name), value))
                differs = f"{name} is {was} there and {asked} now" if len(was + asked) < 100 else f"its {name} differs"
                raise UsageError(f"--out: {self.folder} holds images of another run ({differs}): {_HINT}.")

    def done(self) -> np.ndarray:
        """Which shards are there, and whole, bool[number].

        Raises:
          UsageError: something else has the name of a shard.
        """
        return np.array([self._is_whole(i) for i in range(self.number)], bool)

    def _is_whole(self, i: int) -> bool:
        """Whether a shard is there with all of its images; a damaged one is drawn again."""
        path, wanted = self.path(i), len(self.indices(i))
        if not (path.exists() or path.is_symlink()):
            return False
        if path.is_symlink() or path.is_dir() != (self.kind == "png"):
            raise UsageError(f"--out: {path} is no shard of this run: move it away.")
        if self.kind == "png":
            return sum(file.suffix == ".png" for file in path.iterdir()) == wanted
        try:
            with zipfile.ZipFile(path) as held, held.open("indices.npy") as indices:
                return "images.npy" in held.namelist() and len(np.lib.format.read_array(indices)) == wanted
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return False

    def begin(self) -> None:
        """Make the folder, and say in it what it is."""
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / _ABOUT).exists():
            write_json(dict(self.said), self.folder / _ABOUT)

    def sweep(self) -> None:
        """Once all shards are there, clear away what kills left half-written; before, it may be another process's."""
        if self.done().all():
            for left in [path for path in self.folder.iterdir() if _TEMPORARY.fullmatch(path.name)]:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def write(self, i: int, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Write shard i: images u8[n, H, W, C], labels i32[n] or None."""
        try:
            self._write(i, images, labels)
        except FileNotFoundError:
            if not self.path(i).exists():  # else another process wrote it as well, and has swept
                raise

    def _write(self, i: int, images: np.ndarray, labels: np.ndarray | None) -> None:
        indices = np.asarray(self.indices(i), np.int64)
        if self.kind == "npz":
            more = {} if labels is None else {"labels": labels}
            write_npz(self.path(i), images=images, **more, indices=indices)
            return
        with atomic_folder(self.path(i)) as folder:
            for j, image in zip(indices, images, strict=True):
                label = "" if labels is None else f"-class{labels[j - indices[0]]}"
                write_png(image, folder / f"{j:08}{label}.png")


def recorded(folder: Path) -> Mapping[str, Any]:
    """What run.json of a folder says; nothing where there is none.

    Raises:
      UsageError: it cannot be read.
    """
    if not (folder / _ABOUT).exists():
        return {}
    try:
        said = read_json(folder / _ABOUT)
    except (OSError, ValueError) as error:
        raise UsageError(f"--out: {error}") from error
    if not isinstance(said, dict):
        raise UsageError(f"--out: {folder / _ABOUT} does not describe a run.")
    return said
