"""Latents and encoded captions, computed once into files, for data of any size; a kill loses one file at most."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import whole
from cmjax.io.captioned.source import CaptionedSource
from cmjax.io.captions import some
from cmjax.io.configs import read_json, write_json
from cmjax.io.safetensors_files import read_metadata, read_safetensors, write_safetensors
from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.buckets import Fitted, fit_to, nearest_buckets
from cmjax.text_to_image.pipeline import PromptTokens, TextToImage
from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["LatentCache", "checked_buckets", "encoded", "precompute", "tokenized", "warn_of_cuts"]

_INDEX, _CAPTIONS = "index.json", "captions.safetensors"
_FORMAT = 1
_LOOKED_AT = 1000  # captions that are counted to know whether many are cut
_OPEN = 128  # shards that are open at once
_UNREADABLE = "unreadable"
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
        about = _read_index(self.folder)
        if about is None:
            raise FileNotFoundError(f"{folder} holds no latents: text_to_image.precompute writes them.")
        self._about: dict[str, Any] = about
        self.buckets = [(size[0], size[1]) for size in self._about["buckets"]]
        numbers = range(_shards(self._about["pictures"], self._about["shard_size"]))
        texts = range(_shards(self._about["texts"], self._about["shard_size"]) if self.has_texts else 0)
        wanted = [_pictures(self.folder, i) for i in numbers] + [_texts(self.folder, i) for i in texts]
        if lacking := [path.name for path in wanted if not path.is_file()]:
            raise ValueError(
                f"{folder} is not complete: {len(lacking)} of {len(wanted)} files lack, such as {some(lacking)}. Call "
                "text_to_image.precompute again, with the same arguments: it goes on where it stopped."
            )
        self._open = functools.lru_cache(maxsize=_OPEN)(read_safetensors)
        self._captions = read_safetensors(self.folder / _CAPTIONS)
        found: list[list[np.ndarray]] = [[] for _ in self.buckets]
        self._row = np.full(self._about["pictures"], -1, np.int64)
        self._bucket = np.full(self._about["pictures"], -1, np.int64)
        self.unreadable: list[str] = []
        for number in numbers:
            shard = self._open(_pictures(self.folder, number))
            for bucket in range(len(self.buckets)):
                examples = shard.get(f"example.{bucket}")
                if examples is not None:
                    found[bucket].append(np.array(examples))
                    self._row[examples], self._bucket[examples] = np.arange(len(examples)), bucket
            self.unreadable += json.loads(read_metadata(_pictures(self.folder, number))[_UNREADABLE])
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
        _refuse_other(self.folder, self._about, _coder_print(pipe), "autoencoder")
        if self.has_texts:
            _refuse_other(self.folder, self._about, _encoders_print(pipe, self._probe()), "text_encoders")

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
        shard = self._open(_pictures(self.folder, index // self._about["shard_size"]))
        bucket, row = self._bucket[index], self._row[index]
        mean = shard[f"mean.{bucket}"][row]
        deviation = shard[f"deviation.{bucket}"][row] if self.is_sampled else np.zeros((), np.float32)
        return mean, deviation, shard[f"sizes.{bucket}"][row]

    def encoded(self, numbers: Sequence[int]) -> TextCond:
        """Read encoded texts by their numbers, without sizes."""
        size = self._about["shard_size"]
        rows = [(self._open(_texts(self.folder, number // size)), number % size) for number in numbers]
        context = jnp.asarray(np.stack([shard["context"][row] for shard, row in rows]))
        has_pooled = "pooled" in rows[0][0]
        pooled = jnp.asarray(np.stack([shard["pooled"][row] for shard, row in rows])) if has_pooled else None
        return TextCond(context, pooled)

    def _probe(self) -> list[str]:
        return [self.text(number) for number in range(min(_PROBED, self._about["texts"]))]


def precompute(
    pipe: TextToImage,
    data: CaptionedSource,
    out: str | Path,
    *,
    buckets: Sequence[tuple[int, int]] | None = None,
    sample: bool = False,
    texts: bool = True,
    batch_size: int = 8,
    shard_size: int = 512,
    skip_unreadable: bool = False,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
) -> LatentCache | None:
    """Compute the latents of pictures, and what text encoders make of their captions, once, into files.

    Each picture is resized and cropped to the bucket whose aspect ratio is nearest. Each file is there whole or not at
    all, so that a program that was killed goes on where it stopped when it calls this again with the same arguments.
    Pictures are decoded in threads while others are encoded, and never more than a file's latents are in memory.

    In float32, a latent of Stable Diffusion takes 64 KiB for 512 x 512 pixels and 256 KiB for 1024 x 1024; twice that
    with `sample`. An encoded caption takes 231 KiB for Stable Diffusion 1, and 621 KiB for XL (half in bfloat16);
    captions that several pictures share are encoded once.

    Args:
      pipe: the model. Its network is not used.
      data: the pictures, as `io.open_captions` opens them.
      out: the folder, new, or one that a call with the same arguments wrote in.
      buckets: sizes of pictures (H, W), such as from `bucket_sizes`; None for the model's native size alone.
      sample: whether to keep standard deviations too, so that latents are drawn anew at each step. Else the mean is
        what a picture is.
      texts: whether to encode the captions. Else they are encoded on the way, which takes the text encoders' time at
        each step but no room.
      batch_size: pictures, or captions, that are encoded at once.
      shard_size: pictures, or captions, in a file.
      skip_unreadable: whether pictures that cannot be decoded are left out (and listed in `LatentCache.unreadable`).
      part: (i, n) computes every n-th file from the i-th on, for n processes that share the work and the folder.
      on_progress: is called with (files that are done, files in all).

    Returns:
      The latents, for `captioned_batches`; None where other parts have not finished theirs.

    Raises:
      ValueError: a picture cannot be read (named), buckets do not fit the autoencoder, or the folder holds latents of
        another autoencoder, of other data, or that were made with other arguments.

    Example:
      >>> import pathlib, tempfile
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> cmjax.io.write_png(np.zeros((96, 64, 3), np.uint8), folder / "night.png")
      >>> _ = (folder / "night.txt").write_text("a dark night")
      >>> data = cmjax.io.open_captions(folder)
      >>> cache = precompute(pipe, data, folder / "latents", batch_size=1)  # doctest: +SKIP
      >>> len(cache), cache.buckets, cache.captions(0)  # doctest: +SKIP
      (1, [(64, 64)], ('a dark night',))
    """
    batch_size, shard_size = whole("batch_size", batch_size, 1), whole("shard_size", shard_size, 1)
    sizes = checked_buckets(pipe, buckets)
    out = Path(out)
    numbers = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain([""], *data.captions)))}
    about = {
        "format": _FORMAT,
        "data": data.fingerprint,
        "autoencoder": _coder_print(pipe),
        "text_encoders": _encoders_print(pipe, list(itertools.islice(numbers, _PROBED))) if texts else None,
        "pictures": len(data),
        "texts": len(numbers),
        "buckets": [list(size) for size in sizes],
        "sample": sample,
        "shard_size": shard_size,
    }
    _begin(out, about, data, numbers)
    if part == (0, 1):
        for half in out.glob(".*.safetensors"):  # that a kill left
            half.unlink()
    jobs: list[tuple[Path, Callable[[Path], None]]] = []
    for number in range(_shards(len(data), shard_size)):
        span = range(number * shard_size, min((number + 1) * shard_size, len(data)))
        write = functools.partial(_write_pictures, pipe, data, sizes, span, batch_size, sample, skip_unreadable)
        jobs.append((_pictures(out, number), write))
    if texts:
        warn_of_cuts(pipe, data.captions)
        lines = list(numbers)
        for number in range(_shards(len(lines), shard_size)):
            of_one = lines[number * shard_size : (number + 1) * shard_size]
            jobs.append((_texts(out, number), functools.partial(_write_texts, pipe, of_one, batch_size)))
    mine = jobs[part[0] :: part[1]]
    for done, (path, write) in enumerate(mine):
        if on_progress is not None:
            on_progress(done, len(mine))
        if not path.is_file():
            write(path)
    if on_progress is not None:
        on_progress(len(mine), len(mine))
    return LatentCache(out) if all(path.is_file() for path, _ in jobs) else None


def checked_buckets(pipe: TextToImage, buckets: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """The sizes that are asked for, or the native one.

    Raises:
      ValueError: there are none, one is there twice, or does not fit the autoencoder.
    """
    sizes = [pipe.native_size] if buckets is None else [(int(h), int(w)) for h, w in buckets]
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError(f"buckets must be sizes (H, W), each once, got {buckets}.")
    for size in sizes:
        pipe.latent_shape(1, size)
    return sizes


def encoded(pipe: TextToImage, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode pictures u8[B, H, W, C]: means and deviations of their latents, f32[B, h, w, c]."""
    x = images.astype(np.float32) / np.float32(127.5) - 1
    if x.shape[-1] == 1 and pipe.autoencoder.config.in_channels == 3:
        x = np.repeat(x, 3, axis=-1)
    mean, deviation = pipe.autoencoder.encode_distribution(jnp.asarray(x))
    return np.asarray(mean), np.asarray(deviation)


