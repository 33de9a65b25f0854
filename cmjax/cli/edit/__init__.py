"""`cmjax edit`: pictures of your own, filled, coloured, enlarged, cleaned or redrawn, in one compiled call a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.cli import compile_cache
from cmjax.cli.draw import draw
from cmjax.cli.edit import interpolate
from cmjax.cli.edit.inputs import read_pictures
from cmjax.cli.edit.outputs import check_apart, name_files, write
from cmjax.cli.edit.tasks import prepare_task
from cmjax.cli.edit.walks import compile_edits
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.labels import needed_classes
from cmjax.cli.lora_option import lora_rows
from cmjax.cli.open_model import UnloadedModel, open_model
from cmjax.cli.options import (
    ColorizeOptions,
    DenoiseOptions,
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    PictureOptions,
    StrokeOptions,
)
from cmjax.cli.output import check_out, report
from cmjax.cli.prompts import open_prompts
from cmjax.cli.published import published_settings
from cmjax.cli.sampler_path import choose_sampler
from cmjax.drawing import choose_devices, default_batch, plan_batch, use_cores_as_devices
from cmjax.io.images import to_uint8

__all__ = ["run"]

_STROKE_SIGMAS, _STROKE_STRENGTH = (5.38, 2.24), 0.6
_VP_STEPS, _VP_STROKE_STEPS = 8, 4


def run(options: EditOptions) -> None:
    """Do what was asked for to each picture, write the results, and print what was done."""
    use_cores_as_devices()
    if isinstance(options, InterpolateOptions):
        return interpolate.run(options)
    assert isinstance(options, PictureOptions)
    options, note = published_settings(options, path=False)
    is_file = check_out(Path(options.out), (".png",))
    given = read_pictures(options.images)
    files = [Path(options.out)] if is_file else name_files(Path(options.out), given.paths, options.num)
    masks = options.mask if isinstance(options, InpaintOptions) else ()
    check_apart(files, (*given.paths, *masks))
    if options.compile_cache:
        compile_cache.enable()
    text = open_prompts(options, len(given.paths))
    opened = _open_pictures(options) if text is None else text.model
    height, width, channels = opened.shape
    if isinstance(options, ColorizeOptions) and channels != 3:
        raise UsageError("--model must be one that makes colour pictures, but this one makes grey ones.")
    setup = choose_sampler(opened.checkpoint, options.model, options, _planner(options))
    setup = setup._replace(note=note or setup.note)
    cond_of = _classes(options.labels, opened, len(given.paths)) if text is None else text.prompt_of
    task = prepare_task(options, opened.shape, given)

    count = len(given.paths) * options.num
    batch = plan_batch(choose_devices(model=setup.model), None, count, default_batch(height, width))
    done = draw(
        lambda: compile_edits(
            setup,
            task,
            cond_of,
            batch,
            opened.shape,
            num=options.num,
            seed=options.seed,
            is_text=text is not None,
        ),
        lambda: setup.with_weights(opened.load()),
        count,
    )
    results = done.images.reshape(-1, options.num, *opened.shape)
    with bad_input("the model"):  # NaN, which no picture holds
        results = to_uint8(task.bound(results, task.data))
    with bad_input("--out"):
        write(files, results, task.columns, given.paths)
    sources, speed = (("model", options.model), *lora_rows(options)), f"{done.seconds / count:.3g} s a picture"
    report(sources, setup.sampler, setup.steps, done.compile_seconds, speed, task.notes, options.out)
    return None


def _planner(options: PictureOptions) -> Callable[[str, Any, dict[str, Any]], dict[str, Any]]:
    """Plan a path: what was asked for, or the paper's, which is the whole grid; for other samplers a few steps."""
    if isinstance(options, DenoiseOptions):
        return lambda sampler, config, asked: {"sigmas": [options.sigma]}
    if isinstance(options, StrokeOptions):
        return lambda sampler, config, asked: _plan_stroke(options.strength, sampler, asked)
    return _plan_whole_grid


def _plan_whole_grid(sampler: str, config: Any, asked: dict[str, Any]) -> dict[str, Any]:
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


def _open_pictures(options: EditOptions) -> UnloadedModel:
    return open_model(options.model, dtype=options.dtype, variant=options.variant, pictures=True)


def _classes(
    wanted: tuple[str, ...] | None, opened: UnloadedModel, pictures: int
) -> Callable[[np.ndarray], np.ndarray | None]:
    """Read the class of each picture: from numbers of pictures to classes; to None for a model without classes."""
    numbers = needed_classes(wanted, opened.classes, opened.names, "what the pictures show")
    if numbers is None:
        return lambda pictures: None
    if len(numbers) not in (1, pictures):
        raise UsageError(f"--labels: give one for all pictures or one each, {pictures}, got {len(numbers)}.")
    labels = np.resize(np.array(numbers, np.int32), pictures)
    return lambda pictures: labels[pictures]
