"""The options of every command: one frozen dataclass a command, one field an option.

A field made by `option` is read from the command line (`parser`); a plain field is not, and holds a fixed value.
Options that several commands share are inherited. Nothing here imports JAX, so that mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cmjax._sampler_names import SAMPLERS
from cmjax.schedules import DEFAULT_ETA

__all__ = [
    "ColorizeOptions",
    "ConvertOptions",
    "DenoiseOptions",
    "EditOptions",
    "EvaluateOptions",
    "ExportOptions",
    "ExtractLoRAOptions",
    "InpaintOptions",
    "InspectLoRAOptions",
    "InspectOptions",
    "InterpolateOptions",
    "LoRAOptions",
    "MergeLoRAOptions",
    "Options",
    "PartsOptions",
    "PathOptions",
    "PictureOptions",
    "SampleOptions",
    "StrokeOptions",
    "TextOptions",
    "TrainOptions",
    "UpscaleOptions",
]

DEFAULT_MODEL, DEFAULT_TEXT_MODEL = "fashion-mnist-cm", "emoji"
_LARGEST = 16384  # pixels a side
_DTYPES = ("float32", "bfloat16", "float16")
_MODEL = "a folder, a model of the package, a hub id, or a file of Stable Diffusion"

# The groups of --help, in order.
INPUT, DRAW, TEXT, SAMPLER, MODEL, TRAINING, OUTPUT, SPEED, SHARDS, PT = (
    "input",
    "what to draw",
    "texts to pictures",
    "sampler",
    "model",
    "training",
    "output",
    "speed",
    "many images, in shards (--out is a folder; run the same command again to resume)",
    "what a .pt file does not say (a folder's configs do)",
)
GROUPS = (INPUT, DRAW, TEXT, SAMPLER, MODEL, TRAINING, OUTPUT, SPEED, SHARDS, PT)


def option(
    help: str,
    *,
    default: Any = None,
    group: str | None = None,
    exclusive: str | None = None,
    type: Callable[[str], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Declare a field that is an option of its name, or a positional argument.

    Args:
      help: what `--help` says of it.
      default: where it is not given; `dataclasses.MISSING` where it must be.
      group: its heading in `--help`, one of `GROUPS`.
      exclusive: a name; of all options with that name, one may be given.
      type: from text to value.
      **kwargs: of `argparse`: metavar, choices, nargs, action; `flag` for another name than the field's, and
        `positional=True` for an argument without a flag.
    """
    said = {"help": help, "group": group, "exclusive": exclusive, **kwargs}
    return dataclasses.field(default=default, metadata=said | ({} if type is None else {"type": type}))


# ---- from text to values ---------------------------------------------------------------------------------------------


def _numbers(text: str) -> tuple[float, ...]:
    """Read `22`, `22,0` or `7.5`; whole numbers stay ints, as samplers on integer grids want them."""
    try:
        return tuple(int(part) if part.isdecimal() else float(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers, got {text}.") from None


def _count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}.")
    if int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be less than 2^31, got {text}.")
    return int(text)


def _scale(text: str) -> float:
    """Read a scale of guidance, which is a number of at least 0."""
    try:
        scale = float(text)
    except ValueError:
        scale = -1.0
    if not 0 <= scale < 1000:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1000, got {text}.")
    return scale


def _size(text: str) -> tuple[int, int]:
    """Read `512x768`, height first, or `512`."""
    numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.lower().split("x")]
    if len(numbers) > 2 or not 0 < min(numbers) <= max(numbers) <= _LARGEST:
        raise argparse.ArgumentTypeError(
            f"must be a height and a width up to {_LARGEST}, such as 512x768, or one number, got {text}."
        )
    return numbers[0], numbers[-1]


def _lora(text: str) -> tuple[str, float | None]:
    """Read `style.safetensors:0.6`, or a name alone."""
    name, colon, said = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return _path(text), None
    if not name or not said:
        raise argparse.ArgumentTypeError(f"must be a FILE or FILE:SCALE, got {text}.")
    try:
        scale = float(said)
    except ValueError:  # a colon of the name's own
        return text, None
    if not math.isfinite(scale):
        raise argparse.ArgumentTypeError(f"must have a finite scale, got {text}.")
    return name, scale


