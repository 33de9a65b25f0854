"""`cmjax edit`: pictures of one's own, filled, coloured, enlarged, cleaned or redrawn, in one compiled call a batch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import cmjax
from cmjax import editing
from cmjax._random import split
from cmjax.cli import compile_cache, interpolate
from cmjax.cli.classes import needed_classes
from cmjax.cli.drawing import compile_batches, default_batch, draw_all
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.out import check_out, report
from cmjax.cli.sampler import Opened, Setup, open_model, prepare
from cmjax.io.images import grid, to_uint8, write_png
from cmjax.io.pictures import Picture, fit_picture, gray, on_white, read_picture

__all__ = ["run"]

_STROKE_SIGMAS, _STROKE_STRENGTH = (5.38, 2.24), 0.6
_VP_STEPS, _VP_STROKE_STEPS = 8, 4
_GREY, _FEW = (31.5 / 255, 223.5 / 255), 0.01  # what of a mask is neither black nor white, and how much of it may be


class _Task(NamedTuple):
    """One task on all pictures.

    Attributes:
      data: what is known of them, arrays [P, ...].
      columns: what is shown before the results, f32[P, H, W, C] each.
      edit: data -> the edit of a batch, or None.
      start: (state, edit, data, key, shape) -> the noisy x that the path starts from.
      settle: (images, data) -> images that lie in [-1, 1], which measure the same.
    """

    data: tuple[np.ndarray, ...]
    columns: dict[str, np.ndarray]
    edit: Callable[..., Any]
    start: Callable[..., Any]
    settle: Callable[..., np.ndarray]


class _Given(NamedTuple):
    """The pictures, where they are from, and their masks; what was done to them is added to notes."""

    paths: list[str]
    pictures: list[Picture]
    masks: list[Picture]
    notes: list[str]


def run(args: argparse.Namespace) -> None:
    """Do what `args` asks to each picture, write the results, and print what was done."""
    out = Path(args.out)
    check_out(out, (".png",))
    if args.task == "interpolate":
        return interpolate.run(args)
    files = _files(out, args.images, getattr(args, "mask", None) or [], args.num)
    given = _read(args)
    if not args.no_compile_cache:
        compile_cache.enable()
    opened = open_model(args, pictures=True)
    height, width, channels = opened.shape
    if args.task == "colorize" and channels != 3:
        raise UsageError("--model must be one that makes colour pictures, but this one makes grey ones.")
    setup = prepare(opened.checkpoint, args, partial(_plan, args))
    labels = _labels(args, opened)
    task = _TASKS[args.task](args, opened.shape, given)

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
        _write(out, files, results, task.columns, given.paths)
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
    setup: Setup, task: _Task, labels: np.ndarray | None, size: int, shape: tuple[int, ...], args: argparse.Namespace
) -> Callable[[int, Any], Any]:
    """Compile the walk of a batch. Variant v of any picture has the seed's key folded with v, whatever is beside it."""

    def draw(model, shared, rows):
        (state, key), (variants, data, cond) = shared, rows
        k_x, k_z = split(jax.vmap(partial(jax.random.fold_in, key))(variants), 2)
        edit = task.edit(*data)
        x = task.start(state, edit, data, k_x, (size, *shape))
        return cmjax.sample(model, state, x, k_z, cond, edit=edit)

    def rows(indices: np.ndarray) -> Any:
        pictures, variants = indices // args.num % len(task.data[0]), indices % args.num
        return variants, tuple(part[pictures] for part in task.data), None if labels is None else labels[pictures]

    return compile_batches(draw, setup.model, (setup.state, jax.random.key(args.seed)), size, rows)


def _labels(args: argparse.Namespace, opened: Opened) -> np.ndarray | None:
    """The class of each picture, i32[P]; None for a model without classes."""
    numbers = needed_classes(args.labels, opened.classes, opened.names, "what the pictures show")
    if numbers is None:
        return None
    pictures = len(args.images)
    if len(numbers) not in (1, pictures):
        raise UsageError(f"--labels: give one for all pictures or one each, {pictures}, got {len(numbers)}.")
    return np.resize(np.array(numbers, np.int32), pictures)


