"""`cmjax sample`: images from a model, in one compiled call a batch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.cli import compile_cache
from cmjax.cli.classes import class_names, class_numbers
from cmjax.cli.drawing import Drawn, class_grid, class_of, compile_draw, default_batch, draw_all, strips
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.out import check_out, report
from cmjax.cli.sampler import open_model, prepare
from cmjax.io.images import to_uint8, write_npz, write_png

__all__ = ["run"]

_IMAGES_A_CLASS = 8
_UNCONDITIONAL = 64  # images, where there are no classes
_CLASSES = 10  # drawn from, of a model that has many


class _Classes(NamedTuple):
    """The classes drawn from: their numbers, and their names or else the numbers as text."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


def run(args: argparse.Namespace) -> None:
    """Draw the images that `args` asks for, write them, and print what was done."""
    out = Path(args.out)
    kind = check_out(out, (".png", ".npz"))
    if not args.no_compile_cache:
        compile_cache.enable()
    opened = open_model(args, pictures=False)
    height, width, channels = opened.shape
    if channels not in (1, 3) and kind != ".npz":
        raise UsageError(
            f"the model makes images of {channels} channels, which only an .npz file holds: --out samples.npz."
        )
    setup = prepare(opened.checkpoint, args)
    classes = _choose_classes(args.labels, opened.classes, opened.names)
    numbers = None if classes is None else classes.numbers
    count = args.num or (_UNCONDITIONAL if numbers is None else _IMAGES_A_CLASS * len(numbers))
    batch = min(args.batch or default_batch(height, width), count)

    def compiled():
        shape = (batch, height, width, channels)
        return compile_draw(
            setup.model, setup.state, shape, classes=numbers, seed=args.seed, every_step=args.trajectory
        )

    run = draw_all(compiled, lambda: setup.with_weights(opened.load()), count, batch)
    with bad_input("the model"):  # NaN, which is not for any picture
        drawn = Drawn(*(None if part is None else to_uint8(part) for part in run.images))
    with bad_input("--out"):
        _write(out, kind, drawn, classes)
    report(args, setup, run, f"{count / run.seconds:.1f} images/s")


def _choose_classes(wanted: list[str] | None, classes: int | None, names: tuple[str, ...] | None) -> _Classes | None:
    """Read --labels; without them, take all classes or the first ten."""
    if classes is None and not wanted:
        return None
    known = class_names(classes or 0, names if classes else None)
    numbers = class_numbers(wanted, classes, names) if wanted else range(min(classes or 0, _CLASSES))
    return _Classes(tuple(numbers), tuple(known[i] for i in numbers))


def _write(out: Path, kind: str, drawn: Drawn, classes: _Classes | None) -> None:
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
