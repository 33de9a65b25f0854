"""Many images, in numbered shards, on as many hosts as there are."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import cmjax
from cmjax._mesh import Device
from cmjax.cli.devices import BatchPlan, plan_batch
from cmjax.cli.drawing import Run, class_of, default_batch, with_bar
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.hosts import Hosts
from cmjax.cli.output import report
from cmjax.cli.shards import Shards, recorded
from cmjax.cli.work import Work
from cmjax.io.images import to_uint8

__all__ = ["draw_shards"]

_SHARD = 1000  # images
_MOST = 1 << 16  # images that a device may draw at once


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
    lanes = _lanes(args, devices, hosts.largest(_recorded(out)), each)
    said = _said(args, work) | {"shard_size": size, "shard_format": kind, "images_a_device": lanes.each}
    shards = Shards(out, work.count, size, kind, said)
    shards.check()
    there = hosts.agree(said, shards.done())
    with bad_input("--out"):
        shards.begin()
    mine = np.flatnonzero(~there)[hosts.index :: hosts.count].tolist()
    run, speed = _draw(args, work, lanes, shards, mine) if mine else (Run(None, 0.0, 0.0), "nothing was left to draw")
    shards.sweep()
    note = f"{len(mine)} of {shards.number} shards drawn here, {int(there.sum())} were there"
    report(args, work.setup, run, speed, [note])


def _draw(args: argparse.Namespace, work: Work, lanes: BatchPlan, shards: Shards, mine: list[int]) -> tuple[Run, str]:
    """Draw these shards' images in whole batches, whatever the shards' size, and write each shard when it is full."""
    start = time.perf_counter()
    draw = work.compile(lanes, args)
    compiled = time.perf_counter()
    with bad_input():
        model = draw.place(work.load())
    begun = time.perf_counter()
    wanted = np.concatenate([np.asarray(shards.indices(i), np.int32) for i in mine])
    held, left = [], list(mine)
    for first in with_bar(range(0, len(wanted), lanes.batch), "drawing shards"):
        numbers = wanted[first : first + lanes.batch]
        full = np.pad(numbers, (0, lanes.batch - len(numbers)), "edge")
        with bad_input("the model"):
            held.extend(to_uint8(draw.of(full, model).images[: len(numbers)]))
        while left and len(held) >= len(shards.indices(left[0])):
            own = shards.indices(left[0])
            with bad_input("--out"):
                shards.write(left.pop(0), np.stack(held[: len(own)]), class_of(np.asarray(own), work.numbers))
            del held[: len(own)]
    seconds = time.perf_counter() - begun
    return Run(None, compiled - start, seconds), lanes.speed(len(wanted), seconds)


def _recorded(out: Path) -> int:
    """How many images a device drew at once in the run that is there; 0 where there is none."""
    each = recorded(out).get("images_a_device")
    return each if type(each) is int and 0 < each <= _MOST else 0


def _lanes(args: argparse.Namespace, devices: tuple[Device, ...], recorded: int, each: int) -> BatchPlan:
    """Say how many images each device draws at once: in all of a run as many, since the last bits depend on it."""
    if args.batch is None:
        return BatchPlan(devices, (recorded or each) * len(devices))
    return plan_batch(devices, args.batch, args.batch, each, strict=True)


def _said(args: argparse.Namespace, work: Work) -> dict[str, Any]:
    """What the images are: all that they depend on."""
    setup, path = work.setup, cmjax.artifact.tables(work.setup.state)
    with bad_input():
        digest = cmjax.io.digest(args.artifact or args.model, variant=args.variant)
    return {
        "cmjax": "samples",
        "model": digest,
        "variant": args.variant,
        "dtype": args.dtype,
        "sampler": cmjax.io.config_dict(setup.config),
        "path": {name: np.asarray(table).tolist() for name, table in path.items()},
        "seed": args.seed,
        "num": work.count,
        "classes": None if work.classes is None else list(work.classes.numbers),
        "class_names": None if work.classes is None else list(work.classes.names),
        "image": list(work.opened.shape),
    }