def _against(text: str) -> tuple[str, str | None]:
    """Read `MODEL` or `MODEL:LORA`; a path that holds a colon is found."""
    model, colon, lora = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return _path(text), None
    if not model or not lora:
        raise argparse.ArgumentTypeError(f"must be a MODEL or MODEL:LORA, got {text}.")
    return model, lora


def _embedding(text: str) -> tuple[str, str | None]:
    """Read `FILE` or `FILE:TOKEN`; a file whose name holds a colon is found."""
    file, colon, token = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return _path(text), None
    if not file or not token:
        raise argparse.ArgumentTypeError(f"must be a FILE or FILE:TOKEN, got {text}.")
    return file, token


def _path(text: str) -> str:
    """Read a path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text.")
    return text


def _seed(text: str) -> int:
    """Read a seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1, got {text}.")
    return int(text)


# ---- what commands share ---------------------------------------------------------------------------------------------


def _distributed(about: str, group: str) -> Any:
    """`--distributed` of a command."""
    where = "HOST:PORT of process 0, the number of processes, and the number of this one, from 0"
    return option(
        f"{about}. Give three values: {where}; or none on a cluster (Slurm, Open MPI, a TPU pod)",
        group=group,
        nargs="*",
        metavar="VALUE",
    )


def _wait(group: str) -> Any:
    """`--wait` of a command."""
    about = "seconds to wait for the other processes (default %(default)s)"
    return option(about, default=300, group=group, type=_count, metavar="S")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command was asked for."""

    command: ClassVar[str] = ""  # the module beside this one that runs it
    program: ClassVar[str] = ""  # its name in messages


@dataclass(frozen=True, kw_only=True)
class PathOptions(Options):
    """Which sampler takes which path."""

    sampler: str | None = option(
        "the sampler (default: the one that the model was made for, or was published with)",
        group=SAMPLER,
        choices=SAMPLERS,
    )
    steps: int | None = option(
        "model calls for each image; of heun, levels (default 2; for texts 4; for models that were not distilled 25)",
        group=SAMPLER,
        exclusive="path",
        type=_count,
        metavar="N",
    )
    timesteps: tuple[float, ...] | None = option(
        "the path by hand, strictly decreasing; for cm, indices of the grid of noise levels (0 is the noisiest); for "
        "scm, angles",
        group=SAMPLER,
        exclusive="path",
        type=_numbers,
        nargs="+",
        metavar="T",
    )
    eta: float | None = option(
        "for tcd, flow, ctm, meanflow, ddim and euler_ancestral: how much fresh noise each step adds, from 0 "
        f"(deterministic) to 1 (default for tcd {DEFAULT_ETA}, ddim 0, euler_ancestral 1; for flow as its file says)",
        group=SAMPLER,
        type=float,
        metavar="E",
    )
    mu: float | None = option(
        "for flow: the shift of the noise levels, of models whose shift goes by the size of the picture",
        group=SAMPLER,
        type=float,
        metavar="M",
    )
    sigmas: tuple[float, ...] | None = None
    published: Any = None  # the row of `cmjax.published` whose settings are taken


@dataclass(frozen=True, kw_only=True)
class PartsOptions(Options):
    """What a text-to-image model takes from elsewhere."""

    base: str | None = option(
        "for a file in one piece that holds less than a model: the folder, hub id or file of the model that gives the "
        "rest",
        group=MODEL,
        type=_path,
        metavar="B",
    )
    vae: str | None = option(
        "another autoencoder for a model of texts: a folder, hub id or file", group=MODEL, type=_path, metavar="A"
    )
    text_encoder: tuple[str, ...] | None = option(
        "another text encoder for a model of texts, a folder or a file; give it twice for both of Stable Diffusion XL",
        group=MODEL,
        type=_path,
        action="append",
        metavar="E",
    )
    tokenizer: str | None = option(
        "for a file in one piece: a tokenizer's folder, or the folder or hub id of a model with the same one (default: "
        "an installed package's, if one carries CLIP's vocabulary)",
        group=MODEL,
        type=_path,
        metavar="T",
    )
    ema: bool = option(
        "for a file in one piece: take the averages of its weights", default=False, group=MODEL, action="store_true"
    )


@dataclass(frozen=True, kw_only=True)
class TextOptions(PartsOptions):
    """What a text-to-image model is asked for."""

    model: str = option(
        f"{_MODEL} (default {DEFAULT_MODEL}; with --prompt, {DEFAULT_TEXT_MODEL})",
        default="",
        group=MODEL,
        metavar="M",
    )
    prompt: tuple[str, ...] | None = option(
        "what to draw, in words; give it several times for several texts, drawn in turn",
        group=TEXT,
        action="append",
        metavar="TEXT",
    )
    prompts: str | None = option("a file of prompts, one a line", group=TEXT, type=_path, metavar="FILE")
    negative: str | None = option("what to lead away from, in words; it needs --guidance", group=TEXT, metavar="TEXT")
    guidance: float | None = option(
        "how strongly to follow the text (default: not beyond the model itself; few-step models need none)",
        group=TEXT,
        type=_scale,
        metavar="G",
    )
    size: tuple[int, int] | None = option(
        "of the pictures, HEIGHTxWIDTH in pixels, or one number for squares (default: the model's)",
        group=TEXT,
        type=_size,
        metavar="HxW",
    )
    embedding: tuple[tuple[str, str | None], ...] | None = option(
        "a textual inversion embedding (.safetensors, .pt, .bin, or a hub id): its own name, or TOKEN, becomes a word "
        "for prompts; give it several times for several",
        group=TEXT,
        type=_embedding,
        action="append",
        metavar="FILE[:TOKEN]",
    )
    lora: tuple[tuple[str, float | None], ...] | None = option(
        "a LoRA for the model, a file or a hub id, and its scale (default 1); give it several times for several. One "
        "that was published for few steps brings its sampler and path along (cmjax inspect --recommended NAME)",
        group=TEXT,
        action="append",
        type=_lora,
        metavar="FILE[:SCALE]",
    )

    def __post_init__(self):
        if not self.model:
            has_text = self.prompt is not None or self.prompts is not None
            object.__setattr__(self, "model", DEFAULT_TEXT_MODEL if has_text else DEFAULT_MODEL)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which weights are read, and how they are run."""

    model: str = option(f"{_MODEL} (default %(default)s)", default=DEFAULT_MODEL, group=MODEL, metavar="M")
    variant: str | None = option(
        "which of the model's weights to read, such as fp16 for those in half precision", group=MODEL, metavar="V"
    )
    dtype: str = option(
        "the dtype that the network computes in (default %(default)s)", default="float32", group=MODEL, choices=_DTYPES
    )
    compile_cache: bool = option(
        "do not keep compiled programs between runs",
        default=True,
        group=SPEED,
        flag="--no-compile-cache",
        action="store_false",
    )


