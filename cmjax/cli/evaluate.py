"""`cmjax evaluate`: how good a model's images are, each figure beside the one that real images get."""

from __future__ import annotations

import argparse
import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli import compile_cache, cores
from cmjax.cli.drawing import class_of, compile_batches, default_batch, with_bar
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.sampler import Opened, Setup, open_model, prepare
from cmjax.evaluation import (
    EMBEDDED,
    Extractor,
    Features,
    Figures,
    Gaussian,
    Moments,
    Seen,
    feature_shapes,
    halves,
    load_extractor,
    look,
    measure,
    read_statistics,
    write_statistics,
)
from cmjax.io import ImageData
from cmjax.io.atomic import check_writable
from cmjax.io.configs import write_json
from cmjax.io.images import read_images

__all__ = ["run"]

_MOST = 10_000  # images, where nobody says how many
_TITLES = {
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy",
}


class _Eye(NamedTuple):
    """An extractor, its name, and the numbers of its features and classes."""

    extractor: Extractor
    name: str
    features: int
    classes: int | None


class _Real(NamedTuple):
    """What there is to compare with: the reference, the manifold, and the figures of so many real images."""

    reference: Moments | Gaussian
    manifold: np.ndarray | None = None
    figures: Figures | None = None
    count: int = 0


class _Batch(NamedTuple):
    """What comes back of a batch: whether each image is finite, and what the extractor saw."""

    finite: Any
    seen: Features


def run(args: argparse.Namespace) -> None:
    """Draw, look, measure, and print what `args` asks for."""
    _check_file(args.json, "--json", ".json")
    _check_file(args.save_statistics, "--save-statistics", ".npz")
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
    _check_data(data, opened)
    eye = _open_eye(args, opened.shape)
    if given is not None and len(given.mean) != eye.features:
        raise UsageError(
            f"--reference: the statistics are of {len(given.mean)} features, but {eye.name} has {eye.features}: "
            "give those of this extractor, or name the one that they are of with --features."
        )
    setup = prepare(opened.checkpoint, args)
    cut = None if data is None else halves(data.labels, len(data.images))
    count = args.num or (_MOST if cut is None else min(_MOST, len(cut[1])))
    _check_counts(count, cut, args.neighbours)
    batch = min(args.batch or default_batch(*opened.shape[:2]), count)

    start = time.perf_counter()
    real = _Real(given) if given is not None else None
    if data is not None and cut is not None:
        real = _look_at_data(args, data, cut, given, eye, count, batch)
    assert real is not None
    every = _draw_and_measure(args, opened, setup, eye, real, count, batch)
    seconds = time.perf_counter() - start
    notes = list(_notes(data, opened, eye, real, count))
    _report(args, setup, eye, real, every, count, notes)
    if args.json:
        with bad_input("--json"):
            write_json(_as_json(args, setup, eye, data, real, every, count, notes, seconds), args.json)


# ---- looking ---------------------------------------------------------------------------------------------------------


def _look_at_data(
    args: argparse.Namespace,
    data: ImageData,
    cut: tuple[np.ndarray, np.ndarray],
    given: Gaussian | None,
    eye: _Eye,
    count: int,
    batch: int,
) -> _Real:
    """Look at both halves of the data: the one is what samples are compared with, the other is compared as they are."""
    half, others = cut
    candidates, rest = others[:count], others[count if args.save_statistics else len(others) :]
    parts, manifold = (half, candidates, rest), min(count, len(half))
    order = np.concatenate([np.resize(part, _whole(len(part), batch)) for part in parts])

    def draw(extractor, _, pictures):
        return _judge(extractor, pictures.astype(jnp.float32) / 127.5 - 1.0)

    compiled = compile_batches(draw, eye.extractor, None, batch, lambda i: data.images[order[i]])
    lengths = [len(part) for part in parts]
    seen = list(_look_at_sets(compiled, eye.extractor, lengths, batch, eye, manifold, "the data"))
    if args.save_statistics:
        with bad_input("--save-statistics"):
            write_statistics(args.save_statistics, seen[0].moments.merge(seen[1].moments).merge(seen[2].moments))
    told_apart = data.labels is not None and eye.classes is not None and int(data.labels.max()) < eye.classes
    labels = data.labels[candidates] if told_apart and data.labels is not None else None
    reference = given or seen[0].moments
    figures = measure(seen[1], reference, seen[0].features, labels, k=args.neighbours)
    return _Real(reference, seen[0].features, figures, len(candidates))


