"""Measure what the recipes of `recipes.py` draw, and print the table in markdown.

    recipe_table.py --data pictograms.npz --work FOLDER --json figures.json [--grid grid.png]
    recipe_table.py --json figures.json                                          # the table again, of what was measured

The judge and the five accuracies are those of `evaluate.py`: shares of the prompts, half of them of combinations that
training never saw. Each has its standard error over the prompts. `features_to_teacher` is the mean distance, in the
judge's features, between a picture and the guided teacher's of the same prompt and noise; `rms_to_teacher` is that of
the pixels. Diversity is the mean distance between two pictures of one prompt, in the same features.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import data as emoji
import jax
import numpy as np
from captions import Tokenizer
from evaluate import compose, load_teacher, prompts, reconstruct, texts
from judge import sharpness
from recipes import ROWS, grey

import cmjax
from cmjax import evaluation

sys.path.append(str(Path(__file__).parents[1]))
from common import machine

_HERE = Path(__file__).parent
_BATCH = 25
ATTRIBUTES = ("subject", "style", "colour", "place", "number")


def look(judge: Any, pictures: np.ndarray) -> Any:
    """What the judge sees in pictures f[N, 64, 64, 3]: an `evaluation.Judged` of host arrays."""
    see = jax.jit(lambda judge, x: judge.see(x))
    parts = [see(judge, pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))


class Figures:
    """Measures sets of pictures of the prompts, all beside the teacher's."""

    def __init__(self, real: np.ndarray, teacher: np.ndarray, args: argparse.Namespace):
        what, kinds = prompts(args.prompts)
        self.judge = evaluation.PictogramJudge.of(evaluation.read_pictograms())
        self.asked = [self.judge.asked(line) for line in texts(what)]
        self.seen, self.real = kinds == "seen", sharpness(real)
        self.teacher = _floats(teacher)
        self.features = look(self.judge, self.teacher).features

    def __call__(self, pictures: np.ndarray) -> dict[str, Any]:
        """Measure pictures u8[N, H, W, 3]; those beyond the prompts are of the first prompts again."""
        count, x = len(self.asked), _floats(pictures)
        judged = look(self.judge, x)
        right = evaluation.right({name: seen[:count] for name, seen in judged.seen.items()}, self.asked)
        found: dict[str, Any] = {name: _mean(right[name]) for name in (*ATTRIBUTES, "all")}
        found["error"] = {name: _error(right[name]) for name in (*ATTRIBUTES, "all")}
        found["seen"] = {name: _mean(values[self.seen]) for name, values in right.items()}
        found["unseen"] = {name: _mean(values[~self.seen]) for name, values in right.items()}
        found["sharpness"] = {k: round(v / self.real[k], 3) for k, v in sharpness(x[:count]).items()}
        if len(x) > count:
            apart = np.linalg.norm(judged.features[count:] - judged.features[: len(x) - count], axis=1)
            found["diversity"] = _mean(apart)
            found["error"]["diversity"] = _error(apart)
        apart, features = x[:count] - self.teacher[:count], judged.features[:count] - self.features[:count]
        found["rms_to_teacher"] = _mean(np.sqrt(np.square(apart).mean((1, 2, 3))))
        found["features_to_teacher"] = _mean(np.linalg.norm(features, axis=1))
        return found


def _mean(values: np.ndarray) -> float:
    return round(float(np.nanmean(values)), 3)


def _error(values: np.ndarray) -> float:
    """The standard error of the mean."""
    values = values[~np.isnan(values)]
    return round(float(values.std(ddof=1) / np.sqrt(len(values))), 3)


def _floats(pictures: np.ndarray) -> np.ndarray:
    return pictures.astype(np.float32) / 127.5 - 1


def measure(pipe: Any, data: emoji.Data, args: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows that are drawn."""
    real = compose(data, prompts(args.prompts)[0])
    measured = Figures(real, np.load(args.work / "teacher" / "pictures.npz")["25"], args)
    coded = reconstruct(pipe, real)
    rows: dict[str, Any] = {
        name: {"steps": {"0": measured(grey(x))}} for name, x in (("real", real), ("reconstructed", coded))
    }
    for row in ("teacher", "teacher-alone", *ROWS):
        file = args.work / row / "pictures.npz"
        if not file.exists():
            continue
        drawn = np.load(file)
        rows[row] = {"steps": {n: measured(drawn[n]) for n in drawn.files}}
        if (said := args.work / row / "run.json").exists():
            run = json.loads(said.read_text())
            log = (args.work / row / "log.jsonl").read_text().splitlines()
            rows[row] |= {
                "pictures": run["pictures"],
                "hours": round(run["seconds"] / 3600, 3),
                "processor_hours": round(run["processor_seconds"] / 3600, 3),
                "recipe": run["recipe"],
                "loss": [round(json.loads(line)["loss"], 5) for line in log],
            }
    return {"prompts": args.prompts, "again": args.again, "rows": rows}


def _cell(row: dict[str, Any], *names: str) -> str:
    """The figures of each number of steps, one after the other; of several names, the lowest."""
    found = [min(figures[name] for name in names) for figures in row["steps"].values() if names[0] in figures]
    return ", ".join(f"{value:.2f}".removeprefix("0") if value != 1 else "1" for value in found)


def table(found: dict[str, Any]) -> str:
    """Write the figures as markdown; a cell has one for each number of steps."""
    head = ("", "subject", "style", "colour, place, number", "all of it", "to the teacher", "diversity")
    head += ("sharpness", "minutes of a core")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in found["rows"].items():
        cells = [_cell(row, "subject"), _cell(row, "style"), _cell(row, "colour", "place", "number"), _cell(row, "all")]
        cells += [_cell(row, "features_to_teacher"), _cell(row, "diversity")]
        cells.append(", ".join(f"{one['sharpness']['edges']:.2f}" for one in row["steps"].values()))
        cells.append(f"{60 * row['processor_hours']:.1f}" if "hours" in row else "")
        lines.append(f"| {' | '.join([f'`{name}`', *cells])} |")
    return "\n".join(lines)


def grid(args: argparse.Namespace, shown: list[int]) -> np.ndarray:
    """Put what the rows drew of some prompts under each other, u8[H, W, 3]: the teacher, then the LoRAs in 4 steps."""
    rows = [np.load(args.work / "teacher" / "pictures.npz")["25"][shown]]
    for row in ("teacher-alone", *ROWS):
        file = args.work / row / "pictures.npz"
        if file.exists() and (row.startswith("teacher") or row.endswith("-lora")):
            rows.append(np.load(file)["4"][shown])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


def main() -> None:
    """Measure the rows that are drawn, or print the table of an earlier measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--json", type=Path, required=True, help="where the figures go, or are")
    add("--work", type=Path, help="the folder of the runs; without it, the figures are read")
    add("--data", type=Path, help="what prepare.py wrote")
    add("--pipeline", type=Path, default=_HERE / "pipeline")
    add("--prompts", type=int, default=100)
    add("--again", type=int, default=25)
    add("--grid", type=Path, help="where a picture of what was drawn goes (.png)")
    add("--shown", type=int, nargs="*", default=list(range(10)), help="the prompts in it")
    args = parser.parse_args()
    if args.work is None:
        print(table(json.loads(args.json.read_text())))
        return
    started = machine()
    found = measure(load_teacher(args.pipeline), emoji.load(args.data, Tokenizer()), args)
    args.json.write_text(json.dumps({"machine": started, **found}, indent=1) + "\n")
    print(table(found))
    if args.grid:
        cmjax.io.write_png(grid(args, args.shown), args.grid)


if __name__ == "__main__":
    main()