# ---- the commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SampleOptions(TextOptions, PathOptions, ModelOptions):
    """`cmjax sample`."""

    command = program = "sample"
    model: str = option(
        f"{_MODEL} (default {DEFAULT_MODEL}; with --prompt, {DEFAULT_TEXT_MODEL})",
        default="",
        group=MODEL,
        exclusive="source",
        metavar="M",
    )
    artifact: str | None = option(
        "draw with what cmjax export wrote, in place of a model (it is a program: run it only if you trust its maker)",
        group=MODEL,
        exclusive="source",
        type=_path,
        metavar="DIR",
    )
    labels: tuple[str, ...] | None = option(
        "classes by name or number, drawn in turn (default: all, or the first ten)", group=DRAW, nargs="+", metavar="L"
    )
    num: int | None = option(
        "images in all (default: 8 of each class, 4 of each prompt)", group=DRAW, type=_count, metavar="N"
    )
    seed: int = option("which images (default %(default)s)", default=0, group=DRAW, type=_seed, metavar="S")
    trajectory: bool = option(
        "show the estimate after every step: each image becomes a strip", default=False, group=DRAW, action="store_true"
    )
    preview_autoencoder: str | None = option(
        "for --trajectory of texts: a folder or hub id of a tiny autoencoder, which decodes all steps but the last in "
        "less time (default: the model's own)",
        group=TEXT,
        type=_path,
        metavar="A",
    )
    out: str = option(
        "a .png grid, an .npz of arrays, or a folder of .png files (default %(default)s)",
        default="samples.png",
        group=OUTPUT,
        type=_path,
        metavar="PATH",
    )
    batch: int | None = option(
        "images computed at once, on all devices together (default: up to 128 on each)",
        group=SPEED,
        type=_count,
        metavar="B",
    )
    devices: int | None = option(
        "draw on the first D devices of this machine (default: all)", group=SPEED, type=_count, metavar="D"
    )
    shard_size: int | None = option(
        "write numbered shards of K images (default 1000)", group=SHARDS, type=_count, metavar="K"
    )
    shard_format: str | None = option(
        "npz for one file of arrays a shard, png for a folder of pictures (default npz)",
        group=SHARDS,
        choices=("npz", "png"),
    )
    distributed: tuple[str, ...] | None = _distributed("be one of several processes that divide the shards", SHARDS)
    wait: int = _wait(SHARDS)

    @property
    def sharded(self) -> bool:
        """Whether images go into shards."""
        return any(given is not None for given in (self.distributed, self.shard_size, self.shard_format))