def tokenized(pipe: TextToImage, texts: Sequence[str]) -> PromptTokens:
    """Turn captions into tokens, as `pipe.tokenize` does, but without a warning for each that is cut."""

    def rows(tokenizer: Tokenizer) -> np.ndarray:
        length = tokenizer.max_length
        return np.array([tokenizer.frame(tokenizer.pieces(text)[0][: length - 2], length) for text in texts], np.int32)

    return tuple(rows(tokenizer) for tokenizer in pipe.tokenizers)


def warn_of_cuts(pipe: TextToImage, captions: Iterable[Sequence[str]]) -> None:
    """Say once how many captions the text encoders do not read to the end, as far as the first ones show."""
    texts = list(itertools.islice(itertools.chain.from_iterable(captions), _LOOKED_AT))
    room = min(tokenizer.max_length for tokenizer in pipe.tokenizers) - 2
    cut = [text for text in texts if max(len(one.pieces(text)[0]) for one in pipe.tokenizers) > room]
    if cut:
        warnings.warn(
            f"captions must fit {room} tokens each, but {len(cut):,} of the first {len(texts):,} are longer, such as "
            f"{cut[0]!r:.60}: their ends are cut.",
            stacklevel=3,
        )


# ---- the folder ------------------------------------------------------------------------------------------------------


