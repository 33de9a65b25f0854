"""What `cmjax edit` and its tasks are asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cmjax.cli.options import read
from cmjax.cli.options.field import DRAW, INPUT, OUTPUT, SAMPLER, option
from cmjax.cli.options.shared import ModelOptions, PathOptions, TextOptions

__all__ = [
    "ColorizeOptions",
    "DenoiseOptions",
    "EditOptions",
    "InpaintOptions",
    "InterpolateOptions",
    "PictureOptions",
    "StrokeOptions",
    "UpscaleOptions",
]


@dataclass(frozen=True, kw_only=True)
class EditOptions(PathOptions, ModelOptions):
    """What every task of `cmjax edit` shares."""

    command = "edit"
    out: str = option(
        "a .png that shows everything, or a folder for .png files (default %(default)s)",
        default="edited.png",
        group=OUTPUT,
        type=read.path,
        metavar="PATH",
    )
    labels: tuple[str, ...] | None = None
    num: int = 1


@dataclass(frozen=True, kw_only=True)
class PictureOptions(EditOptions):
    """What the tasks on pictures share."""

    steps: int | None = option(
        "model calls for each result (default: 8; for cm the whole grid)",
        group=SAMPLER,
        exclusive="path",
        type=read.count,
        metavar="N",
    )
    images: tuple[str, ...] = option(
        "PNG or JPEG files", default=dataclasses.MISSING, positional=True, nargs="+", metavar="IMAGE"
    )
    resize: bool = option(
        "crop and resize the pictures to the size that is needed", default=False, group=INPUT, action="store_true"
    )
    labels: tuple[str, ...] | None = option(
        "the class of all pictures, or of each, by name or number", group=DRAW, nargs="+", metavar="L"
    )
    num: int = option("results a picture (default %(default)s)", default=3, group=DRAW, type=read.count, metavar="N")
    seed: int = option("which results (default %(default)s)", default=0, group=DRAW, type=read.seed, metavar="S")


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(TextOptions, PictureOptions):
    """`cmjax edit inpaint`."""

    program = "edit inpaint"
    mask: tuple[str, ...] = option(
        "pictures that are white where to fill: one for all pictures, or one each",
        default=(),
        group=INPUT,
        nargs="+",
        metavar="FILE",
    )
    soft: bool = option(
        "blend picture and model by a mask's grey levels", default=False, group=INPUT, action="store_true"
    )


@dataclass(frozen=True, kw_only=True)
class ColorizeOptions(PictureOptions):
    """`cmjax edit colorize`."""

    program = "edit colorize"


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions(PictureOptions):
    """`cmjax edit upscale`."""

    program = "edit upscale"
    factor: int | None = option(
        "how many times larger the result is (default: the factor that reaches the model's size)",
        group=DRAW,
        type=read.count,
        metavar="F",
    )


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions(PictureOptions):
    """`cmjax edit denoise`: one call of a consistency model, so no path is chosen."""

    program = "edit denoise"
    sampler: str | None = "cm"
    steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    eta: float | None = None
    num: int = 1
    seed: int = 0
    sigma: float = option(
        "the noise's standard deviation, for pictures in [-1, 1]: grey levels / 127.5",
        default=dataclasses.MISSING,
        group=INPUT,
        type=float,
        metavar="S",
    )


@dataclass(frozen=True, kw_only=True)
class StrokeOptions(TextOptions, PictureOptions):
    """`cmjax edit stroke`."""

    program = "edit stroke"
    steps: int | None = option(
        "model calls for each result (default: 4; for cm 2)",
        group=SAMPLER,
        exclusive="path",
        type=read.count,
        metavar="N",
    )
    sigmas: tuple[float, ...] | None = option(
        "for cm: noise levels, strictly decreasing; the first is added to the picture (default 5.38 2.24)",
        group=SAMPLER,
        exclusive="path",
        type=read.numbers,
        nargs="+",
        metavar="S",
    )
    strength: float | None = option(
        "how much is redrawn, in (0, 1] (default, with --steps: 0.6)", group=SAMPLER, type=float, metavar="R"
    )


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(TextOptions, EditOptions):
    """`cmjax edit interpolate`."""

    program = "edit interpolate"
    seeds: tuple[int, ...] = option(
        "the two ends of a row, or the four corners of a grid (default 0 1)",
        default=(0, 1),
        group=DRAW,
        type=read.seed,
        nargs="+",
        metavar="S",
    )
    labels: tuple[str, ...] | None = option(
        "one class, or two to go from one to the other", group=DRAW, nargs="+", metavar="L"
    )
    num: int = option("pictures a side (default %(default)s)", default=8, group=DRAW, type=read.count, metavar="N")
    rows: int | None = option("rows of a grid (default: --num)", group=DRAW, type=read.count, metavar="R")
    columns: int | None = option(
        "columns of a row or a grid (default: --num)", group=DRAW, type=read.count, metavar="C"
    )