@dataclass(frozen=True, kw_only=True)
class EditOptions(PathOptions, ModelOptions):
    """What every task of `cmjax edit` shares."""

    command = "edit"
    out: str = option(
        "a .png that shows everything, or a folder for .png files (default %(default)s)",
        default="edited.png",
        group=OUTPUT,
        type=_path,
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
        type=_count,
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
    num: int = option("results a picture (default %(default)s)", default=3, group=DRAW, type=_count, metavar="N")
    seed: int = option("which results (default %(default)s)", default=0, group=DRAW, type=_seed, metavar="S")


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
        type=_count,
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
        "model calls for each result (default: 4; for cm 2)", group=SAMPLER, exclusive="path", type=_count, metavar="N"
    )
    sigmas: tuple[float, ...] | None = option(
        "for cm: noise levels, strictly decreasing; the first is added to the picture (default 5.38 2.24)",
        group=SAMPLER,
        exclusive="path",
        type=_numbers,
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
        type=_seed,
        nargs="+",
        metavar="S",
    )
    labels: tuple[str, ...] | None = option(
        "one class, or two to go from one to the other", group=DRAW, nargs="+", metavar="L"
    )
    num: int = option("pictures a side (default %(default)s)", default=8, group=DRAW, type=_count, metavar="N")
    rows: int | None = option("rows of a grid (default: --num)", group=DRAW, type=_count, metavar="R")
    columns: int | None = option("columns of a row or a grid (default: --num)", group=DRAW, type=_count, metavar="C")


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
        "the LoRA's rank (default: the recipe's)", group=TEXT, exclusive="rank", type=_count, metavar="R"
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
        type=_path,
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
        type=_path,
        metavar="DIR",
    )
    skip_unreadable: bool = option(
        "leave out pictures that cannot be read, rather than stop", default=False, group=TEXT, action="store_true"
    )
    teacher: str | None = option(
        f"the model to distil: {_MODEL}, or a diffusers folder of a DDPM; the student begins as a copy of it, unless "
        "it has another network or --init",
        group=MODEL,
        metavar="M",
    )
    channels: tuple[int, ...] | None = option(
        "the network's width at each level, finest first; multiples of 8",
        group=MODEL,
        exclusive="network",
        type=_count,
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
        f"start from the weights of a model: {_MODEL}", group=MODEL, exclusive="network", metavar="M"
    )
    dtype: str | None = option(
        "the dtype that the network computes in; weights and sums stay float32 (default float32)",
        group=MODEL,
        choices=("float32", "bfloat16"),
    )
    steps: int | None = option(
        "training steps in all (default: the recipe's)", group=TRAINING, type=_count, metavar="N"
    )
    batch: int | None = option("images a step (default: the recipe's)", group=TRAINING, type=_count, metavar="B")
    seed: int | None = option(
        "the seed of weights, noise and data order (default 0)", group=TRAINING, type=_seed, metavar="S"
    )
    out: str = option("the run's folder", default=dataclasses.MISSING, group=OUTPUT, type=_path, metavar="DIR")
    checkpoint_every: int = option(
        "steps between checkpoints (default %(default)s)", default=500, group=OUTPUT, type=_count, metavar="N"
    )
    resume: bool = option("continue from the run's last checkpoint", default=False, group=OUTPUT, action="store_true")
    compile_cache: bool = option(
        "do not keep compiled programs between runs",
        default=True,
        group=SPEED,
        flag="--no-compile-cache",
        action="store_false",
    )
    distributed: tuple[str, ...] | None = _distributed(
        "be one of several processes that train together, all with the same other options and one folder --out", SPEED
    )
    wait: int = _wait(SPEED)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TextOptions, PathOptions, ModelOptions):
    """`cmjax evaluate`."""

    command = program = "evaluate"
    model: str = option(
        f"{_MODEL} (default {DEFAULT_MODEL}; with --prompts, {DEFAULT_TEXT_MODEL})",
        default="",
        positional=True,
        nargs="?",
        metavar="MODEL",
    )
    prompts: str | None = option(
        "a file of prompts, one a line, or a .jsonl file of objects with text", group=TEXT, type=_path, metavar="FILE"
    )
    data: str | None = option(
        "real images: an .npz file, or a folder of images; for texts, with their captions (metadata.jsonl or .txt "
        "files) if there are any",
        group=INPUT,
        type=_path,
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
        type=_path,
        metavar="FILE",
    )
    features: str | None = option(
        "the feature extractor: package.module:function of your own, or one of the package (default: "
        "fashion-mnist-classifier; for texts emoji-classifier where the model is emoji, else clip with --clip, else "
        "latents, those of the model's autoencoder)",
        group=INPUT,
        type=_path,
        metavar="F",
    )
    clip: str | None = option(
        "for texts: the folder or hub id of a CLIP, for the CLIP score, such as openai/clip-vit-base-patch32",
        group=INPUT,
        type=_path,
        metavar="C",
    )
    against: tuple[tuple[str, str | None], ...] | None = option(
        "for texts: another model, or the same one with another LoRA, that draws the same prompts and seeds, such as "
        "the teacher; give it several times for several",
        group=INPUT,
        type=_against,
        action="append",
        metavar="MODEL[:LORA]",
    )
    against_steps: int | None = option(
        "steps of the models of --against (default: as without it)", group=INPUT, type=_count, metavar="N"
    )
    against_guidance: float | None = option(
        "guidance of the models of --against (default: none)", group=INPUT, type=_scale, metavar="G"
    )
    against_sampler: str | None = option(
        "sampler of the models of --against (default: their own)", group=INPUT, choices=SAMPLERS
    )
    neighbours: int = option(
        "k of precision and recall (default %(default)s)", default=3, group=INPUT, type=_count, metavar="K"
    )
    num: int | None = option(
        "images a seed (default: half the data, up to 10000; for texts one of each prompt)",
        group=DRAW,
        type=_count,
        metavar="N",
    )
    seed: tuple[int, ...] | None = option(
        "which images; give several for a mean and a standard deviation (default 0; for texts 0 1 2 3)",
        group=DRAW,
        type=_seed,
        nargs="+",
        metavar="S",
    )
    save_statistics: str | None = option(
        "write mu and sigma of all the data to an .npz file", group=OUTPUT, type=_path, metavar="FILE"
    )
    json: str | None = option("also write all figures to this file", group=OUTPUT, type=_path, metavar="FILE")
    out: str | None = option(
        "for texts: a .png of the first prompts, drawn by every model", group=OUTPUT, type=_path, metavar="PNG"
    )
    batch: int | None = option("images computed at once (default: up to 128)", group=SPEED, type=_count, metavar="B")