def _begin(out: Path, about: dict[str, Any], data: CaptionedSource, numbers: dict[str, int]) -> None:
    """Write what the folder is to hold, or check that it holds that already."""
    there = _read_index(out)
    if there is not None:
        for what, value in about.items():
            _refuse_other(out, there, value, what)
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise ValueError(f"out must be a new folder, but {out} holds other files.")
    out.mkdir(parents=True, exist_ok=True)
    if there is None:
        write_json(about, out / _INDEX)
    if not (out / _CAPTIONS).is_file():
        texts = [text.encode() for text in numbers]
        of = [[numbers[text] for text in of_one] for of_one in data.captions]
        tensors = {
            "of": np.array(list(itertools.chain(*of)), np.int64),
            "ends": np.cumsum([len(of_one) for of_one in of], dtype=np.int64),
            "utf8": np.frombuffer(b"".join(texts), np.uint8),
            "text_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        }
        write_safetensors(tensors, out / _CAPTIONS)


def _read_index(folder: Path) -> dict[str, Any] | None:
    if not (folder / _INDEX).is_file():
        return None
    about = read_json(folder / _INDEX)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"{folder / _INDEX} is not of latents that this version of cmjax can read: delete the folder.")
    return about


def _refuse_other(folder: Path, about: dict[str, Any], value: Any, what: str) -> None:
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


def _shards(count: int, size: int) -> int:
    return math.ceil(count / size)


def _pictures(folder: Path, number: int) -> Path:
    return folder / f"pictures-{number:06d}.safetensors"


