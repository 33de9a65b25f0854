"""`cmjax edit`: pictures of one's own, filled, coloured, enlarged, cleaned or redrawn, in one compiled call a batch."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cmjax
from cmjax._random import split
from cmjax.cli import compile_cache
from cmjax.cli.drawing import Batches, compile_batches, default_batch, draw_all
from cmjax.cli.edit import interpolate
from cmjax.cli.edit.inputs import read
from cmjax.cli.edit.outputs import check_apart, name_files, write
from cmjax.cli.edit.tasks import TASKS, Task
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.labels import needed_classes
from cmjax.cli.open_model import SamplerSetup, UnloadedModel, open_model, prepare
from cmjax.cli.output import check_out, report
from cmjax.io.images import to_uint8

__all__ = ["run"]

_STROKE_SIGMAS, _STROKE_STRENGTH = (5.38, 2.24), 0.6
_VP_STEPS, _VP_STROKE_STEPS = 8, 4


def run(args: argparse.Namespace) -> None:
    """Do what `args` asks to each picture, write the results, and print what was done."""
    if args.task == "interpolate":
        return interpolate.run(args)
    is_file = check_out(Path(args.out), (".png",))
    given = read(args)
    files = [Path(args.out)] if is_file else name_files(Path(args.out), given, args.num)
    check_apart(files, given)
    if not args.no_compile_cache:
        compile_cache.enable()
    opened = open_model(args, pictures=True)
    height, width, channels = opened.shape
    if args.task == "colorize" and channels != 3:
        raise UsageError("--model must be one that makes colour pictures, but this one makes grey ones.")
    setup = prepare(opened.checkpoint, args, partial(_plan, args))
    labels = _labels(args, opened)
    task = TASKS[args.task](args, opened.shape, given)

    count = len(given.paths) * args.num
    size = min(default_batch(height, width), count)
    run = draw_all(
        lambda: _compile(setup, task, labels, size, opened.shape, args),
        lambda: setup.with_weights(opened.load()),
        count,
        size,
    )
    results = run.images.reshape(-1, args.num, *opened.shape)
    with bad_input("the model"):  # NaN, which is not for any picture
        results = to_uint8(task.settle(results, task.data))
    with bad_input("--out"):
        write(files, results, task.columns, given.paths)
    report(args, setup, run, f"{run.seconds / count:.3g} s a picture", given.notes)
    return None


def _plan(args: argparse.Namespace, sampler: str, config: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Plan a path: what was asked for, or the paper's, which is the whole grid; for other samplers a few steps."""
    if args.task == "denoise":
        return {"sigmas": [args.sigma]}
    if args.task == "stroke":
        return _plan_stroke(args.strength, sampler, asked)
    return asked or {"num_steps": config.num_train_timesteps if sampler == "cm" else _VP_STEPS}


def _plan_stroke(strength: float | None, sampler: str, asked: dict[str, Any]) -> dict[str, Any]:
    if "sigmas" in asked and strength is not None:
        raise UsageError("--strength shortens a grid of noise levels, but --sigmas names them: leave one out.")
    if strength is None and sampler == "cm" and asked in ({}, {"num_steps": len(_STROKE_SIGMAS)}):
        return {"sigmas": _STROKE_SIGMAS}
    if strength is None and ("sigmas" in asked or "timesteps" in asked):
        return asked
    steps = asked or {"num_steps": len(_STROKE_SIGMAS) if sampler == "cm" else _VP_STROKE_STEPS}
    return steps | {"strength": _STROKE_STRENGTH if strength is None else strength}


def _compile(
    setup: SamplerSetup,
    task: Task,
    labels: np.ndarray | None,
    size: int,
    shape: tuple[int, ...],
    args: argparse.Namespace,
) -> Batches:
    """Compile the walk of a batch. Variant v of any picture has the seed's key folded with v, whatever is beside it."""

    def draw(model, shared, rows):
        (state, key), (variants, data, cond) = shared, rows
        k_x, k_z = split(jax.vmap(partial(jax.random.fold_in, key))(variants), 2)
        edit = None if task.edit is None else task.edit(*data)
        x = task.start(state, edit, data, k_x, (len(variants), *shape))
        return cmjax.sample(model, state, x, k_z, cond, edit=edit)

    def rows(indices: np.ndarray) -> Any:
        pictures, variants = indices // args.num % len(task.data[0]), indices % args.num
        return variants, tuple(part[pictures] for part in task.data), None if labels is None else labels[pictures]

    return compile_batches(draw, setup.model, (setup.state, jax.random.key(args.seed)), size, rows)


def _labels(args: argparse.Namespace, opened: UnloadedModel) -> np.ndarray | None:
    """The class of each picture, i32[P]; None for a model without classes."""
    numbers = needed_classes(args.labels, opened.classes, opened.names, "what the pictures show")
    if numbers is None:
        return None
    pictures = len(args.images)
    if len(numbers) not in (1, pictures):
        raise UsageError(f"--labels: give one for all pictures or one each, {pictures}, got {len(numbers)}.")
    return np.resize(np.array(numbers, np.int32), pictures)
