"""The figures of an evaluation: as a table to read, and as JSON, each with what its reader must know."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.evaluate.inputs import NamedExtractor
from cmjax.cli.evaluate.measure import Real
from cmjax.cli.open_model import SamplerSetup, UnloadedModel
from cmjax.evaluation import Figures
from cmjax.io import ImageData

__all__ = ["as_json", "notes_for", "report"]

_TITLES = {
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy",
}


def notes_for(
    data: ImageData | None, opened: UnloadedModel, eye: NamedExtractor, real: Real, count: int
) -> Iterator[str]:
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


def report(
    args: argparse.Namespace,
    setup: SamplerSetup,
    eye: NamedExtractor,
    real: Real,
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


def as_json(
    args: argparse.Namespace,
    setup: SamplerSetup,
    eye: NamedExtractor,
    data: ImageData | None,
    real: Real,
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
