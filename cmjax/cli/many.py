"""Many images, in numbered shards, on as many hosts as there are."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import cmjax
from cmjax._mesh import Device
from cmjax.cli.devices import Lanes, choose_lanes
from cmjax.cli.drawing import Run, class_of, default_batch, with_bar
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.hosts import Hosts
from cmjax.cli.out import report
from cmjax.cli.shards import Shards, recorded
from cmjax.cli.work import Work
from cmjax.io.images import to_uint8

__all__ = ["draw_shards"]

_SHARD = 1000  # images


def draw_shards(args: argparse.Namespace, work: Work, out: Path, devices: tuple[Device, ...], hosts: Hosts) -> None:
    """Draw the shards that are missing and this process's to draw, write them, and print what was done.

    Raises:
      UsageError: the folder holds something else, another process was asked for something else, or an option does not
        suit.
    """
    if args.trajectory:
        raise UsageError("--trajectory shows every step of a few images; shards hold images alone.")
    size, kind = args.shard_size or _SHARD, args.shard_format or "npz"
    each = min(default_batch(*work.opened.shape[:2]), size)
    lanes = _lanes(args, devices, recorded(out).get("images_a_device"), each)
    said = _said(args, work) | {"shard_size": size, "shard_format": kind, "images_a_device": lanes.each}
    shards = Shards(out, work.count, size, kind, said)
    with bad_input("--out"):
        shards.check()
        there = hosts.agree(said, shards.done())
        shards.begin()
    mine = np.flatnonzero(~there)[hosts.index :: hosts.count].tolist()
    run, speed = _draw(args, work, lanes, shards, mine) if mine else (Run(None, 0.0, 0.0), "nothing was left to draw")
    note = f"{len(mine)} of {shards.number} shards drawn here, {int(there.sum())} were there"
    report(args, work.setup, run, speed, [note])


def _draw(args: argparse.Namespace, work: Work, lanes: Lanes, shards: Shards, mine: list[int]) -> tuple[Run, str]:
    """Draw and write these shards."""
    start = time.perf_counter()
    draw = work.compile(lanes, args)
    compiled = time.perf_counter()
    with bad_input():
        model = work.load()
    begun = time.perf_counter()
    for i in with_bar(mine, "drawing shards"):
        wanted = shards.indices(i)
        parts = [draw(first, model).images for first in range(wanted.start, wanted.stop, lanes.batch)]
        with bad_input("the model"):
            images = to_uint8(np.concatenate(parts)[: len(wanted)])
        with bad_input("--out"):
            shards.write(i, images, class_of(np.asarray(wanted), work.numbers))
    seconds = time.perf_counter() - begun
    count = sum(len(shards.indices(i)) for i in mine)
    return Run(None, compiled - start, seconds), lanes.speed(count, seconds)


def _lanes(args: argparse.Namespace, devices: tuple[Device, ...], recorded: Any, each: int) -> Lanes:
    """Say how many images each device draws at once: in all of a run as many, since the last bits depend on it."""
    if args.batch is None:
        each = recorded if isinstance(recorded, int) and recorded > 0 else each
        return Lanes(devices, each * len(devices))
    return choose_lanes(devices, args.batch, args.batch, each, strict=True)


def _said(args: argparse.Namespace, work: Work) -> dict[str, Any]:
    """What the images are: all that they depend on."""
    setup, path = work.setup, cmjax.artifact.tables(work.setup.state)
    with bad_input():
        digest = cmjax.io.digest(args.artifact or args.model, variant=args.variant)
    return {
        "cmjax": "samples",
        "model": digest,
        "dtype": args.dtype,
        "sampler": cmjax.io.config_dict(setup.config),
        "path": {name: np.asarray(table).tolist() for name, table in path.items()},
        "seed": args.seed,
        "num": work.count,
        "classes": None if work.classes is None else list(work.classes.numbers),
        "class_names": None if work.classes is None else list(work.classes.names),
        "image": list(work.opened.shape),
    }
