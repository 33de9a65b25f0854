"""What `cmjax export`, `inspect` and `convert` are asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from cmjax.cli.options import read
from cmjax.cli.options.field import MODEL, OUTPUT, PT, SAMPLER, TEXT, option
from cmjax.cli.options.shared import DEFAULT_MODEL, DTYPES, MODEL_HELP, ModelOptions, PartsOptions, PathOptions

__all__ = ["ConvertOptions", "ExportOptions", "InspectOptions"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(PathOptions, ModelOptions, PartsOptions):
    """`cmjax export`."""

    command = program = "export"
    model: str = option(MODEL_HELP, default=dataclasses.MISSING, positional=True, type=read.path, metavar="MODEL")
    out: str = option(
        "the folder to write", default=dataclasses.MISSING, positional=True, type=read.path, metavar="OUT"
    )
    max_steps: int | None = option(
        "the most steps that can be asked of the artifact (default: 8, or --steps)",
        group=SAMPLER,
        type=read.count,
        metavar="N",
    )
    platforms: tuple[str, ...] = option(
        "where it will run, of %(choices)s (default: cpu cuda tpu)",
        default=("cpu", "cuda", "tpu"),
        group=OUTPUT,
        nargs="+",
        choices=("cpu", "cuda", "rocm", "tpu"),
        metavar="P",
    )
    size: tuple[int, int] | None = option(
        "for a model of texts: the size of the pictures, HEIGHTxWIDTH in pixels or one number (default: the model's)",
        group=TEXT,
        type=read.size,
        metavar="HxW",
    )
    guided: bool = option(
        "for a model of texts: let the artifact take --guidance and --negative, at twice the cost of a step",
        default=False,
        group=TEXT,
        action="store_true",
    )
    weights: Literal["inside", "beside"] = option(
        "inside the program, or beside it in a safetensors file, which is better for large models "
        "(default %(default)s)",
        default="inside",
        group=OUTPUT,
        choices=("inside", "beside"),
    )
    compile_cache: bool = True


@dataclass(frozen=True, kw_only=True)
class InspectOptions(PathOptions, PartsOptions):
    """`cmjax inspect`."""

    command = program = "inspect"
    recommended: str | None = option(
        "show the settings that a few-step model or LoRA was published with, and how to draw with it: its hub id, file "
        "or title; a part of it lists all that have it",
        metavar="NAME",
    )
    model: str = option(
        f"{MODEL_HELP} (default %(default)s)", default=DEFAULT_MODEL, positional=True, nargs="?", metavar="MODEL"
    )
    variant: str | None = option(
        "which of the model's weights to read, such as fp16 for those in half precision", group=MODEL, metavar="V"
    )


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(PartsOptions):
    """`cmjax convert`."""

    command = program = "convert"
    source: str = option(
        "a .pt file of openai/consistency_models, a diffusers folder, or a file of Stable Diffusion in one piece",
        default=dataclasses.MISSING,
        positional=True,
        metavar="IN",
    )
    out: str = option(
        "the folder to write; or of a model of texts, one file that ends in .safetensors",
        default=dataclasses.MISSING,
        positional=True,
        metavar="OUT",
    )
    dtype: str | None = option(
        "the dtype that weights are stored in (default float32; of a model of texts, as they are)",
        group=OUTPUT,
        choices=DTYPES,
    )
    num_train_timesteps: int | None = option(
        "the number of noise levels of the grid (default: as published with a file of that name, else 40)",
        group=PT,
        type=read.count,
        metavar="N",
    )
    sample_size: int | None = option(
        "pixels a side (default: 256, 128 or 64, whichever goes with the channels)",
        group=PT,
        type=read.count,
        metavar="S",
    )
    head_dim: int | None = option("channels of an attention head (default 64)", group=PT, type=read.count, metavar="D")
