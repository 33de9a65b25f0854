"""Report the figures of an evaluation: as a table to read and as JSON, each with what its reader must know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.evaluate.inputs import NamedExtractor
from cmjax.cli.options import EvaluateOptions
from cmjax.cli.sampler_path import SamplerSetup
from cmjax.evaluation import Figures
from cmjax.io import ImageData
from cmjax.schedules import DEFAULT_ETA

__all__ = ["Evaluation", "as_json", "notes_for", "print_report"]

_TITLES = {
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy",
}


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
      samples: the figures of each seed.
      count: images a seed.
      real: the figures of real images, if there were any.
      real_count: how many real images those are.
      manifold: how many images precision and recall compare with; None without data.
      notes: what a reader of the figures must know.
      seconds: how long it took.
    """

    samples: Sequence[Figures]
    count: int
    real: Figures | None
    real_count: int
    manifold: int | None
    notes: Sequence[str]
    seconds: float


def notes_for(
    data: ImageData | None, classes: int | None, extractor: NamedExtractor, real_count: int, count: int
) -> Iterator[str]:
    """Say what a reader of the figures must know.

    Args:
      data: the real images, if there are any.
      classes: how many the model has, or None.
      extractor: of features.
      real_count: how many real images were compared.
      count: images a seed.
    """
    if min(count, real_count or count) <= extractor.features:
        yield f"no more images than features ({extractor.features}): the distance is far too large; take more"
    if data is not None and real_count < count:
        yield f"real figures are of {real_count:,} images, which makes their distance larger than that of {count:,}"
    if extractor.classes is None or classes != extractor.classes:
        if classes is not None:
            seen = "none" if extractor.classes is None else f"{extractor.classes} classes"
            yield f"no class accuracy: the model has {classes} classes, the extractor {seen}"
    elif data is not None and data.labels is None:
        yield "the data has no labels: no class accuracy of real images"
    if data is not None and data.labels is not None and classes is not None:
        sizes = np.bincount(data.labels, minlength=classes)
        if sizes.max() > 1.1 * sizes.min():
            yield "the data's classes are of unequal size; the model's are drawn in equal numbers"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def print_report(options: EvaluateOptions, setup: SamplerSetup, extractor: NamedExtractor, found: Evaluation) -> None:
    """Print what was asked for, and the figures."""
    several, steps = len(found.samples) > 1, setup.state.num_steps
    split_name = f" ({options.split})" if options.data and options.data.lower().endswith(".npz") else ""
    compared = f"{options.data}{split_name}: half of it, the other half as real images" if options.data else ""
    classes = "" if extractor.classes is None else f", {extractor.classes} classes"
    seeds = f"{'each of the seeds' if several else 'seed'} {', '.join(map(str, options.seed or ()))}"
    rows = {
        "model": options.model,
        "sampler": f"{setup.sampler}, {steps} step{'' if steps == 1 else 's'}{setup.note}",
        "images": f"{found.count:,} of {seeds}",
        "real": f"{found.real_count:,} images" if found.real_count else "",
        "data": compared,
        "reference": options.reference or "",
        "extractor": f"{extractor.name}: {extractor.features} features{classes}",
    }
    about = Table(show_header=False, box=None, pad_edge=False)
    about.add_column(style="bold")
    about.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            about.add_row(name, escape(value))
    for note in found.notes:
        about.add_row("note", escape(note))
    table = Table(box=None, pad_edge=False)
    table.add_column()
    for column in ("samples ± std" if several else "samples", "real"):
        table.add_column(column, justify="right")
    for name, title in _TITLES.items():
        values = [getattr(figures, name) for figures in found.samples]
        own = None if found.real is None else getattr(found.real, name)
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
    options: EvaluateOptions,
    setup: SamplerSetup,
    extractor: NamedExtractor,
    data: ImageData | None,
    found: Evaluation,
) -> dict[str, Any]:
    """Return all that was asked for and all that was found."""
    eta = DEFAULT_ETA if options.eta is None else options.eta
    columns = {name: [getattr(figures, name) for figures in found.samples] for name in Figures._fields}
    read = None
    if data is not None:
        read = {"path": options.data, "split": options.split, "images": len(data.images)}
        read["labels"] = data.labels is not None
    return {
        "cmjax": cmjax.__version__,
        "model": options.model,
        "variant": options.variant,
        "dtype": options.dtype,
        "sampler": setup.sampler,
        "steps": int(setup.state.num_steps),
        "timesteps": np.asarray(setup.state.timesteps).tolist(),
        "eta": eta if setup.sampler == "tcd" else None,
        "seeds": list(options.seed or ()),
        "images_a_seed": found.count,
        "extractor": {"name": extractor.name, "features": extractor.features, "classes": extractor.classes},
        "data": read,
        "reference": options.reference,
        "neighbours": options.neighbours,
        "images_of_a_manifold": found.manifold,
        "samples": [
            {"seed": seed, **figures._asdict()} for seed, figures in zip(options.seed or (), found.samples, strict=True)
        ],
        "mean": {name: _mean(values) for name, values in columns.items()},
        "standard_deviation": {name: _spread(values) for name, values in columns.items()},
        "real": None if found.real is None else {"images": found.real_count, **found.real._asdict()},
        "notes": list(found.notes),
        "devices": jax.local_device_count(),
        "seconds": round(found.seconds, 2),
    }
