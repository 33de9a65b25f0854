"""What `cmjax evaluate` is asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

from cmjax._sampler_names import SAMPLERS
from cmjax.cli.options import read
from cmjax.cli.options.field import DRAW, INPUT, OUTPUT, SPEED, TEXT, option
from cmjax.cli.options.shared import (
    DEFAULT_MODEL,
    DEFAULT_TEXT_MODEL,
    MODEL_HELP,
    ModelOptions,
    PathOptions,
    TextOptions,
)

__all__ = ["EvaluateOptions"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TextOptions, PathOptions, ModelOptions):
    """`cmjax evaluate`."""

    command = program = "evaluate"
    model: str = option(
        f"{MODEL_HELP} (default {DEFAULT_MODEL}; with --prompts, {DEFAULT_TEXT_MODEL})",
        default="",
        positional=True,
        nargs="?",
        metavar="MODEL",
    )
    prompts: str | None = option(
        "a file of prompts, one a line, or a .jsonl file of objects with text",
        group=TEXT,
        type=read.path,
        metavar="FILE",
    )
    data: str | None = option(
        "real images: an .npz file, or a folder of images; for texts, with their captions (metadata.jsonl or .txt "
        "files) if there are any",
        group=INPUT,
        type=read.path,
        metavar="DATA",
    )
    classes: bool | None = option(
        "whether sub-folders, or an .npz file's labels, are classes (default: yes, unless the folders look like splits "
        "or chunks)",
        group=INPUT,
        action=argparse.BooleanOptionalAction,
    )
    split: Literal["train", "test"] = option(
        "which images of an .npz file that holds both (default %(default)s)",
        default="test",
        group=INPUT,
        choices=("test", "train"),
    )
    reference: str | None = option(
        "statistics to measure the distance from, an .npz file of mu and sigma (default: half of the data)",
        group=INPUT,
        type=read.path,
        metavar="FILE",
    )
    features: str | None = option(
        "the feature extractor: package.module:function of your own, or one of the package (default: "
        "fashion-mnist-classifier; for texts emoji-classifier where the model is emoji, else clip with --clip, else "
        "latents, those of the model's autoencoder)",
        group=INPUT,
        type=read.path,
        metavar="F",
    )
    clip: str | None = option(
        "for texts: the folder or hub id of a CLIP, for the CLIP score, such as openai/clip-vit-base-patch32",
        group=INPUT,
        type=read.path,
        metavar="C",
    )
    against: tuple[tuple[str, str | None], ...] | None = option(
        "for texts: another model, or the same one with another LoRA, that draws the same prompts and seeds, such as "
        "the teacher; give it several times for several",
        group=INPUT,
        type=read.model_and_lora,
        action="append",
        metavar="MODEL[:LORA]",
    )
    against_steps: int | None = option(
        "steps of the models of --against (default: as without it)", group=INPUT, type=read.count, metavar="N"
    )
    against_guidance: float | None = option(
        "guidance of the models of --against (default: none)", group=INPUT, type=read.guidance_scale, metavar="G"
    )
    against_sampler: str | None = option(
        "sampler of the models of --against (default: their own)", group=INPUT, choices=SAMPLERS
    )
    neighbours: int = option(
        "k of precision and recall (default %(default)s)", default=3, group=INPUT, type=read.count, metavar="K"
    )
    num: int | None = option(
        "images a seed (default: half the data, up to 10000; for texts one of each prompt)",
        group=DRAW,
        type=read.count,
        metavar="N",
    )
    seed: tuple[int, ...] | None = option(
        "which images; give several for a mean and a standard deviation (default 0; for texts 0 1 2 3)",
        group=DRAW,
        type=read.seed,
        nargs="+",
        metavar="S",
    )
    save_statistics: str | None = option(
        "write mu and sigma of all the data to an .npz file", group=OUTPUT, type=read.path, metavar="FILE"
    )
    json: str | None = option("also write all figures to this file", group=OUTPUT, type=read.path, metavar="FILE")
    out: str | None = option(
        "for texts: a .png of the first prompts, drawn by every model", group=OUTPUT, type=read.path, metavar="PNG"
    )
    batch: int | None = option(
        "images computed at once (default: up to 128)", group=SPEED, type=read.count, metavar="B"
    )
