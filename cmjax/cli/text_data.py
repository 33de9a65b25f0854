"""Captioned pictures for `cmjax train --model`: in memory, decoded on the way, or as latents in files."""

from __future__ import annotations

import os
import zlib
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import cmjax
from cmjax import training
from cmjax.cli.errors import bad_input
from cmjax.cli.options import TrainOptions
from cmjax.drawing import Hosts
from cmjax.io import Captioned, CaptionedSource
from cmjax.text_to_image import CaptionedBatches, LatentCache, TextToImage, bucket_sizes

__all__ = ["TextData", "read_text_data"]

_FINEST = 16  # steps of buckets along the side of a square, at most


class TextData(NamedTuple):
    """Captioned pictures as `--data` says them.

    Attributes:
      pictures: in memory, of one size; or in their files.
      options: of the command.
    """

    pictures: Captioned | CaptionedSource
    options: TrainOptions

    @property
    def captions(self) -> Any:
        """Of each picture, one or more texts."""
        return self.pictures.captions

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.pictures.captions)

    def fingerprint(self) -> dict[str, Any]:
        """Identify pictures and captions: a run goes on with those that it began with."""
        if isinstance(self.pictures, CaptionedSource):
            return {"images": self.count, "sha256": self.pictures.fingerprint, "buckets": self.options.buckets}
        told = "\0".join("\n".join(of_one) for of_one in self.captions).encode()
        crc = zlib.crc32(told, zlib.crc32(np.ascontiguousarray(self.pictures.images).data))
        return {"images": self.count, "crc32": crc}

    def sizes(self, pipe: TextToImage, batch_size: int) -> tuple[tuple[int, int], ...]:
        """The sizes (H, W) that the network sees: those of buckets, the pictures' own, or the model's.

        Raises:
          ValueError: they do not fit the autoencoder, or there are fewer pictures than a batch has.
        """
        if not isinstance(self.pictures, CaptionedSource):
            height, width = self.pictures.images.shape[1:3]
            pipe.latent_shape(1, (height, width))
            return ((height, width),)
        sizes = self.pictures.sizes
        sizes = sizes[(sizes > 0).all(axis=1)]
        if self.options.buckets:
            factor = pipe.autoencoder.downsampling * pipe.unet.config.downsampling
            step = max(factor, min(pipe.native_size) // _FINEST // factor * factor)
            return bucket_sizes(pipe.native_size, step=step, pictures=sizes, least=batch_size)
        if len(own := np.unique(sizes, axis=0)) == 1 and not (own % pipe.autoencoder.downsampling).any():
            return ((int(own[0, 0]), int(own[0, 1])),)
        return (pipe.native_size,)

    def batches(self, pipe: TextToImage, recipe: training.Recipe, console: Console, hosts: Hosts) -> CaptionedBatches:
        """Prepare the batches; with --cache, compute what they are made of first, each process its part.

        Raises:
          ValueError: as for `captioned_batches` and `precompute`.
        """
        told = {"drop": 0.0, "with_null": True}
        if not isinstance(self.pictures, CaptionedSource):
            return cmjax.text_to_image.captioned_batches(pipe, self.pictures, recipe, **told)
        sizes = self.sizes(pipe, recipe.batch_size)
        skips = {"buckets": sizes, "skip_unreadable": self.options.skip_unreadable}
        if self.options.cache is None:
            batches = cmjax.text_to_image.captioned_batches(pipe, self.pictures, recipe, **skips, **told)
        else:
            cache = _computed(pipe, self.pictures, self.options.cache, console, hosts, **skips)
            batches = cmjax.text_to_image.captioned_batches(pipe, cache, recipe, **told)
        console.print(
            f"pictures are resized and cropped to {', '.join(f'{width}x{height}' for height, width in sizes)}"
        )
        return batches


def _computed(
    pipe: TextToImage, pictures: CaptionedSource, out: str, console: Console, hosts: Hosts, **options: Any
) -> LatentCache:
    """Compute latents and texts into a folder, with a bar once there is something to do."""
    columns = (TextColumn("latents"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task("")

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    with bad_input("--cache"):
        try:
            part = (hosts.index, hosts.count)
            cache = cmjax.text_to_image.precompute(pipe, pictures, out, **options, part=part, on_progress=show)
        finally:
            if bar.live.is_started:
                bar.stop()
    with bad_input("--distributed"):
        hosts.wait_for_all()
    with bad_input("--cache"):
        cache = cache or LatentCache(out)  # now that the others have computed their parts
    if cache.unreadable:
        console.print(f"{len(cache.unreadable):,} pictures could not be read, and are left out")
    return cache


def read_text_data(options: TrainOptions) -> TextData:
    """Open `--data`: a folder of pictures of one size is read, all else stays in its files.

    Raises:
      OSError: as for `io.open_captions`.
      ValueError: as for `io.open_captions`.
    """
    source = cmjax.io.open_captions(options.data)
    if options.buckets or options.skip_unreadable or options.cache is not None or not os.path.isdir(options.data):
        return TextData(source, options)
    if len(np.unique(source.sizes, axis=0)) > 1 and (source.sizes > 0).all():
        return TextData(source, options)
    try:
        return TextData(cmjax.io.read_captions(options.data), options)
    except ValueError as error:  # of a picture: captions have been read
        raise ValueError(f"{error} To leave such pictures out: --skip-unreadable.") from error
