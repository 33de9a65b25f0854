"""What `cmjax sample` is to draw: a model or an artifact, its path, and how many images of which classes."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import cmjax
from cmjax.cli.devices import BatchPlan
from cmjax.cli.drawing import compile_draw
from cmjax.cli.labels import class_names, class_numbers
from cmjax.cli.open_artifact import open_artifact
from cmjax.cli.open_model import SamplerSetup, UnloadedModel, open_model, prepare

__all__ = ["Classes", "Work", "plan"]

_IMAGES_A_CLASS = 8
_UNCONDITIONAL = 64  # images, where there are no classes
_CLASSES = 10  # drawn from, of a model that has many


class Classes(NamedTuple):
    """The classes drawn from: their numbers, and their names or else the numbers as text."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


class Work(NamedTuple):
    """What is drawn: the model and its path, how many images, of which classes, with what function."""

    opened: UnloadedModel
    setup: SamplerSetup
    generate: Any
    classes: Classes | None
    count: int

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """Of the classes, or None."""
        return None if self.classes is None else self.classes.numbers

    def compile(self, lanes: BatchPlan, args: argparse.Namespace) -> Any:
        """Compile the call that draws a batch: (first, model) -> images on the host."""
        return compile_draw(
            self.setup.model,
            self.setup.state,
            (lanes.batch, *self.opened.shape),
            classes=self.numbers,
            seed=args.seed,
            every_step=args.trajectory,
            devices=lanes.devices,
            generate=self.generate,
        )

    def load(self) -> Any:
        """Read the weights, and show them to the sampler."""
        return self.setup.with_weights(self.opened.load())


def plan(args: argparse.Namespace) -> Work:
    """Look up the model, or the artifact, and lay out what is drawn."""
    if args.artifact is None:
        opened, generate = open_model(args, pictures=False), cmjax.generate
        setup = prepare(opened.checkpoint, args)
    else:
        opened, setup, generate = open_artifact(args)
    classes = _choose_classes(args.labels, opened.classes, opened.names)
    count = args.num or (_UNCONDITIONAL if classes is None else _IMAGES_A_CLASS * len(classes.numbers))
    return Work(opened, setup, generate, classes, count)


def _choose_classes(wanted: list[str] | None, classes: int | None, names: tuple[str, ...] | None) -> Classes | None:
    """Read --labels; without them, take all classes or the first ten."""
    if classes is None and not wanted:
        return None
    known = class_names(classes or 0, names if classes else None)
    numbers = class_numbers(wanted, classes, names) if wanted else range(min(classes or 0, _CLASSES))
    return Classes(tuple(numbers), tuple(known[i] for i in numbers))
