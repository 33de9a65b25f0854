"""`cmjax edit interpolate`: pictures on the great circles between the noises of seeds, or between classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax._random import image_keys, split
from cmjax.cli import compile_cache
from cmjax.cli.draw import draw
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.labels import needed_classes
from cmjax.cli.lora_option import lora_rows
from cmjax.cli.open_model import UnloadedModel, open_model
from cmjax.cli.options import InterpolateOptions
from cmjax.cli.output import check_out, report
from cmjax.cli.prompts import OpenedText, four_steps, open_text_model, read_prompts, refuse_classes
from cmjax.cli.published import published_settings
from cmjax.cli.sampler_path import choose_sampler, two_steps
from cmjax.drawing import choose_devices, compile_batches, default_batch, plan_batch
from cmjax.io.images import grid, to_uint8, write_png
from cmjax.text_to_image import guided

__all__ = ["run"]


def run(options: InterpolateOptions) -> None:
    """Draw the way from seed to seed or from class to class, write it, and print what was done."""
    options, note = published_settings(options)
    is_file = check_out(Path(options.out), (".png",))
    rows, columns = _layout(options)
    if options.compile_cache:
        compile_cache.enable()
    prompts = read_prompts(options)
    text = _open_text(options, prompts) if prompts else None
    opened = _open_pictures(options) if text is None else text.model
    classes = _classes(options.labels, opened, columns) if text is None else None
    between = len(prompts) == 2 or (classes is not None and classes.ndim == 2)
    if len(options.seeds) == 1 and not between:
        raise UsageError(
            "--seeds: one seed leads nowhere, unless from class to class, --labels A B, or from text to text, "
            "--prompt A --prompt B."
        )
    setup = choose_sampler(opened.checkpoint, options.model, options, two_steps if text is None else four_steps)
    setup = setup._replace(note=note or setup.note)
    shape = opened.shape if text is None else text.latents

    count = rows * columns
    batch = plan_batch(choose_devices(model=setup.model), None, count, default_batch(*opened.shape[:2]))
    shared = setup.state, jax.vmap(jax.random.key)(np.array(options.seeds, np.uint32))

    def walk(model, shared, rows_):
        (state, seeds), (indices, cond) = shared, rows_
        k_x, k_z = split(image_keys(seeds, 0), 2)
        ends = cmjax.prior(state, k_x, (len(options.seeds), *shape))
        x = _between(ends, rows, columns)[indices]
        same = k_z[jnp.zeros_like(indices)]  # noise that is added on the way does not change along it
        return cmjax.sample(model, state, x, same, cond) if text is None else _draw_text(model, state, x, same, cond)

    def belonging(indices: np.ndarray) -> Any:
        indices = indices % count
        if text is not None:
            ends = [text.prompt_of(np.full(len(indices), end)) for end in (0, len(prompts) - 1)]
            return indices, (*ends, (indices % columns / (columns - 1)).astype(np.float32))
        return indices, None if classes is None else classes[indices % columns]

    done = draw(
        lambda: compile_batches(walk, setup.model, shared, batch.batch, belonging, batch.devices),
        lambda: setup.with_weights(opened.load()),
        count,
    )
    with bad_input("the model"):  # NaN, which is not for any picture
        images = to_uint8(done.images)
    with bad_input("--out"):
        _write(Path(options.out), bool(is_file), images, columns)
    sources, speed = (("model", options.model), *lora_rows(options)), f"{done.seconds / count:.3g} s a picture"
    report(sources, setup.sampler, setup.steps, done.compile_seconds, speed, (), options.out)


def _layout(options: InterpolateOptions) -> tuple[int, int]:
    """How many rows and columns of pictures."""
    seeds = len(options.seeds)
    if seeds not in (1, 2, 4):
        raise UsageError(f"--seeds: give two seeds for a row of pictures, or four for a grid, got {seeds}.")
    if seeds < 4 and options.rows not in (None, 1):
        raise UsageError(f"--rows belongs to four seeds, got {seeds}.")
    rows = (options.rows or options.num) if seeds == 4 else 1
    columns = options.columns or options.num
    if columns < 2 or (seeds == 4 and rows < 2):
        raise UsageError("--num, --rows and --columns must be at least 2: the ends are among them.")
    return rows, columns


def _open_pictures(options: InterpolateOptions) -> UnloadedModel:
    return open_model(options.model, dtype=options.dtype, variant=options.variant, pictures=True)


def _open_text(options: InterpolateOptions, prompts: tuple[str, ...]) -> OpenedText:
    if len(prompts) > 2:
        raise UsageError(f"--prompt: give one text, or two to go from one to the other, got {len(prompts)}.")
    refuse_classes(options)
    return open_text_model(options)


def _draw_text(pipe: Any, state: Any, x: Any, key: Any, asked: Any) -> Any:
    """Draw what lies between two texts: the encoders' outputs, mixed by t."""
    first, last, t = asked
    size = pipe.picture_size(x.shape)
    (start, negative), (end, _) = first.encoded(pipe, size), last.encoded(pipe, size)

    def mixed(a: Any, b: Any) -> Any:
        share = t.reshape(-1, *(1,) * (a.ndim - 1))
        return (a + share * (b - a)).astype(a.dtype)

    cond = jax.tree.map(mixed, start, end)
    latents = cmjax.sample(guided(pipe, cond, first.guidance, negative), state, x, key, cond)
    return pipe.autoencoder.decode(latents)


def _classes(wanted: tuple[str, ...] | None, opened: UnloadedModel, columns: int) -> np.ndarray | None:
    """What each column shows: i32[columns], or mixtures of two classes, f32[columns, classes]; None without classes."""
    numbers = needed_classes(wanted, opened.classes, opened.names, "what is to be drawn")
    if numbers is None:
        return None
    if len(numbers) > 2:
        raise UsageError(f"--labels: give one class, or two to go from one to the other, got {len(numbers)}.")
    if len(numbers) == 1:
        return np.full(columns, numbers[0], np.int32)
    first, last = np.eye(opened.classes or 0, dtype=np.float32)[numbers]
    t = np.linspace(0, 1, columns, dtype=np.float32)[:, None]
    return (1 - t) * first + t * last


def _between(ends: Any, rows: int, columns: int) -> Any:
    """The starting noises, f[rows * columns, H, W, C], between those of one, two or four seeds."""
    if len(ends) == 1:
        return jnp.concatenate([ends] * columns)
    if len(ends) == 2:
        return cmjax.noises.slerp_path(ends, columns)
    return cmjax.noises.slerp_grid(ends, rows, columns)


def _write(out: Path, is_file: bool, images: np.ndarray, columns: int) -> None:
    """Write a grid, and each picture by itself if there is a folder for them."""
    picture = grid(images, columns)
    if is_file:
        return write_png(picture, out)
    out.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        write_png(image, out / f"{i:03}.png")
    return write_png(picture, out / "strip.png")