def _draw_and_measure(
    args: argparse.Namespace, opened: Opened, setup: Setup, eye: _Eye, real: _Real, count: int, batch: int
) -> list[Figures]:
    """Draw the images of every seed, batch by batch; nothing of a batch is kept but features."""
    classes = None if opened.classes is None else range(opened.classes)

    def rows(numbers: np.ndarray) -> Any:
        seed, index = np.divmod(numbers, _whole(count, batch))
        return seed, index, class_of(index, classes)

    def draw(networks, shared, rows):
        (model, extractor), (state, keys), (seed, index, cond) = networks, shared, rows
        own = jax.vmap(lambda seed, index: jax.random.fold_in(keys[seed], index))(seed, index)  # as `cmjax sample`
        return _judge(extractor, cmjax.generate(model, state, own, (batch, *opened.shape), cond))

    keys = jnp.stack([jax.random.key(seed) for seed in args.seed])
    compiled = compile_batches(draw, (setup.model, eye.extractor), (setup.state, keys), batch, rows)
    with bad_input():
        networks = setup.with_weights(opened.load()), eye.extractor
    keep = 0 if real.manifold is None else len(real.manifold)
    sets = _look_at_sets(compiled, networks, [count] * len(args.seed), batch, eye, keep, "the model")
    labels = class_of(np.arange(count), classes) if opened.classes == eye.classes else None
    return [measure(seen, real.reference, real.manifold, labels, k=args.neighbours) for seen in sets]