@dataclass(frozen=True, kw_only=True)
class LoRAOptions(Options):
    """What every task of `cmjax lora` shares."""

    command = "lora"


@dataclass(frozen=True, kw_only=True)
class InspectLoRAOptions(PartsOptions, LoRAOptions):
    """`cmjax lora inspect`."""

    program = "lora inspect"
    file: str = option(
        "a file, a folder, or a hub id", default=dataclasses.MISSING, positional=True, type=_path, metavar="FILE"
    )
    model: str | None = option(f"also check that it fits a model of texts: {_MODEL}", group=MODEL, metavar="M")


@dataclass(frozen=True, kw_only=True)
class MergeLoRAOptions(PartsOptions, LoRAOptions):
    """`cmjax lora merge`."""

    program = "lora merge"
    model: str = option(
        f"a model of texts: {_MODEL}", default=dataclasses.MISSING, positional=True, type=_path, metavar="MODEL"
    )
    out: str = option(
        "the folder to write, or a .safetensors file for all in one piece",
        default=dataclasses.MISSING,
        positional=True,
        type=_path,
        metavar="OUT",
    )
    lora: tuple[tuple[str, float | None], ...] = option(
        "a file or a hub id, and its scale (default 1); give it several times for several",
        default=dataclasses.MISSING,
        group=INPUT,
        action="append",
        type=_lora,
        metavar="FILE[:SCALE]",
    )
    variant: str | None = option("which of the model's weights to read, such as fp16", group=MODEL, metavar="V")
    dtype: str = option(
        "the dtype that weights are stored in (default %(default)s)", default="float32", group=OUTPUT, choices=_DTYPES
    )


