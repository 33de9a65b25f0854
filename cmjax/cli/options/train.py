"""What `cmjax train` is asked for."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from cmjax.cli.options import read
from cmjax.cli.options.field import INPUT, MODEL, OUTPUT, SPEED, TEXT, TRAINING, Options, option
from cmjax.cli.options.shared import MODEL_HELP, distributed, wait

__all__ = ["TrainOptions"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """`cmjax train`."""

    command = program = "train"
    recipe: str | None = option(
        "a recipe by name, or a TOML file (default: ect)", positional=True, nargs="?", metavar="RECIPE"
    )
    data: str = option(
        "an .npz file of images (and labels), or a folder of images; with --model, a folder of pictures and captions, "
        "or .tar or .parquet files of such (one, or a pattern in quotes)",
        default=dataclasses.MISSING,
        group=INPUT,
        metavar="DATA",
    )
    classes: bool | None = option(
        "whether sub-folders, or an .npz file's labels, are classes (default: yes, unless the folders look like splits "
        "or chunks)",
        group=INPUT,
        action=argparse.BooleanOptionalAction,
    )
    label_names: tuple[str, ...] | None = option(
        "names of the classes, in order; stored with the model", group=INPUT, nargs="+", metavar="NAME"
    )
    model: str | None = option(
        "a text-to-image model to train further, or to distil: a folder, a file, or a hub id; a recipe with [lora] "
        "trains a LoRA of it",
        group=TEXT,
        metavar="M",
    )
    rank: int | None = option(
        "the LoRA's rank (default: the recipe's)", group=TEXT, exclusive="rank", type=read.count, metavar="R"
    )
    lora: str | None = option("start from this LoRA, a file or a hub id", group=TEXT, exclusive="rank", metavar="FILE")
    lora_style: str = option(
        "the names in the LoRA's file: of diffusers (peft) or of other programs (kohya) (default %(default)s)",
        default="peft",
        group=TEXT,
        choices=("peft", "kohya"),
    )
    prompts: str | None = option(
        "a file of prompts, one a line, that sample grids show (default: captions of the data)",
        group=TEXT,
        type=read.path,
        metavar="FILE",
    )
    variant: str | None = option(
        "which of the model's weights to read, such as fp16 for those in half precision", group=TEXT, metavar="V"
    )
    buckets: bool = option(
        "resize and crop each picture to one of several sizes of the model's area, tall, square or wide (default: all "
        "to the model's size, unless they have one size)",
        default=False,
        group=TEXT,
        action="store_true",
    )
    cache: str | None = option(
        "compute latents and texts once into this folder, and read them from there; a later call goes on where one "
        "stopped",
        group=TEXT,
        type=read.path,
        metavar="DIR",
    )
    skip_unreadable: bool = option(
        "leave out pictures that cannot be read, rather than stop", default=False, group=TEXT, action="store_true"
    )
    teacher: str | None = option(
        f"the model to distil: {MODEL_HELP}, or a diffusers folder of a DDPM; the student begins as a copy of "
        "it, unless it has another network or --init",
        group=MODEL,
        metavar="M",
    )
    channels: tuple[int, ...] | None = option(
        "the network's width at each level, finest first; multiples of 8",
        group=MODEL,
        exclusive="network",
        type=read.count,
        nargs="+",
        metavar="C",
    )
    network: str | None = option(
        "the network as a diffusers config.json, of a UNet2DModel or for an autoencoder of an AutoencoderKL; its size, "
        "channels and classes follow the data",
        group=MODEL,
        exclusive="network",
        metavar="FILE",
    )
    init: str | None = option(
        f"start from the weights of a model: {MODEL_HELP}", group=MODEL, exclusive="network", metavar="M"
    )
    dtype: str | None = option(
        "the dtype that the network computes in; weights and sums stay float32 (default float32)",
        group=MODEL,
        choices=("float32", "bfloat16"),
    )
    steps: int | None = option(
        "training steps in all (default: the recipe's)", group=TRAINING, type=read.count, metavar="N"
    )
    batch: int | None = option("images a step (default: the recipe's)", group=TRAINING, type=read.count, metavar="B")
    seed: int | None = option(
        "the seed of weights, noise and data order (default 0)", group=TRAINING, type=read.seed, metavar="S"
    )
    out: str = option("the run's folder", default=dataclasses.MISSING, group=OUTPUT, type=read.path, metavar="DIR")
    checkpoint_every: int = option(
        "steps between checkpoints (default %(default)s)", default=500, group=OUTPUT, type=read.count, metavar="N"
    )
    resume: bool = option("continue from the run's last checkpoint", default=False, group=OUTPUT, action="store_true")
    compile_cache: bool = option(
        "do not keep compiled programs between runs",
        default=True,
        group=SPEED,
        flag="--no-compile-cache",
        action="store_false",
    )
    distributed: tuple[str, ...] | None = distributed(
        "be one of several processes that train together, all with the same other options and one folder --out", SPEED
    )
    wait: int = wait(SPEED)
