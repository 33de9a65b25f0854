"""Report the figures of `cmjax evaluate --prompts`: a table of rows, the same as JSON, and a picture of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cmjax
from cmjax.cli.evaluate.text_inputs import Entry, TextInputs
from cmjax.cli.evaluate.text_measure import Row
from cmjax.cli.options import EvaluateOptions
from cmjax.evaluation import WEIGHT
from cmjax.io.images import grid

__all__ = ["Measured", "as_json", "notes_for", "picture_of", "print_report"]

_TITLES = {"clip_score": "CLIP score", "all": "all of it"}
_LAST = ("all", "diversity")
_FIRST = ("clip_score", "subject", "style", "colour", "place", "number")


class Measured(NamedTuple):
    """The figures of a row.

    Attributes:
      row: what was seen.
      figures: of each picture, from `figures_of`.
      distances: Frechet distances, by what they are measured from.
    """

    row: Row
    figures: dict[str, np.ndarray]
    distances: dict[str, float]

    def mean(self, name: str) -> float | None:
        """The mean over what has that figure; None where nothing has."""
        return _mean(self.figures[name]) if name in self.figures else None

    def by_seed(self, name: str) -> list[float | None]:
        """The mean of each seed; empty where pictures have no seeds, or the figure is of all seeds together."""
        values, seeds = self.figures.get(name), self.row.seeds
        if values is None or seeds is None or name == "diversity":
            return []
        return [_mean(values[seeds == seed]) for seed in range(int(seeds.max()) + 1)]


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def notes_for(inputs: TextInputs, rows: Sequence[Measured], seeds: int) -> list[str]:
    """Say what a reader of the figures must know."""
    notes, first = [], rows[0]
    counts = [len(one.row.seen.features) for one in rows]
    if any(one.distances for one in rows) and min(counts) <= inputs.width:
        notes.append(
            f"no more pictures than features ({inputs.width}) in a row: its Frechet distance is far too large; take "
            "more prompts or seeds"
        )
    if any(one.distances for one in rows) and len(set(counts)) > 1:
        notes.append("rows are of different numbers of pictures, and fewer pictures make the Frechet distance larger")
    if seeds < 2:
        none = "no diversity and " if first.mean("diversity") is None else ""
        notes.append(f"one seed: {none}no standard deviation")
    values = first.figures.get("all")
    if values is not None and (open_ := int(np.isnan(values).sum())):
        notes.append(f"{open_} of {len(values)} pictures have prompts in other words than the judge knows")
    elif "all" in first.figures and (unknown := int(np.isnan(first.figures["subject"]).sum())):
        notes.append(f"{unknown} of {len(first.figures['subject'])} pictures have prompts whose subject is unknown")
    return notes


# ---- the table -------------------------------------------------------------------------------------------------------


def print_report(
    options: EvaluateOptions, inputs: TextInputs, rows: Sequence[Measured], seeds: Sequence[int], notes: Sequence[str]
) -> None:
    """Print what was asked for, and one row a model."""
    prompts = len(inputs.entries[0].text.prompts)
    about = Table(show_header=False, box=None, pad_edge=False)
    about.add_column(style="bold")
    about.add_column(overflow="fold")
    for entry in inputs.entries:
        about.add_row("model" if entry is inputs.entries[0] else "against", escape(_described(entry)))
    several = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    about.add_row("pictures", f"{prompts * len(seeds):,} a model: {prompts:,} prompts, {several}")
    about.add_row("features", escape(f"{inputs.features}: {inputs.width}"))
    for name, value in (("CLIP", options.clip), ("data", options.data), ("reference", options.reference)):
        if value:
            about.add_row(name, escape(value))
    for note in notes:
        about.add_row("note", escape(note))
    table = Table(box=None, pad_edge=False)
    table.add_column()
    names = [one.row.name for one in rows]
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for figure in _figures(rows):
        cells = [_shown(one.mean(figure), _spread(one.by_seed(figure))) for one in rows]
        table.add_row(_TITLES.get(figure, figure), *cells)
    for source in dict.fromkeys(source for one in rows for source in one.distances):
        cells = [_shown(one.distances.get(source), None) for one in rows]
        table.add_row(escape(f"Frechet distance to {source}"), *cells)
    table.add_row("pictures/s", *[f"{len(one.row.seen.features) / one.row.seconds:.3g}" for one in rows])
    console = Console()
    console.print(about)
    console.print()
    console.print(table)


def _described(entry: Entry) -> str:
    guidance = "" if entry.options.guidance in (None, 1) else f", guidance {entry.options.guidance:g}"
    loras = ", ".join(f"{name}{'' if scale is None else f':{scale:g}'}" for name, scale in entry.options.lora or ())
    steps = f"{entry.setup.sampler}, {entry.setup.steps} step{'' if entry.setup.state.num_steps == 1 else 's'}"
    return f"{entry.options.model}{f' with {loras}' if loras else ''}; {steps}{guidance}"


def _figures(rows: Sequence[Measured]) -> list[str]:
    found = {name for one in rows for name in one.figures if one.mean(name) is not None}
    others = sorted(found - {*_FIRST, *_LAST})
    return [name for name in (*_FIRST, *others, *_LAST) if name in found]


def _shown(value: float | None, spread: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(
    options: EvaluateOptions,
    inputs: TextInputs,
    rows: Sequence[Measured],
    seeds: Sequence[int],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return all that was asked for and all that was found; `clip_score` has w = 1, `clip_s` w = 2.5."""
    entries = {entry.name: entry for entry in inputs.entries}
    return {
        "cmjax": cmjax.__version__,
        "prompts": list(inputs.entries[0].text.prompts),
        "seeds": list(seeds),
        "size": list(inputs.shape[:2]),
        "features": {"name": inputs.features, "features": inputs.width},
        "clip": options.clip,
        "data": options.data,
        "reference": options.reference,
        "rows": [_row(one, entries.get(one.row.name)) for one in rows],
        "notes": list(notes),
        "devices": jax.local_device_count(),
    }