@dataclass(frozen=True, kw_only=True)
class ExtractLoRAOptions(LoRAOptions):
    """`cmjax lora extract`."""

    program = "lora extract"
    base: str = option(
        f"a model of texts: {_MODEL}", default=dataclasses.MISSING, positional=True, type=_path, metavar="BASE"
    )
    tuned: str = option(
        "the model to make of it, of the same shapes",
        default=dataclasses.MISSING,
        positional=True,
        type=_path,
        metavar="TUNED",
    )
    out: str = option(
        "the .safetensors file to write", default=dataclasses.MISSING, positional=True, type=_path, metavar="OUT"
    )
    rank: int = option(
        "of each module's factors; more is nearer, and larger (default %(default)s)",
        default=16,
        group=OUTPUT,
        type=_count,
        metavar="R",
    )
    style: str = option(
        "how the file names things (default %(default)s, as diffusers writes today)",
        default="peft",
        group=OUTPUT,
        choices=("peft", "kohya"),
    )
    dtype: str = option(
        "the dtype that factors are stored in (default %(default)s)", default="float16", group=OUTPUT, choices=_DTYPES
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions(PathOptions, ModelOptions, PartsOptions):
    """`cmjax export`."""

    command = program = "export"
    model: str = option(_MODEL, default=dataclasses.MISSING, positional=True, type=_path, metavar="MODEL")
    out: str = option("the folder to write", default=dataclasses.MISSING, positional=True, type=_path, metavar="OUT")
    max_steps: int | None = option(
        "the most steps that can be asked of the artifact (default: 8, or --steps)",
        group=SAMPLER,
        type=_count,
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
        type=_size,
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
        f"{_MODEL} (default %(default)s)", default=DEFAULT_MODEL, positional=True, nargs="?", metavar="MODEL"
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
        choices=_DTYPES,
    )
    num_train_timesteps: int | None = option(
        "the number of noise levels of the grid (default: as published with a file of that name, else 40)",
        group=PT,
        type=_count,
        metavar="N",
    )
    sample_size: int | None = option(
        "pixels a side (default: 256, 128 or 64, whichever goes with the channels)", group=PT, type=_count, metavar="S"
    )
    head_dim: int | None = option("channels of an attention head (default 64)", group=PT, type=_count, metavar="D")


def flags(kind: type[Options]) -> list[dataclasses.Field[Any]]:
    """List the fields of a command that are read from the command line, in the order of `--help`."""
    found = [field for field in dataclasses.fields(kind) if field.metadata]
    first: dict[str, int] = {}  # where those of which one may be given begin: they stay together
    for i, field in enumerate(found):
        first.setdefault(field.metadata["exclusive"] or field.name, i)

    def place(field: dataclasses.Field[Any]) -> tuple[bool, int, int]:
        group = field.metadata["group"]
        together = first[field.metadata["exclusive"] or field.name]
        return not field.metadata.get("positional"), GROUPS.index(group) if group else 0, together

    return sorted(found, key=place)
