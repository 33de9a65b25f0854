"""`cmjax sample`: images from a model, in one compiled call a batch."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cmjax.cli import compile_cache, cores
from cmjax.cli.devices import choose_devices, plan_batch
from cmjax.cli.drawing import Drawn, class_grid, class_of, default_batch, draw_all, strips
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.hosts import meet
from cmjax.cli.many import draw_shards
from cmjax.cli.output import check_out, report
from cmjax.cli.work import Classes, Work, plan
from cmjax.io.images import to_uint8, write_npz, write_png

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Draw the images that `args` asks for, write them, and print what was done."""
    sharded = any(option is not None for option in (args.distributed, args.shard_size, args.shard_format))
    if sharded:  # many batches: 1.4 times as fast on two cores (`benchmarks/scaling.py`)
        cores.as_devices()
    with meet(args.distributed, args.wait) as hosts:
        out = Path(args.out)
        kind = check_out(out, (".png", ".npz"))
        if sharded and kind:
            raise UsageError(f"--out: shards go into a folder, not into a {kind} file.")
        if not args.no_compile_cache:
            compile_cache.enable()
        work = plan(args)
        channels, in_arrays = work.opened.shape[-1], kind == ".npz" or (sharded and args.shard_format != "png")
        if channels not in (1, 3) and not in_arrays:
            raise UsageError(
                f"the model makes images of {channels} channels, which only an .npz file holds: --out samples.npz."
            )
        if sharded:
            draw_shards(args, work, out, choose_devices(args.devices), hosts)
        else:
            _draw(args, work, out, kind)


def _draw(args: argparse.Namespace, work: Work, out: Path, kind: str) -> None:
    """Draw all images, and write them to one file or one folder."""
    each, strict = default_batch(*work.opened.shape[:2]), args.devices is not None
    lanes = plan_batch(choose_devices(args.devices), args.batch, work.count, each, strict=strict)
    run = draw_all(lambda: work.compile(lanes, args), work.load, work.count, lanes.batch)
    with bad_input("the model"):  # NaN, which is not for any picture
        drawn = Drawn(*(None if part is None else to_uint8(part) for part in run.images))
    with bad_input("--out"):
        _write(out, kind, drawn, work.classes)
    report(args, work.setup, run, lanes.speed(work.count, run.seconds))


def _write(out: Path, kind: str, drawn: Drawn, classes: Classes | None) -> None:
    """Write u8 arrays, a grid with one row a class, or one file an image."""
    labels = class_of(np.arange(len(drawn.images)), None if classes is None else classes.numbers)
    if kind == ".npz":
        arrays = {"images": drawn.images, "labels": labels, "x0": drawn.x0}
        write_npz(out, **{name: array for name, array in arrays.items() if array is not None})
    elif kind == ".png":
        write_png(class_grid(strips(drawn), None if classes is None else classes.names), out)
    else:
        out.mkdir(exist_ok=True)
        for i, image in enumerate(strips(drawn)):
            write_png(image, out / f"{i:05}{'' if labels is None else f'-class{labels[i]}'}.png")