# ---- the tasks -------------------------------------------------------------------------------------------------------


def _inpaint(args: argparse.Namespace, shape: tuple[int, int, int], given: _Given) -> _Task:
    """Fill what is white in a mask, or transparent."""
    masks, holes = args.mask or [], [_hole(mask) for mask in given.masks]
    names = [masks[i % len(masks)] if masks else path for i, path in enumerate(given.paths)]
    plain = _flat_all(given, quiet=not masks)
    cut = []
    for i, picture in enumerate(given.pictures):
        if masks:
            hole = holes[i % len(holes)]
            _check_same_size(names[i], hole, given.paths[i], picture)
        elif picture.alpha is None:
            raise UsageError(
                f"{names[i]} has no transparent pixels to fill: give --mask, a picture that is white there."
            )
        else:
            hole = 1 - picture.alpha
        _check_hole(names[i], hole, args.soft)
        cut.append(Picture((plain[i] if masks else picture).pixels, 1 - hole))
    cut = _fit_all(args, given, shape, cut)
    pixels = _in_channels(given, [picture.pixels for picture in cut], shape)
    shown = _in_channels(given, [picture.pixels for picture in _fit_all(args, given, shape, plain)], shape)
    weight = 1 - np.stack([_opaque(picture) for picture in cut])[..., None]
    if args.soft:
        columns = {"given": shown, "known": pixels * (1 - weight)}
        return _Task((pixels, weight), columns, editing.blend, _from_known, _clipped)
    hole = weight > 0.5
    for name, part in zip(names, hole, strict=True):
        _check_hole(name, part.astype(np.float32), args.soft)
    columns = {"given": shown, "known": np.where(hole, np.float32(0), pixels)}
    return _Task((pixels, hole), columns, editing.inpaint, _from_known, _clipped)


def _hole(mask: Picture) -> np.ndarray:
    """What of a mask is white, f32[H, W] in [0, 1]; where it is transparent nothing is."""
    return (gray(mask.pixels)[..., 0] + 1) / 2 * _opaque(mask)


def _check_same_size(name: str, hole: np.ndarray, path: str, picture: Picture) -> None:
    if hole.shape != picture.pixels.shape[:2]:
        raise UsageError(
            f"--mask: {name} is {_size(hole)}, but {path} is {_size(picture.pixels)}: "
            "a mask must have its picture's size."
        )


def _check_hole(name: str, hole: np.ndarray, soft: bool) -> None:
    """Refuse a mask that keeps all, or nothing, or that is grey without --soft."""
    between = ((hole > _GREY[0]) & (hole < _GREY[1])).mean()
    if between > _FEW and not soft:
        raise UsageError(
            f"{name} is neither black nor white, as a mask, in {between:.0%} of its pixels: --soft blends there."
        )
    if not (hole > (0 if soft else 0.5)).any():
        raise UsageError(f"{name} leaves nothing to fill: holes are what is white in a mask, or transparent.")
    if not (hole < (1 if soft else 0.5)).any():
        raise UsageError(f"{name} leaves nothing known: that is what cmjax sample is for.")


def _colorize(args: argparse.Namespace, shape: tuple[int, int, int], given: _Given) -> _Task:
    """Colour what is grey; of colours, the luminance is kept."""
    pictures = _flat_all(given)
    fitted = [picture.pixels for picture in _fit_all(args, given, shape, pictures)]
    levels = np.stack([gray(pixels) for pixels in fitted])
    columns = {
        "given": np.stack([np.broadcast_to(pixels, shape) for pixels in fitted]),
        "known": np.broadcast_to(levels, (len(levels), *shape)),
    }
    return _Task(
        (levels,), columns, editing.colorize, _from_known, lambda images, data: _towards(images, data[0][:, None], -1)
    )


