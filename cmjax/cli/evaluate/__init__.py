"""`cmjax evaluate`: how good a model's images are, each figure beside the one that real images get."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cmjax.cli import compile_cache, cores
from cmjax.cli.drawing import default_batch
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.evaluate.inputs import check_counts, check_data, check_file, open_extractor
from cmjax.cli.evaluate.measure import Real, draw_and_measure, look_at_data
from cmjax.cli.evaluate.report import as_json, notes_for, report
from cmjax.cli.open_model import open_model, prepare
from cmjax.evaluation import halves, read_statistics
from cmjax.io.configs import write_json
from cmjax.io.images import read_images

__all__ = ["run"]

_MOST = 10_000  # images, where nobody says how many


def run(args: argparse.Namespace) -> None:
    """Draw, look, measure, and print what `args` asks for."""
    check_file(args.json, "--json", ".json")
    check_file(args.save_statistics, "--save-statistics", ".npz")
    if args.data is None and args.reference is None:
        raise UsageError("say what the images are compared with: --data, --reference, or both.")
    if args.save_statistics and args.data is None:
        raise UsageError("--save-statistics: they are those of the images of --data, which is missing.")
    for option, path in (("--data", args.data), ("--reference", args.reference)):
        if args.save_statistics and path and Path(path).resolve() == Path(args.save_statistics).resolve():
            raise UsageError(
                f"--save-statistics: {args.save_statistics} is the very file of {option}, which would be lost."
            )
    if len(set(args.seed)) < len(args.seed):
        raise UsageError("--seed: one seed is there twice, and would count as two.")
    cores.as_devices()
    if not args.no_compile_cache:
        compile_cache.enable()
    opened = open_model(args, pictures=False)
    with bad_input():
        data = None if args.data is None else read_images(args.data, args.split)
        given = None if args.reference is None else read_statistics(args.reference)
    check_data(data, opened)
    eye = open_extractor(args, opened.shape)
    if given is not None and len(given.mean) != eye.features:
        raise UsageError(
            f"--reference: the statistics are of {len(given.mean)} features, but {eye.name} has {eye.features}: "
            "give those of this extractor, or name the one that they are of with --features."
        )
    setup = prepare(opened.checkpoint, args)
    cut = None if data is None else halves(data.labels, len(data.images))
    count = args.num or (_MOST if cut is None else min(_MOST, len(cut[1])))
    check_counts(count, cut, args.neighbours)
    batch = min(args.batch or default_batch(*opened.shape[:2]), count)

    start = time.perf_counter()
    real = Real(given) if given is not None else None
    if data is not None and cut is not None:
        real = look_at_data(args, data, cut, given, eye, count, batch)
    assert real is not None
    every = draw_and_measure(args, opened, setup, eye, real, count, batch)
    seconds = time.perf_counter() - start
    notes = list(notes_for(data, opened, eye, real, count))
    report(args, setup, eye, real, every, count, notes)
    if args.json:
        with bad_input("--json"):
            write_json(as_json(args, setup, eye, data, real, every, count, notes, seconds), args.json)
