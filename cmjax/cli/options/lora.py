"""What `cmjax lora` and its tasks are asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cmjax.cli.options import read
from cmjax.cli.options.field import INPUT, MODEL, OUTPUT, Options, option
from cmjax.cli.options.shared import DTYPES, MODEL_HELP, PartsOptions

__all__ = ["ExtractLoRAOptions", "InspectLoRAOptions", "LoRAOptions", "MergeLoRAOptions"]


@dataclass(frozen=True, kw_only=True)
class LoRAOptions(Options):
    """What every task of `cmjax lora` shares."""

    command = "lora"


@dataclass(frozen=True, kw_only=True)
class InspectLoRAOptions(PartsOptions, LoRAOptions):
    """`cmjax lora inspect`."""

    program = "lora inspect"
    file: str = option(
        "a file, a folder, or a hub id", default=dataclasses.MISSING, positional=True, type=read.path, metavar="FILE"
    )
    model: str | None = option(f"also check that it fits a model of texts: {MODEL_HELP}", group=MODEL, metavar="M")


@dataclass(frozen=True, kw_only=True)
class MergeLoRAOptions(PartsOptions, LoRAOptions):
    """`cmjax lora merge`."""

    program = "lora merge"
    model: str = option(
        f"a model of texts: {MODEL_HELP}", default=dataclasses.MISSING, positional=True, type=read.path, metavar="MODEL"
    )
    out: str = option(
        "the folder to write, or a .safetensors file for all in one piece",
        default=dataclasses.MISSING,
        positional=True,
        type=read.path,
        metavar="OUT",
    )
    lora: tuple[tuple[str, float | None], ...] = option(
        "a file or a hub id, and its scale (default 1); give it several times for several",
        default=dataclasses.MISSING,
        group=INPUT,
        action="append",
        type=read.scaled_file,
        metavar="FILE[:SCALE]",
    )
    variant: str | None = option("which of the model's weights to read, such as fp16", group=MODEL, metavar="V")
    dtype: str = option(
        "the dtype that weights are stored in (default %(default)s)", default="float32", group=OUTPUT, choices=DTYPES
    )


@dataclass(frozen=True, kw_only=True)
class ExtractLoRAOptions(LoRAOptions):
    """`cmjax lora extract`."""

    program = "lora extract"
    base: str = option(
        f"a model of texts: {MODEL_HELP}", default=dataclasses.MISSING, positional=True, type=read.path, metavar="BASE"
    )
    tuned: str = option(
        "the model to make of it, of the same shapes",
        default=dataclasses.MISSING,
        positional=True,
        type=read.path,
        metavar="TUNED",
    )
    out: str = option(
        "the .safetensors file to write", default=dataclasses.MISSING, positional=True, type=read.path, metavar="OUT"
    )
    rank: int = option(
        "of each module's factors; more is nearer, and larger (default %(default)s)",
        default=16,
        group=OUTPUT,
        type=read.count,
        metavar="R",
    )
    style: str = option(
        "how the file names things (default %(default)s, as diffusers writes today)",
        default="peft",
        group=OUTPUT,
        choices=("peft", "kohya"),
    )
    dtype: str = option(
        "the dtype that factors are stored in (default %(default)s)", default="float16", group=OUTPUT, choices=DTYPES
    )