def _upscale(args: argparse.Namespace, shape: tuple[int, int, int], given: _Given) -> _Task:
    """Enlarge small pictures: each of their pixels is the mean of a block."""
    height, width, _ = shape
    pictures = _flat_all(given)
    factors = {_factor(args, path, picture, shape) for path, picture in zip(given.paths, pictures, strict=True)}
    if len(factors) > 1:
        raise UsageError(f"the pictures are of several sizes, to be enlarged {sorted(factors)} times: give one size.")
    factor = factors.pop()
    small = (height // factor, width // factor, shape[-1])
    fitted = _fit_all(args, given, small, pictures)
    low = _in_channels(given, [picture.pixels for picture in fitted], small)
    blocks = low.repeat(factor, 1).repeat(factor, 2)
    columns = {"given": blocks}
    if all(min(p.pixels.shape[0] / height, p.pixels.shape[1] / width) >= 1 for p in pictures):
        large = [fit_picture(picture, height, width).pixels for picture in pictures]
        columns = {"given": _in_channels(given._replace(notes=[]), large, shape), "known": blocks}

    def settle(images: np.ndarray, data: tuple[np.ndarray, ...]) -> np.ndarray:
        in_blocks = images.reshape(*images.shape[:2], small[0], factor, small[1], factor, shape[-1])
        return _towards(in_blocks, data[0][:, None, :, None, :, None], (-4, -2)).reshape(images.shape)

    return _Task((low,), columns, lambda low: editing.super_resolution(low, factor), _from_known, settle)


def _factor(args: argparse.Namespace, path: str, picture: Picture, shape: tuple[int, int, int]) -> int:
    """How many times a picture is enlarged."""
    (height, width, _), (high, wide, _) = shape, picture.pixels.shape
    factor = args.factor or height // high or 1
    if args.factor and (height % factor or width % factor):
        raise UsageError(f"--factor must divide the model's size, {width}x{height}, got {factor}.")
    if args.factor is None and (factor == 1 or (factor * high, factor * wide) != (height, width)):
        raise UsageError(
            f"{path} is {wide}x{high}, which is no whole fraction of the model's {width}x{height}: "
            "--factor F --resize shrinks it first."
        )
    if factor == 1:
        raise UsageError("--factor must be at least 2, got 1.")
    return factor


def _denoise(args: argparse.Namespace, shape: tuple[int, int, int], given: _Given) -> _Task:
    """Remove noise of a known level: the picture is the path's only x."""
    pixels = _whole(args, shape, given)
    return _Task((pixels,), {"given": pixels}, _no_edit, lambda state, edit, data, key, shape: data[0], _clipped)


def _stroke(args: argparse.Namespace, shape: tuple[int, int, int], given: _Given) -> _Task:
    """Draw anew what some noise hides (SDEdit)."""
    pixels = _whole(args, shape, given)

    def start(state, edit, data, key, shape):
        return cmjax.add_noise(state, data[0], key)

    return _Task((pixels,), {"given": pixels}, _no_edit, start, _clipped)


_TASKS: dict[str, Callable[[argparse.Namespace, tuple[int, int, int], _Given], _Task]] = {
    "inpaint": _inpaint,
    "colorize": _colorize,
    "upscale": _upscale,
    "denoise": _denoise,
    "stroke": _stroke,
}


def _from_known(state: Any, edit: Any, data: Any, key: Any, shape: tuple[int, ...]) -> Any:
    return cmjax.add_noise(state, editing.known(edit, shape), key)


def _no_edit(*data: Any) -> None:
    return None


def _clipped(images: np.ndarray, data: Any) -> np.ndarray:
    return np.clip(images, -1, 1)


def _towards(images: np.ndarray, center: np.ndarray, axes: Any) -> np.ndarray:
    """Pull what left [-1, 1] towards a mean over axes that is to stay, all by one factor."""
    spread = images - center
    room = np.where(spread > 0, 1 - center, 1 + center)
    scale = (room / np.maximum(np.abs(spread), 1e-6)).min(axes, keepdims=True)
    return center + np.minimum(scale, 1) * spread


# ---- pictures in -----------------------------------------------------------------------------------------------------


def _read(args: argparse.Namespace) -> _Given:
    """Read the files that are named."""
    masks = getattr(args, "mask", None) or []
    if masks and len(masks) not in (1, len(args.images)):
        raise UsageError(f"--mask: give one for all pictures or one each, {len(args.images)}, got {len(masks)}.")
    with bad_input():
        pictures = [read_picture(path) for path in args.images]
    with bad_input("--mask"):
        return _Given(args.images, pictures, [read_picture(path) for path in masks], [])


def _flat_all(given: _Given, *, quiet: bool = False) -> list[Picture]:
    """Lay transparent pictures on white, and say so."""
    if not quiet:
        for path, picture in zip(given.paths, given.pictures, strict=True):
            if picture.alpha is not None:
                given.notes.append(f"{path} is transparent, and was laid on white")
    return [on_white(picture) for picture in given.pictures]


def _fit_all(args: argparse.Namespace, given: _Given, shape: tuple[int, ...], pictures: list[Picture]) -> list[Picture]:
    """Give all pictures the size (H, W), or refuse them."""
    height, width = shape[:2]
    for path, picture in zip(given.paths, pictures, strict=True):
        if picture.pixels.shape[:2] != (height, width):
            if not args.resize:
                raise UsageError(
                    f"{path} is {_size(picture.pixels)}, but {width}x{height} is needed: --resize crops and resizes."
                )
            given.notes.append(f"{path} was resized from {_size(picture.pixels)} to {width}x{height}")
    return [fit_picture(picture, height, width) for picture in pictures]


def _in_channels(given: _Given, pixels: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Stack pictures as f32[P, *shape]: grey ones repeated for a model of colours, colours made grey for a grey one."""
    if shape[-1] == 1:
        for path, picture in zip(given.paths, pixels, strict=True):
            if np.ptp(picture, axis=-1).max() > 1e-6:
                given.notes.append(f"{path} was made grey, as the model's pictures are")
        pixels = [gray(picture) for picture in pixels]
    return np.stack([np.broadcast_to(picture, shape) for picture in pixels]).astype(np.float32)


def _whole(args: argparse.Namespace, shape: tuple[int, ...], given: _Given) -> np.ndarray:
    """The pictures as the model takes them, f32[P, *shape]."""
    return _in_channels(given, [p.pixels for p in _fit_all(args, given, shape, _flat_all(given))], shape)


def _opaque(picture: Picture) -> np.ndarray:
    return np.ones(picture.pixels.shape[:2], np.float32) if picture.alpha is None else picture.alpha


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


# ---- pictures out ----------------------------------------------------------------------------------------------------


def _files(out: Path, paths: list[str], masks: list[str], num: int) -> list[Path]:
    """Name the files that are to be written: one for each result in a folder, and last the strip."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{i}-{stem}" for i, stem in enumerate(stems)]
    folder = out.suffix != ".png"
    files = [out / f"{stem}-{v + 1}.png" for stem in stems for v in range(num)] if folder else []
    files.append(out / "strip.png" if folder else out)
    read = {Path(path).resolve() for path in (*paths, *masks)}
    for file in files:
        if file.resolve() in read:
            raise UsageError(f"--out: {file} is one of the pictures that are read, and would be lost.")
    return files


def _write(out: Path, files: list[Path], results: np.ndarray, columns: dict[str, np.ndarray], paths: list[str]) -> None:
    """Write the results, u8[P, V, H, W, C], if there is a folder for them, and the strip of what went in and out."""
    variants = results.shape[1]
    shown = {title: to_uint8(tiles) for title, tiles in columns.items()}
    if "known" in shown and (shown["known"] == shown["given"]).all():
        del shown["known"]
    titles = [*shown, *(["result"] if variants == 1 else map(str, range(1, variants + 1)))]
    tiles = np.concatenate([np.stack(list(shown.values()), axis=1), results], axis=1)
    names = [Path(path).name if len(Path(path).name) <= 24 else f"{Path(path).name[:22]}..." for path in paths]
    *singles, strip = files
    if singles:
        out.mkdir(exist_ok=True)
        for file, image in zip(singles, results.reshape(-1, *results.shape[2:]), strict=True):
            write_png(image, file)
    write_png(grid(tiles.reshape(-1, *tiles.shape[2:]), len(titles), row_labels=names, column_labels=titles), strip)
