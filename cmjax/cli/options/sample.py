"""What `cmjax sample` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from cmjax.cli.options import read
from cmjax.cli.options.field import DRAW, MODEL, OUTPUT, SHARDS, SPEED, TEXT, option
from cmjax.cli.options.shared import (
    DEFAULT_MODEL,
    DEFAULT_TEXT_MODEL,
    MODEL_HELP,
    ModelOptions,
    PathOptions,
    TextOptions,
    distributed,
    wait,
)

__all__ = ["SampleOptions"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions(TextOptions, PathOptions, ModelOptions):
    """`cmjax sample`."""

    command = program = "sample"
    model: str = option(
        f"{MODEL_HELP} (default {DEFAULT_MODEL}; with --prompt, {DEFAULT_TEXT_MODEL})",
        default="",
        group=MODEL,
        exclusive="source",
        metavar="M",
    )
    artifact: str | None = option(
        "draw with what cmjax export wrote, in place of a model (it is a program: run it only if you trust its maker)",
        group=MODEL,
        exclusive="source",
        type=read.path,
        metavar="DIR",
    )
    labels: tuple[str, ...] | None = option(
        "classes by name or number, drawn in turn (default: all, or the first ten)", group=DRAW, nargs="+", metavar="L"
    )
    num: int | None = option(
        "images in all (default: 8 of each class, 4 of each prompt)", group=DRAW, type=read.count, metavar="N"
    )
    seed: int = option("which images (default %(default)s)", default=0, group=DRAW, type=read.seed, metavar="S")
    trajectory: bool = option(
        "show the estimate after every step: each image becomes a strip", default=False, group=DRAW, action="store_true"
    )
    preview_autoencoder: str | None = option(
        "for --trajectory of texts: a folder or hub id of a tiny autoencoder, which decodes all steps but the last in "
        "less time (default: the model's own)",
        group=TEXT,
        type=read.path,
        metavar="A",
    )
    out: str = option(
        "a .png grid, an .npz of arrays, or a folder of .png files (default %(default)s)",
        default="samples.png",
        group=OUTPUT,
        type=read.path,
        metavar="PATH",
    )
    batch: int | None = option(
        "images computed at once, on all devices together (default: up to 128 on each)",
        group=SPEED,
        type=read.count,
        metavar="B",
    )
    devices: int | None = option(
        "draw on the first D devices of this machine (default: all)", group=SPEED, type=read.count, metavar="D"
    )
    shard_size: int | None = option(
        "write numbered shards of K images (default 1000)", group=SHARDS, type=read.count, metavar="K"
    )
    shard_format: str | None = option(
        "npz for one file of arrays a shard, png for a folder of pictures (default npz)",
        group=SHARDS,
        choices=("npz", "png"),
    )
    distributed: tuple[str, ...] | None = distributed("be one of several processes that divide the shards", SHARDS)
    wait: int = wait(SHARDS)

    @property
    def sharded(self) -> bool:
        """Whether images go into shards."""
        return any(given is not None for given in (self.distributed, self.shard_size, self.shard_format))