def _look_at_sets(
    compiled: Callable[[int, Any], _Batch],
    networks: Any,
    lengths: Sequence[int],
    batch: int,
    eye: _Eye,
    keep: int,
    source: str,
) -> Iterator[Seen]:
    """Look at sets of images, one after the other under one bar; each begins with a batch of its own."""
    starts = itertools.accumulate((_whole(length, batch) for length in lengths), initial=0)
    jobs = [
        (start + i, length - i) for start, length in zip(starts, lengths, strict=False) for i in range(0, length, batch)
    ]
    bar = iter(with_bar(jobs, source))
    for length in lengths:
        mine = itertools.islice(bar, _whole(length, batch) // batch)
        batches = (_checked(compiled(first, networks), wanted, source) for first, wanted in mine)
        yield look(batches, eye.features, keep=keep)
    next(bar, None)  # nothing is left: this ends the bar


def _whole(length: int, batch: int) -> int:
    """So many images fill the batches that hold that many."""
    return length + -length % batch


def _judge(extractor: Extractor, images: Any) -> _Batch:
    """Look at images as they would be written: in 256 levels."""
    finite = jnp.isfinite(images).all(axis=(1, 2, 3))
    levels = jnp.clip(jnp.round((images.astype(jnp.float32) + 1.0) * 127.5), 0, 255)
    return _Batch(finite, extractor(levels / 127.5 - 1.0))


def _checked(batch: _Batch, wanted: int, source: str) -> Features:
    """Refuse what is not finite, and drop what fills up the last batch."""
    finite, seen = batch.finite[:wanted], jax.tree.map(lambda array: array[:wanted], batch.seen)
    if not finite.all():
        raise UsageError(f"{source}: {int((~finite).sum())} of {len(finite)} images hold NaN or infinity.")
    for name, array in seen._asdict().items():
        if array is not None and not (good := np.isfinite(array).all(axis=1)).all():
            bad = int((~good).sum())
            raise UsageError(f"--features: the extractor's {name} of {bad} of {len(good)} images are NaN or infinite.")
    return seen


# ---- checks, before anything is computed -----------------------------------------------------------------------------


def _check_file(path: str | None, option: str, suffix: str) -> None:
    if path is None:
        return
    if Path(path).suffix.lower() != suffix:
        raise UsageError(f"{option} must end in {suffix}, got {path}.")
    if Path(path).is_dir():
        raise UsageError(f"{option}: {path} is a folder, not a file.")
    with bad_input(option):
        check_writable(path)


def _check_data(data: ImageData | None, opened: Opened) -> None:
    if data is None:
        return
    if data.images.shape[1:] != opened.shape:
        raise UsageError(
            f"--data: the images are {data.images.shape[1:]}, but the model makes {opened.shape}: bring them to its "
            "height, width and channels first (and say how, beside the figures)."
        )
    if data.labels is not None and opened.classes is not None and data.labels.max() >= opened.classes:
        raise UsageError(
            f"--data: the labels go to {data.labels.max()}, but the model has {opened.classes} classes, "
            f"0 ... {opened.classes - 1}."
        )


def _open_eye(args: argparse.Namespace, shape: tuple[int, int, int]) -> _Eye:
    try:
        with bad_input("--features"):
            extractor = load_extractor(args.features)
            return _Eye(extractor, args.features, *feature_shapes(extractor, shape))
    except TypeError as error:
        raise UsageError(f"--features: {' '.join(str(error).split())}") from error
    except UsageError as error:
        if args.features != EMBEDDED:
            raise
        raise UsageError(f"{error} Name an extractor of your own: --features package.module:make.") from error


def _check_counts(count: int, cut: tuple[np.ndarray, np.ndarray] | None, k: int) -> None:
    if cut is None:
        if count < 2:
            raise UsageError(f"--num: a covariance needs at least 2 images, got {count}.")
        return
    if len(cut[0]) <= k:
        raise UsageError(
            f"--data: half of it, {len(cut[0])} images, must be more than the {k} neighbours of precision and recall."
        )
    if count <= k:
        raise UsageError(f"--num must be more than the {k} neighbours of precision and recall, got {count}.")


# ---- telling ---------------------------------------------------------------------------------------------------------


def _notes(data: ImageData | None, opened: Opened, eye: _Eye, real: _Real, count: int) -> Iterator[str]:
    """Say what a reader of the figures must know."""
    if min(count, real.count or count) <= eye.features:
        yield f"no more images than features ({eye.features}): the distance is far too large; take more"
    if data is not None and real.count < count:
        yield f"real figures are of {real.count:,} images, which makes their distance larger than that of {count:,}"
    if eye.classes is None or opened.classes != eye.classes:
        if opened.classes is not None:
            seen = "none" if eye.classes is None else f"{eye.classes} classes"
            yield f"no class accuracy: the model has {opened.classes} classes, the extractor {seen}"
    elif data is not None and data.labels is None:
        yield "the data has no labels: no class accuracy of real images"
    if data is not None and data.labels is not None and opened.classes is not None:
        sizes = np.bincount(data.labels, minlength=opened.classes)
        if sizes.max() > 1.1 * sizes.min():
            yield "the data's classes are of unequal size; the model's are drawn in equal numbers"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _report(
    args: argparse.Namespace,
    setup: Setup,
    eye: _Eye,
    real: _Real,
    every: list[Figures],
    count: int,
    notes: list[str],
) -> None:
    """Print what was asked for, and the figures."""
    several, steps = len(args.seed) > 1, setup.state.num_steps
    split_name = f" ({args.split})" if args.data and args.data.lower().endswith(".npz") else ""
    compared = f"{args.data}{split_name}: half of it, the other half as real images" if args.data else ""
    classes = "" if eye.classes is None else f", {eye.classes} classes"
    rows = {
        "model": args.model,
        "sampler": f"{setup.sampler}, {steps} step{'' if steps == 1 else 's'}{setup.note}",
        "images": f"{count:,} of {'each of the seeds' if several else 'seed'} {', '.join(map(str, args.seed))}",
        "real": f"{real.count:,} images" if real.count else "",
        "data": compared,
        "reference": args.reference or "",
        "extractor": f"{eye.name}: {eye.features} features{classes}",
    }
    about = Table(show_header=False, box=None, pad_edge=False)
    about.add_column(style="bold")
    about.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            about.add_row(name, escape(value))
    for note in notes:
        about.add_row("note", escape(note))
    table = Table(box=None, pad_edge=False)
    table.add_column()
    for column in ("samples ± std" if several else "samples", "real"):
        table.add_column(column, justify="right")
    for name, title in _TITLES.items():
        values = [getattr(figures, name) for figures in every]
        own = None if real.figures is None else getattr(real.figures, name)
        if _mean(values) is not None or own is not None:
            table.add_row(title, _shown(_mean(values), _spread(values)), _shown(own, None))
    console = Console()
    console.print(about)
    console.print()
    console.print(table)


def _shown(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if spread is None else f"{value:.4g} ± {spread:.2g}"


def _as_json(
    args: argparse.Namespace,
    setup: Setup,
    eye: _Eye,
    data: ImageData | None,
    real: _Real,
    every: list[Figures],
    count: int,
    notes: list[str],
    seconds: float,
) -> dict[str, Any]:
    """All that was asked for and all that was found."""
    eta = inspect.signature(cmjax.tcd.init).parameters["eta"].default if args.eta is None else args.eta
    columns = {name: [getattr(figures, name) for figures in every] for name in Figures._fields}
    return {
        "cmjax": cmjax.__version__,
        "model": args.model,
        "variant": args.variant,
        "dtype": args.dtype,
        "sampler": setup.sampler,
        "steps": int(setup.state.num_steps),
        "timesteps": np.asarray(setup.state.timesteps).tolist(),
        "eta": eta if setup.sampler == "tcd" else None,
        "seeds": list(args.seed),
        "images_a_seed": count,
        "extractor": {"name": eye.name, "features": eye.features, "classes": eye.classes},
        "data": None
        if data is None
        else {"path": args.data, "split": args.split, "images": len(data.images), "labels": data.labels is not None},
        "reference": args.reference,
        "neighbours": args.neighbours,
        "images_of_a_manifold": None if real.manifold is None else len(real.manifold),
        "samples": [{"seed": seed, **figures._asdict()} for seed, figures in zip(args.seed, every, strict=True)],
        "mean": {name: _mean(values) for name, values in columns.items()},
        "standard_deviation": {name: _spread(values) for name, values in columns.items()},
        "real": None if real.figures is None else {"images": real.count, **real.figures._asdict()},
        "notes": notes,
        "devices": jax.local_device_count(),
        "seconds": round(seconds, 2),
    }
