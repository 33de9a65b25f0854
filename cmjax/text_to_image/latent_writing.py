"""Compute latents and encoded captions once, into the files of a `LatentCache`; a kill loses one file at most."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax._numerics import whole
from cmjax.io.captioned.source import CaptionedSource
from cmjax.io.configs import write_json
from cmjax.io.safetensors_files import write_safetensors
from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.buckets import Fitted, fit_to, nearest_buckets
from cmjax.text_to_image.encoding import checked_buckets, encoded, tokenized, warn_of_cuts
from cmjax.text_to_image.latent_cache import (
    CAPTIONS,
    FORMAT,
    INDEX,
    PROBED,
    UNREADABLE,
    LatentCache,
    autoencoder_print,
    encoders_print,
    pictures_file,
    read_index,
    refuse_other,
    shard_count,
    texts_file,
)
from cmjax.text_to_image.pipeline import PromptTokens, TextToImage

__all__ = ["precompute"]


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
        "format": FORMAT,
        "data": data.fingerprint,
        "autoencoder": autoencoder_print(pipe),
        "text_encoders": encoders_print(pipe, list(itertools.islice(numbers, PROBED))) if texts else None,
        "pictures": len(data),
        "texts": len(numbers),
        "buckets": [list(size) for size in sizes],
        "sample": sample,
        "shard_size": shard_size,
    }
    _begin(out, about, data, numbers)
    jobs: list[tuple[Path, Callable[[Path], None]]] = []
    for number in range(shard_count(len(data), shard_size)):
        span = range(number * shard_size, min((number + 1) * shard_size, len(data)))
        write = functools.partial(_write_pictures, pipe, data, sizes, span, batch_size, sample, skip_unreadable)
        jobs.append((pictures_file(out, number), write))
    if texts:
        warn_of_cuts(pipe, data.captions)
        lines = list(numbers)
        for number in range(shard_count(len(lines), shard_size)):
            of_one = lines[number * shard_size : (number + 1) * shard_size]
            jobs.append((texts_file(out, number), functools.partial(_write_texts, pipe, of_one, batch_size)))
    mine = jobs[part[0] :: part[1]]
    names = {path.stem for path, _ in mine}
    for half in out.glob(".*.safetensors"):  # that a kill left; other processes may be writing theirs
        if part == (0, 1) or half.name[1:].rpartition("-")[0] in names:
            half.unlink()
    for done, (path, write) in enumerate(mine):
        if on_progress is not None:
            on_progress(done, len(mine))
        if not path.is_file():
            write(path)
    if on_progress is not None:
        on_progress(len(mine), len(mine))
    return LatentCache(out) if all(path.is_file() for path, _ in jobs) else None


def _begin(out: Path, about: dict[str, Any], data: CaptionedSource, numbers: dict[str, int]) -> None:
    """Write what the folder is to hold, or check that it holds that already."""
    there = read_index(out)
    if there is not None:
        for what, value in about.items():
            refuse_other(out, there, value, what)
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        if read_index(out) is not None:  # of another process, which began in this moment
            return _begin(out, about, data, numbers)
        raise ValueError(f"out must be a new folder, but {out} holds other files.")
    out.mkdir(parents=True, exist_ok=True)
    if there is None:
        write_json(about, out / INDEX)
    if not (out / CAPTIONS).is_file():
        texts = [text.encode() for text in numbers]
        of = [[numbers[text] for text in of_one] for of_one in data.captions]
        tensors = {
            "of": np.array(list(itertools.chain(*of)), np.int64),
            "ends": np.cumsum([len(of_one) for of_one in of], dtype=np.int64),
            "utf8": np.frombuffer(b"".join(texts), np.uint8),
            "text_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        }
        write_safetensors(tensors, out / CAPTIONS)


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
    write_safetensors(tensors, path, metadata={UNREADABLE: json.dumps(unreadable)})


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