def _texts(folder: Path, number: int) -> Path:
    return folder / f"texts-{number:06d}.safetensors"


# ---- what made it ----------------------------------------------------------------------------------------------------

_PROBED = 16  # texts whose tokens stand for the tokenizers


def _coder_print(pipe: TextToImage) -> str:
    coder = pipe.autoencoder
    return _print([coder.network], [repr(coder.config), repr(coder.tile)])


def _encoders_print(pipe: TextToImage, probe: Sequence[str]) -> str:
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


# ---- one file --------------------------------------------------------------------------------------------------------


def _write_pictures(
    pipe: TextToImage,
    data: CaptionedSource,
    buckets: Sequence[tuple[int, int]],
    span: range,
    batch_size: int,
    sample: bool,
    skip_unreadable: bool,
    path: Path,
) -> None:
    """Encode pictures that follow one another, those of a bucket together."""
    waiting: dict[int, list[tuple[int, Fitted]]] = defaultdict(list)
    made: dict[str, list[np.ndarray]] = defaultdict(list)
    unreadable: list[str] = []

    def encode(bucket: int) -> None:
        group = waiting.pop(bucket)
        images = [one.image for _, one in group]
        images += images[-1:] * (batch_size - len(group))  # so that one program serves all
        mean, deviation = encoded(pipe, np.stack(images))
        made[f"mean.{bucket}"].append(mean[: len(group)])
        if sample:
            made[f"deviation.{bucket}"].append(deviation[: len(group)])
        made[f"example.{bucket}"].append(np.array([index for index, _ in group], np.int64))
        made[f"sizes.{bucket}"].append(np.stack([one.sizes for _, one in group]))

    for index, found in zip(span, _in_threads(lambda i: _fitted(data, i, buckets), span, 2 * batch_size), strict=True):
        if isinstance(found, Exception):
            if not skip_unreadable:
                remedy = "To leave such pictures out, give skip_unreadable=True (--skip-unreadable)."
                raise ValueError(f"{found} {remedy}") from found
            unreadable.append(data.name(index))
            continue
        bucket, fitted = found
        waiting[bucket].append((index, fitted))
        if len(waiting[bucket]) == batch_size:
            encode(bucket)
    for bucket in sorted(waiting):
        encode(bucket)
    tensors = {name: np.concatenate(parts) for name, parts in made.items()}
    write_safetensors(tensors, path, metadata={_UNREADABLE: json.dumps(unreadable)})


def _fitted(
    data: CaptionedSource, index: int, buckets: Sequence[tuple[int, int]]
) -> tuple[int, Fitted] | ValueError | OSError:
    """The bucket of a picture, and the picture in its size; or why it cannot be read."""
    try:
        image = data[index].image
    except (ValueError, OSError) as error:
        return error
    bucket = int(nearest_buckets(np.array([image.shape[:2]]), buckets)[0])
    return bucket, fit_to(image, buckets[bucket])


def _in_threads(call: Callable[[int], Any], numbers: Sequence[int], depth: int) -> Iterator[Any]:
    """Map numbers in order, in threads, at most `depth` ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Any] = deque()
        for number in numbers:
            waiting.append(pool.submit(call, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@jax.jit
def _read(pipe: TextToImage, tokens: PromptTokens) -> TextCond:
    return pipe.encode(tokens).replace(sizes=None)


def _write_texts(pipe: TextToImage, texts: Sequence[str], batch_size: int, path: Path) -> None:
    parts = []
    for start in range(0, len(texts), batch_size):
        part = list(texts[start : start + batch_size])
        tokens = tokenized(pipe, part + [""] * (batch_size - len(part)))  # so that one program serves all
        parts.append(jax.tree.map(np.asarray, _read(pipe, tokens)))
    context = np.concatenate([part.context for part in parts])[: len(texts)]
    has_pooled = parts[0].pooled is not None
    pooled = {"pooled": np.concatenate([part.pooled for part in parts])[: len(texts)]} if has_pooled else {}
    write_safetensors({"context": context, **pooled}, path)
