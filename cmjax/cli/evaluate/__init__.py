"""`cmjax evaluate`: how good a model's images are, each figure beside the one that real images get."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from cmjax.cli import compile_cache
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.evaluate.inputs import check_counts, check_data, check_file, open_extractor
from cmjax.cli.evaluate.measure import Real, measure_real, measure_samples
from cmjax.cli.evaluate.report import Evaluation, as_json, notes_for, print_report
from cmjax.cli.evaluate.texts import evaluate_texts
from cmjax.cli.open_model import open_model
from cmjax.cli.options import EvaluateOptions
from cmjax.cli.prompts import of_texts, read_prompts
from cmjax.cli.sampler_path import choose_sampler
from cmjax.drawing import default_batch, use_cores_as_devices
from cmjax.evaluation import EMBEDDED, halves, read_statistics
from cmjax.io.configs import write_json
from cmjax.io.image_sets import read_images

__all__ = ["run"]

_MOST = 10_000  # images, where nobody says how many


def run(options: EvaluateOptions) -> None:
    """Draw and measure images, and print the figures."""
    if prompts := read_prompts(options, strict=True):
        return evaluate_texts(options, prompts)
    if of_texts(options.model, options.variant):
        raise UsageError(f"{options.model} draws what a text says: give --prompts FILE, one prompt a line.")
    for name in ("clip", "against", "against_steps", "against_guidance", "against_sampler", "out"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to texts: give --prompts FILE too.")
    return _evaluate_images(dataclasses.replace(options, seed=options.seed or (0,)))


def _evaluate_images(options: EvaluateOptions) -> None:
    seeds = options.seed or (0,)
    _check(options, seeds)
    use_cores_as_devices()
    if options.compile_cache:
        compile_cache.enable()
    opened = open_model(options.model, dtype=options.dtype, variant=options.variant)
    with bad_input():
        data = None if options.data is None else read_images(options.data, options.split, classes=options.classes)
        reference = None if options.reference is None else read_statistics(options.reference)
    check_data(data, opened.shape, opened.classes)
    extractor = open_extractor(options.features or EMBEDDED, opened.shape)
    if reference is not None and len(reference.mean) != extractor.features:
        raise UsageError(
            f"--reference: the statistics are of {len(reference.mean)} features, but {extractor.name} has "
            f"{extractor.features}: give those of this extractor, or name the one that they are of with --features."
        )
    setup = choose_sampler(opened.checkpoint, options.model, options)
    cut = None if data is None else halves(data.labels, len(data.images))
    count = options.num or (_MOST if cut is None else min(_MOST, len(cut[1])))
    k = options.neighbours
    check_counts(count, cut, k)
    batch = min(options.batch or default_batch(*opened.shape[:2]), count)

    start = time.perf_counter()
    real = Real(reference) if reference is not None else None
    if data is not None and cut is not None:
        saved = options.save_statistics
        real = measure_real(data, cut, reference, extractor, count, batch, neighbours=k, save_statistics=saved)
    assert real is not None
    every = measure_samples(opened, setup, extractor, real, seeds, count, batch, neighbours=k)
    seconds = time.perf_counter() - start
    notes = tuple(notes_for(data, opened.classes, extractor, real.count, count))
    manifold = None if real.manifold is None else len(real.manifold)
    found = Evaluation(every, count, real.figures, real.count, manifold, notes, seconds)
    print_report(options, setup, extractor, found)
    if options.json:
        with bad_input("--json"):
            write_json(as_json(options, setup, extractor, data, found), options.json)


def _check(options: EvaluateOptions, seeds: tuple[int, ...]) -> None:
    """Refuse options that do not go together, and files that cannot be written."""
    check_file(options.json, "--json", ".json")
    check_file(options.save_statistics, "--save-statistics", ".npz")
    if options.data is None and options.reference is None:
        raise UsageError("say what the images are compared with: --data, --reference, or both.")
    if options.save_statistics and options.data is None:
        raise UsageError("--save-statistics: they are those of the images of --data, which is missing.")
    for option, path in (("--data", options.data), ("--reference", options.reference)):
        if options.save_statistics and path and Path(path).resolve() == Path(options.save_statistics).resolve():
            raise UsageError(
                f"--save-statistics: {options.save_statistics} is also the file of {option}, which would be lost."
            )
    if len(set(seeds)) < len(seeds):
        raise UsageError("--seed: one seed is there twice, and would count as two.")