def _row(one: Measured, entry: Entry | None) -> dict[str, Any]:
    said: dict[str, Any] = {"name": one.row.name, "pictures": len(one.row.seen.features)}
    if entry is not None:
        state = entry.setup.state
        said |= {
            "model": entry.options.model,
            "lora": [list(lora) for lora in entry.options.lora or ()],
            "sampler": entry.setup.sampler,
            "steps": int(state.num_steps),
            "timesteps": np.asarray(state.timesteps).tolist(),
            "eta": entry.options.eta,
            "guidance": entry.options.guidance,
            "negative": entry.options.negative,
        }
    means = {name: one.mean(name) for name in one.figures}
    if (score := means.get("clip_score")) is not None:
        means["clip_s"] = WEIGHT * score
    spread = {name: _spread(one.by_seed(name)) for name in one.figures if one.by_seed(name)}
    seeds = {name: one.by_seed(name) for name in one.figures if one.by_seed(name)}
    said |= {"mean": means, "standard_deviation": spread, "by_seed": seeds}
    return {**said, "frechet_distance": one.distances, "seconds": round(one.row.seconds, 3)}


# ---- the picture -----------------------------------------------------------------------------------------------------


def picture_of(rows: Sequence[Measured], prompts: Sequence[str]) -> Image.Image:
    """Lay the first pictures out: a row for each prompt, and in it those of every model, side by side."""
    shown: Mapping[str, np.ndarray] = {one.row.name: one.row.shown for one in rows if one.row.shown is not None}
    columns = np.concatenate([np.asarray(pictures) for pictures in shown.values()], axis=1)
    count, width = columns.shape[:2]
    letters = [f"{chr(ord('A') + i)}{k}" for i, pictures in enumerate(shown.values()) for k in range(pictures.shape[1])]
    flat = columns.reshape(-1, *columns.shape[2:])
    return grid(flat, width, column_labels=letters, row_captions=list(prompts[:count]))
