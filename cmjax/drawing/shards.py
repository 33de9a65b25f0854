"""A large set of images as a folder of numbered shards. Finished shards are kept; only missing ones are drawn.

    run.json                       what the images are: the model, the path, the seed, the classes
    shard-00003-of-00050.npz       images u8[n, H, W, C], labels i32[n], indices i64[n]; or a folder of .png files

A shard is written whole or not at all. Image i is the same whoever draws it, and each device always draws as many
images at once as run.json says. So the files are the same, byte for byte, however many devices, processes and
interruptions it took (on one kind of machine, with one version of JAX).
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cmjax.drawing.batches import Batches, class_of
from cmjax.io.atomic import atomic_folder
from cmjax.io.configs import read_json, write_json
from cmjax.io.images import to_uint8, write_npz, write_png

__all__ = ["Shards", "draw_shards", "read_run"]

_RUN = "run.json"
_TEMPORARY = re.compile(r"\.(shard-\d{5,}-of-\d{5,}|run)-[a-z0-9_]{8}(\.npz|\.json)?")  # of `io.atomic`


class Shards(NamedTuple):
    """A folder of shards.

    Attributes:
      folder: where they are.
      count: images in all.
      size: images in a shard; the last may have fewer.
      run: what run.json says: values of JSON's types, of all that the images depend on.
      kind: "npz" for one file of arrays a shard, or "png" for a folder of pictures.

    Example:
      >>> shards = Shards(Path("drawn"), count=2500, size=1000, run={"seed": 0})
      >>> shards.number, shards.path(2).name, shards.indices(2)
      (3, 'shard-00002-of-00003.npz', range(2000, 2500))
    """

    folder: Path
    count: int
    size: int
    run: Mapping[str, Any]
    kind: Literal["npz", "png"] = "npz"

    @property
    def number(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.size)

    def path(self, i: int) -> Path:
        """The file, or the folder, of shard i."""
        return self.folder / f"shard-{i:05}-of-{self.number:05}{'.npz' if self.kind == 'npz' else ''}"

    def indices(self, i: int) -> range:
        """The numbers of the images in shard i."""
        return range(i * self.size, min((i + 1) * self.size, self.count))

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
          ValueError: it holds other files, or the images of another run.
          OSError: it cannot be read.
        """
        if not self.folder.is_dir():
            return
        if not (self.folder / _RUN).exists():
            if others := sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(".")):
                lacks = f", and no {_RUN} that says what they are" if others[0].startswith("shard-") else ""
                raise ValueError(f"{self.folder} holds other files ({others[0]}){lacks}: choose a new or empty folder.")
        else:
            self._compare(read_run(self.folder))

    def _compare(self, there: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(dict(self.run)))
        for name in {**now, **there}:
            if there.get(name) != now.get(name):
                was, asked = (json.dumps(v.get(name)) for v in (there, now))
                differs = f"{name} is {was} there and {asked} now" if len(was + asked) < 100 else f"its {name} differs"
                raise ValueError(
                    f"{self.folder} holds images of another run ({differs}): choose another folder, or ask for the "
                    "same images to resume that run."
                )

    def done(self) -> np.ndarray:
        """Find out which shards are there and whole, bool[number].

        Raises:
          ValueError: something else has the name of a shard.
        """
        return np.array([self._is_whole(i) for i in range(self.number)], bool)

    def missing(self) -> list[int]:
        """Find out which shards are still to be drawn.

        Raises:
          ValueError: something else has the name of a shard.
        """
        return np.flatnonzero(~self.done()).tolist()

    def _is_whole(self, i: int) -> bool:
        """Whether a shard is there with all of its images; a damaged one is drawn again."""
        path, wanted = self.path(i), len(self.indices(i))
        if not (path.exists() or path.is_symlink()):
            return False
        if path.is_symlink() or path.is_dir() != (self.kind == "png"):
            raise ValueError(f"{path} is not a shard of this run: move it away.")
        if self.kind == "png":
            return sum(file.suffix == ".png" for file in path.iterdir()) == wanted
        try:
            with zipfile.ZipFile(path) as held, held.open("indices.npy") as indices:
                return "images.npy" in held.namelist() and len(np.lib.format.read_array(indices)) == wanted
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return False

    def begin(self) -> None:
        """Make the folder, and write run.json unless it is there."""
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / _RUN).exists():
            write_json(dict(self.run), self.folder / _RUN)

    def sweep(self) -> None:
        """Remove what killed processes left half-written, once all shards are there."""
        if self.done().all():
            for left in [path for path in self.folder.iterdir() if _TEMPORARY.fullmatch(path.name)]:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def write(self, i: int, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Write shard i.

        Args:
          i: its number.
          images: u8[n, H, W, C].
          labels: i32[n], or None.

        Raises:
          OSError: it cannot be written.
        """
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


def draw_shards(
    draw: Batches,
    model: Any,
    shards: Shards,
    which: Sequence[int],
    *,
    classes: Sequence[int] | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> int:
    """Draw the images of some shards in whole batches, whatever the shards' size, and write each shard once it is full.

    Args:
      draw: the compiled call, which returns a `Drawn`, from `compile_draw`.
      model: with weights.
      shards: the folder, after `Shards.begin`.
      which: the numbers of the shards, in increasing order.
      classes: the classes drawn in turn, as for `compile_draw`.
      progress: goes through the batches, such as `tqdm.tqdm`.

    Returns:
      How many images were drawn.

    Raises:
      ValueError: images hold NaN.
      OSError: a shard cannot be written.
    """
    if not which:
        return 0
    model, left = draw.place(model), list(which)
    wanted = np.concatenate([np.asarray(shards.indices(i), np.int32) for i in left])
    held: list[np.ndarray] = []
    for first in progress(range(0, len(wanted), draw.size)):
        numbers = wanted[first : first + draw.size]
        full = np.pad(numbers, (0, draw.size - len(numbers)), "edge")
        held.extend(to_uint8(draw.of(full, model).images[: len(numbers)]))
        while left and len(held) >= len(shards.indices(left[0])):
            own = shards.indices(left[0])
            shards.write(left.pop(0), np.stack(held[: len(own)]), class_of(np.asarray(own), classes))
            del held[: len(own)]
    return len(wanted)


def read_run(folder: Path) -> Mapping[str, Any]:
    """Read run.json of a folder.

    Args:
      folder: of shards, new or not.

    Returns:
      What it says; nothing where there is none.

    Raises:
      ValueError: it is damaged.
      OSError: it cannot be read.
    """
    if not (folder / _RUN).exists():
        return {}
    run = read_json(folder / _RUN)
    if not isinstance(run, dict):
        raise ValueError(f"{folder / _RUN} does not describe a run.")
    return run
