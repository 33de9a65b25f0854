"""`cmjax sample`: images from a model, in one compiled call a batch."""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import cmjax
from cmjax.cli import compile_cache
from cmjax.cli.drawing import Drawn, class_grid, class_of, compile_draw, image_shape, strips
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.sampler import Setup, prepare
from cmjax.io.atomic import check_writable
from cmjax.io.images import to_uint8, write_npz, write_png

__all__ = ["run"]

_IMAGES_A_CLASS = 8
_UNCONDITIONAL = 64  # images, where there are no classes
_CLASSES = 10  # drawn from, of a model that has many
_BATCH, _BATCH_PIXELS = 128, 1 << 20


class _Classes(NamedTuple):
    """The classes drawn from: their numbers, and their names or else the numbers as text."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


def run(args: argparse.Namespace) -> None:
    """Draw the images that `args` asks for, write them, and print what was done."""
    out = Path(args.out)
    _check_out(out)
    if not args.no_compile_cache:
        compile_cache.enable()
    load = partial(cmjax.load, args.model, dtype=args.dtype, variant=args.variant)
    with bad_input():
        checkpoint = load(abstract=True)
        names = cmjax.io.label_names(args.model, variant=args.variant)
    unet = checkpoint.model.module.config
    with bad_input():
        height, width, channels = image_shape(unet)
    if channels not in (1, 3) and out.suffix != ".npz":
        raise UsageError(
            f"the model makes images of {channels} channels, which only an .npz file holds: --out samples.npz."
        )
    if unet.class_embed_type is not None:
        raise UsageError(f"the model is conditioned on a {unet.class_embed_type}, which cannot be given here.")
    setup = prepare(checkpoint, args)
    classes = _choose_classes(args.labels, unet.num_class_embeds, names)
    numbers = None if classes is None else classes.numbers
    count = args.num or (_UNCONDITIONAL if numbers is None else _IMAGES_A_CLASS * len(numbers))
    batch = min(args.batch or min(_BATCH, max(1, _BATCH_PIXELS // (height * width))), count)

    start = time.perf_counter()
    shape = (batch, height, width, channels)
    draw = compile_draw(setup.model, setup.state, shape, classes=numbers, seed=args.seed, every_step=args.trajectory)
    compile_seconds = time.perf_counter() - start
    with bad_input():  # only now, as compiling took memory that the weights can have
        model = prepare(load(), args).model
    drawn, seconds = _draw_all(lambda first: draw(first, model), count, batch)
    with bad_input("the model"):  # NaN, which is not for any picture
        drawn = Drawn(*(None if part is None else to_uint8(part) for part in drawn))
    with bad_input("--out"):
        _write(out, drawn, classes)
    _report(args, setup, compile_seconds, count / seconds)


def _check_out(out: Path) -> None:
    """Refuse what cannot be written, before anything is computed."""
    is_file = out.suffix in (".png", ".npz")
    if out.suffix and not is_file and not out.is_dir():
        raise UsageError(f"--out must end in .png or .npz, or be a folder, got {out}.")
    if is_file and out.is_dir():
        raise UsageError(f"--out: {out} is a folder, not a file.")
    if not is_file and (out.exists() or out.is_symlink()) and not out.is_dir():
        raise UsageError(f"--out: {out} is not a folder.")
    with bad_input("--out"):
        check_writable(out)


def _choose_classes(wanted: list[str] | None, classes: int | None, names: tuple[str, ...] | None) -> _Classes | None:
    """Read --labels: each text is a number, a name, or several of them between commas."""
    if classes is None:
        if wanted:
            raise UsageError("--labels: the model has no classes.")
        return None
    if names is not None and len(names) != classes:
        raise UsageError(f"the model's labels.json names {len(names)} classes, but its network has {classes}.")
    known = {name.casefold(): i for i, name in enumerate(names or ())}
    numbers = range(min(classes, _CLASSES))
    if wanted:
        texts = [part for text in wanted for part in ([text] if text.casefold() in known else text.split(","))]
        numbers = [_class_number(text.strip(), known, classes, names) for text in texts if text.strip()]
    if not numbers:
        raise UsageError("--labels: no label was given.")
    return _Classes(tuple(numbers), tuple(names[i] if names else str(i) for i in numbers))


def _class_number(label: str, known: dict[str, int], classes: int, names: tuple[str, ...] | None) -> int:
    if label.casefold() in known:
        return known[label.casefold()]
    if label.isdecimal() and int(label) < classes:
        return int(label)
    near = difflib.get_close_matches(label.casefold(), known, n=1)
    hint = f" Did you mean {names[known[near[0]]]!r}?" if near and names else ""
    by_name = " or names" if known else ""
    raise UsageError(f"--labels: unknown label {label!r}: give numbers 0 ... {classes - 1}{by_name}.{hint}")


def _draw_all(draw: Callable[[int], Drawn], count: int, batch: int) -> tuple[Drawn, float]:
    """Draw batch after batch (the last one is full too; what is too much is dropped), with a bar if there are many."""
    start = time.perf_counter()
    firsts = range(0, count, batch)
    bar = track(firsts, "drawing", console=Console(stderr=True), transient=True, disable=len(firsts) == 1)
    batches = [draw(first) for first in bar]
    seconds = time.perf_counter() - start
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches), seconds


def _write(out: Path, drawn: Drawn, classes: _Classes | None) -> None:
    """Write u8 arrays, a grid with one row a class, or one file an image."""
    labels = class_of(np.arange(len(drawn.images)), None if classes is None else classes.numbers)
    if out.suffix == ".npz":
        arrays = {"images": drawn.images, "labels": labels, "x0": drawn.x0}
        write_npz(out, **{name: array for name, array in arrays.items() if array is not None})
    elif out.suffix == ".png":
        write_png(class_grid(strips(drawn), None if classes is None else classes.names), out)
    else:
        out.mkdir(exist_ok=True)
        for i, image in enumerate(strips(drawn)):
            write_png(image, out / f"{i:05}{'' if labels is None else f'-class{labels[i]}'}.png")


def _report(args: argparse.Namespace, setup: Setup, compile_seconds: float, images_per_second: float) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("model", escape(args.model))
    table.add_row("sampler", setup.sampler)
    table.add_row("steps", f"{setup.state.num_steps}{setup.note}")
    table.add_row("compile", f"{compile_seconds:.2f} s")
    table.add_row("speed", f"{images_per_second:.1f} images/s")
    table.add_row("file", escape(args.out))
    Console().print(table)
