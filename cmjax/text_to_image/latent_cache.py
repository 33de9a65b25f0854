"""Read latents and encoded captions that were computed once, from files; and tell what they were made with."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.captions import some
from cmjax.io.configs import read_json
from cmjax.io.safetensors_files import read_metadata, read_safetensors
from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.encoding import tokenized
from cmjax.text_to_image.pipeline import TextToImage

__all__ = [
    "CAPTIONS",
    "FORMAT",
    "INDEX",
    "PROBED",
    "UNREADABLE",
    "LatentCache",
    "autoencoder_print",
    "encoders_print",
    "pictures_file",
    "read_index",
    "refuse_other",
    "shard_count",
    "texts_file",
]

INDEX, CAPTIONS, UNREADABLE = "index.json", "captions.safetensors", "unreadable"  # files, and an entry of one
FORMAT = 1
PROBED = 16  # texts whose tokens stand for the tokenizers
_OPEN = 128  # shards that are open at once
# What an index says of how it was made, and what to do where that differs.
_MADE_WITH = {
    "autoencoder": "autoencoder (its weights, config or tile)",
    "text_encoders": "text encoders (their weights or tokenizers)",
    "data": "pictures or captions",
}


class LatentCache:
    """A folder of latents and encoded captions that `precompute` wrote; files are mapped, and read when needed.

    Attributes:
      folder: where it lies.
      buckets: sizes of pictures, (H, W).
      members: of each bucket, the numbers of its pictures in the data, i64[n], ascending.
      unreadable: names of pictures that were left out.

    Args:
      folder: the folder.

    Raises:
      FileNotFoundError: it holds no latents.
      ValueError: it is not complete, or of another version.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = read_index(self.folder)
        if about is None:
            raise FileNotFoundError(f"{folder} holds no latents: text_to_image.precompute writes them.")
        self._about: dict[str, Any] = about
        self.buckets = [(size[0], size[1]) for size in self._about["buckets"]]
        numbers = range(shard_count(self._about["pictures"], self._about["shard_size"]))
        texts = range(shard_count(self._about["texts"], self._about["shard_size"]) if self.has_texts else 0)
        wanted = [pictures_file(self.folder, i) for i in numbers] + [texts_file(self.folder, i) for i in texts]
        if lacking := [path.name for path in wanted if not path.is_file()]:
            raise ValueError(
                f"{folder} is not complete: {len(lacking)} of {len(wanted)} files lack, such as {some(lacking)}. Call "
                "text_to_image.precompute again, with the same arguments: it goes on where it stopped."
            )
        self._open = functools.lru_cache(maxsize=_OPEN)(read_safetensors)
        self._captions = read_safetensors(self.folder / CAPTIONS)
        found: list[list[np.ndarray]] = [[] for _ in self.buckets]
        self._row = np.full(self._about["pictures"], -1, np.int64)
        self._bucket = np.full(self._about["pictures"], -1, np.int64)
        self.unreadable: list[str] = []
        for number in numbers:
            shard = self._open(pictures_file(self.folder, number))
            for bucket in range(len(self.buckets)):
                examples = shard.get(f"example.{bucket}")
                if examples is not None:
                    found[bucket].append(np.array(examples))
                    self._row[examples], self._bucket[examples] = np.arange(len(examples)), bucket
            self.unreadable += json.loads(read_metadata(pictures_file(self.folder, number))[UNREADABLE])
        self.members = [np.concatenate(some) if some else np.empty(0, np.int64) for some in found]

    def __len__(self) -> int:
        return sum(map(len, self.members))

    def __repr__(self) -> str:
        return f"LatentCache({len(self):,} pictures of {len(self.buckets)} sizes in {self.folder})"

    @property
    def has_texts(self) -> bool:
        """Whether captions are encoded."""
        return self._about["text_encoders"] is not None

    @property
    def is_sampled(self) -> bool:
        """Whether latents have a standard deviation, to be drawn anew at each step."""
        return self._about["sample"]

    @property
    def fingerprint(self) -> str:
        """Tell the data from others: the `fingerprint` of the source it was made of."""
        return self._about["data"]

    def check(self, pipe: TextToImage) -> None:
        """Refuse a model that would make other latents or read captions in another way.

        Raises:
          ValueError: its autoencoder or a text encoder is another one.
        """
        refuse_other(self.folder, self._about, autoencoder_print(pipe), "autoencoder")
        if self.has_texts:
            refuse_other(self.folder, self._about, encoders_print(pipe, self._probe()), "text_encoders")

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture."""
        return tuple(self.text(number) for number in self.texts_of(index))

    def texts_of(self, index: int) -> list[int]:
        """The numbers of a picture's captions; 0 is the empty text."""
        ends = self._captions["ends"]
        return self._captions["of"][ends[index - 1] if index else 0 : ends[index]].tolist()

    def text(self, number: int) -> str:
        """A text by its number."""
        ends = self._captions["text_ends"]
        return bytes(self._captions["utf8"][ends[number - 1] if number else 0 : ends[number]]).decode()

    def latents(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read pictures of one bucket: means and deviations of latents f32[B, h, w, c], and sizes f32[B, 6]."""
        found = [self._one(int(index)) for index in chosen]
        mean, deviation, sizes = (np.stack(part) for part in zip(*found, strict=True))
        return mean, deviation, sizes.astype(np.float32)

    def _one(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shard = self._open(pictures_file(self.folder, index // self._about["shard_size"]))
        bucket, row = self._bucket[index], self._row[index]
        mean = shard[f"mean.{bucket}"][row]
        deviation = shard[f"deviation.{bucket}"][row] if self.is_sampled else np.zeros((), np.float32)
        return mean, deviation, shard[f"sizes.{bucket}"][row]

    def encoded(self, numbers: Sequence[int]) -> TextCond:
        """Read encoded texts by their numbers, without sizes."""
        size = self._about["shard_size"]
        rows = [(self._open(texts_file(self.folder, number // size)), number % size) for number in numbers]
        context = jnp.asarray(np.stack([shard["context"][row] for shard, row in rows]))
        has_pooled = "pooled" in rows[0][0]
        pooled = jnp.asarray(np.stack([shard["pooled"][row] for shard, row in rows])) if has_pooled else None
        return TextCond(context, pooled)

    def _probe(self) -> list[str]:
        return [self.text(number) for number in range(min(PROBED, self._about["texts"]))]


# ---- the folder ------------------------------------------------------------------------------------------------------


def read_index(folder: Path) -> dict[str, Any] | None:
    """Read what a folder's index says; None where there is none.

    Raises:
      ValueError: it is of another version.
    """
    if not (folder / INDEX).is_file():
        return None
    about = read_json(folder / INDEX)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{folder / INDEX} is not of latents that this version of cmjax can read: delete the folder.")
    return about


def refuse_other(folder: Path, about: dict[str, Any], value: Any, what: str) -> None:
    """Raise ValueError if a folder was made with another value of this."""
    was = about.get(what)
    if was == value:
        return
    if what in _MADE_WITH and was is not None and value is not None:
        raise ValueError(
            f"{folder} holds what was made with other {_MADE_WITH[what]} ({was[:12]}, not {value[:12]}): give those, "
            "or precompute into another folder."
        )
    raise ValueError(
        f"{folder} was made with {what} = {was}, not {value}: give the same, or precompute into another folder."
    )


def shard_count(count: int, size: int) -> int:
    """The number of files for so many entries."""
    return math.ceil(count / size)


def pictures_file(folder: Path, number: int) -> Path:
    """A file of pictures' latents."""
    return folder / f"pictures-{number:06d}.safetensors"


def texts_file(folder: Path, number: int) -> Path:
    """A file of encoded captions."""
    return folder / f"texts-{number:06d}.safetensors"


# ---- what made it ----------------------------------------------------------------------------------------------------


def autoencoder_print(pipe: TextToImage) -> str:
    """Tell a model's autoencoder from others, by its weights, config and tile."""
    coder = pipe.autoencoder
    return _print([coder.network], [repr(coder.config), repr(coder.tile)])


def encoders_print(pipe: TextToImage, probe: Sequence[str]) -> str:
    """Tell text encoders from others, by their weights and configs and by the tokens of a few texts."""
    tokens = [np.asarray(one).tobytes().hex() for one in tokenized(pipe, list(probe))]
    return _print(pipe.text_encoders, [*(repr(one.config) for one in pipe.text_encoders), *tokens])


def _print(networks: Sequence[Any], words: Sequence[str]) -> str:
    sums = hashlib.sha256("\n".join(words).encode())
    for network in networks:
        network.refuse_abstract()
        for name, leaf in network.leaves().items():
            array = np.ascontiguousarray(leaf)
            sums.update(f"{name} {array.dtype} {array.shape}".encode())
            sums.update(array.reshape(-1).view(np.uint8).data)
    return sums.hexdigest()
