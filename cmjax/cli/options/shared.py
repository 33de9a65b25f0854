"""What several commands share: a path, a model and its parts, texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cmjax._sampler_names import SAMPLERS
from cmjax.cli.options import read
from cmjax.cli.options.field import MODEL, SAMPLER, SPEED, TEXT, Options, option
from cmjax.schedules import DEFAULT_ETA

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_TEXT_MODEL",
    "DTYPES",
    "MODEL_HELP",
    "ModelOptions",
    "PartsOptions",
    "PathOptions",
    "TextOptions",
    "distributed",
    "wait",
]

DEFAULT_MODEL, DEFAULT_TEXT_MODEL = "fashion-mnist-cm", "emoji"
MODEL_HELP = "a folder, a model of the package, a hub id, or a file of Stable Diffusion"
DTYPES = ("float32", "bfloat16", "float16")


def distributed(about: str, group: str) -> Any:
    """`--distributed` of a command."""
    where = "HOST:PORT of process 0, the number of processes, and the number of this one, from 0"
    return option(
        f"{about}. Give three values: {where}; or none on a cluster (Slurm, Open MPI, a TPU pod)",
        group=group,
        nargs="*",
        metavar="VALUE",
    )


def wait(group: str) -> Any:
    """`--wait` of a command."""
    about = "seconds to wait for the other processes (default %(default)s)"
    return option(about, default=300, group=group, type=read.count, metavar="S")


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
        type=read.count,
        metavar="N",
    )
    timesteps: tuple[float, ...] | None = option(
        "the path by hand, strictly decreasing; for cm, indices of the grid of noise levels (0 is the noisiest); for "
        "scm, angles",
        group=SAMPLER,
        exclusive="path",
        type=read.numbers,
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
        type=read.path,
        metavar="B",
    )
    vae: str | None = option(
        "another autoencoder for a model of texts: a folder, hub id or file", group=MODEL, type=read.path, metavar="A"
    )
    text_encoder: tuple[str, ...] | None = option(
        "another text encoder for a model of texts, a folder or a file; give it twice for both of Stable Diffusion XL",
        group=MODEL,
        type=read.path,
        action="append",
        metavar="E",
    )
    tokenizer: str | None = option(
        "for a file in one piece: a tokenizer's folder, or the folder or hub id of a model with the same one (default: "
        "an installed package's, if one carries CLIP's vocabulary)",
        group=MODEL,
        type=read.path,
        metavar="T",
    )
    ema: bool = option(
        "for a file in one piece: take the averages of its weights", default=False, group=MODEL, action="store_true"
    )


@dataclass(frozen=True, kw_only=True)
class TextOptions(PartsOptions):
    """What a text-to-image model is asked for."""

    model: str = option(
        f"{MODEL_HELP} (default {DEFAULT_MODEL}; with --prompt, {DEFAULT_TEXT_MODEL})",
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
    prompts: str | None = option("a file of prompts, one a line", group=TEXT, type=read.path, metavar="FILE")
    negative: str | None = option("what to lead away from, in words; it needs --guidance", group=TEXT, metavar="TEXT")
    guidance: float | None = option(
        "how strongly to follow the text (default: not beyond the model itself; few-step models need none)",
        group=TEXT,
        type=read.guidance_scale,
        metavar="G",
    )
    size: tuple[int, int] | None = option(
        "of the pictures, HEIGHTxWIDTH in pixels, or one number for squares (default: the model's)",
        group=TEXT,
        type=read.size,
        metavar="HxW",
    )
    embedding: tuple[tuple[str, str | None], ...] | None = option(
        "a textual inversion embedding (.safetensors, .pt, .bin, or a hub id): its own name, or TOKEN, becomes a word "
        "for prompts; give it several times for several",
        group=TEXT,
        type=read.named_file,
        action="append",
        metavar="FILE[:TOKEN]",
    )
    lora: tuple[tuple[str, float | None], ...] | None = option(
        "a LoRA for the model, a file or a hub id, and its scale (default 1); give it several times for several. One "
        "that was published for few steps brings its sampler and path along (cmjax inspect --recommended NAME)",
        group=TEXT,
        action="append",
        type=read.scaled_file,
        metavar="FILE[:SCALE]",
    )

    def __post_init__(self):
        if not self.model:
            has_text = self.prompt is not None or self.prompts is not None
            object.__setattr__(self, "model", DEFAULT_TEXT_MODEL if has_text else DEFAULT_MODEL)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which weights are read, and how they are run."""

    model: str = option(f"{MODEL_HELP} (default %(default)s)", default=DEFAULT_MODEL, group=MODEL, metavar="M")
    variant: str | None = option(
        "which of the model's weights to read, such as fp16 for those in half precision", group=MODEL, metavar="V"
    )
    dtype: str = option(
        "the dtype that the network computes in (default %(default)s)", default="float32", group=MODEL, choices=DTYPES
    )
    compile_cache: bool = option(
        "do not keep compiled programs between runs",
        default=True,
        group=SPEED,
        flag="--no-compile-cache",
        action="store_false",
    )
