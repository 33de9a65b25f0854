"""`cmjax evaluate --prompts`: how good a text-to-image model's pictures are, beside another's and real ones."""

from __future__ import annotations

from cmjax.cli import compile_cache
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.evaluate.text_inputs import read_inputs
from cmjax.cli.evaluate.text_measure import Row, draw_row, figures_of, look_at_real
from cmjax.cli.evaluate.text_report import Measured, as_json, notes_for, picture_of, print_report
from cmjax.cli.options import EvaluateOptions
from cmjax.drawing import default_batch, use_cores_as_devices
from cmjax.evaluation import Gaussian, Moments, frechet_distance, halves
from cmjax.io.configs import write_json
from cmjax.io.images import write_png

__all__ = ["evaluate_texts"]

_SEEDS = (0, 1, 2, 3)


def evaluate_texts(options: EvaluateOptions, prompts: tuple[str, ...]) -> None:
    """Draw every prompt with every seed and every model, and print the figures.

    Args:
      options: of the command.
      prompts: what to draw, already read.
    """
    seeds = options.seed or _SEEDS
    if len(set(seeds)) < len(seeds):
        raise UsageError("--seed: one seed is there twice, and would count as two.")
    if len(prompts) * len(seeds) < 2:
        raise UsageError("--prompts: figures need at least 2 pictures: give more prompts or seeds.")
    use_cores_as_devices()
    if options.compile_cache:
        compile_cache.enable()
    inputs = read_inputs(options)
    batch = min(options.batch or default_batch(*inputs.shape[:2]), len(prompts) * len(seeds))

    drawn: list[Row] = []
    look = None
    for entry in inputs.entries:
        row, look = draw_row(inputs, entry, seeds, batch, look)
        drawn.append(row)
    references: dict[str, Gaussian | Moments] = {} if inputs.reference is None else {"the reference": inputs.reference}
    real = []
    if inputs.real is not None and look is not None:
        first, second = halves(None, len(inputs.real.images))
        compared = look_at_real(inputs.real, first, look, batch, "real, compared with")
        references["real"] = _moments(compared)
        real = [look_at_real(inputs.real, second, look, batch, "real")]
    against = {row.name: _moments(row) for row in drawn[1:]}

    rows = []
    for row in (*drawn, *real):
        own = _moments(row)
        others = {name: one for name, one in against.items() if row is drawn[0]}
        distances = {name: frechet_distance(own, one) for name, one in (references | others).items()}
        rows.append(Measured(row, figures_of(row, inputs.extractor, inputs.clip), distances))
    notes = notes_for(inputs, rows, len(seeds))
    print_report(options, inputs, rows, seeds, notes)
    if options.json:
        with bad_input("--json"):
            write_json(as_json(options, inputs, rows, seeds, notes), options.json)
    if options.out:
        with bad_input("--out"):
            write_png(picture_of(rows, prompts), options.out)


def _moments(row: Row) -> Moments:
    return Moments.none(row.seen.features.shape[1]).update(row.seen.features)
