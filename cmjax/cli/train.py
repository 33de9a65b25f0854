"""`cmjax train`: a consistency model from images, with a progress display, sample grids on the way, and resume."""

from __future__ import annotations

import argparse
import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import cmjax
from cmjax import training
from cmjax.cli import compile_cache
from cmjax.cli.drawing import class_grid, compile_draw, image_shape
from cmjax.cli.errors import UsageError, bad_input
from cmjax.io import Checkpoint, ImageData
from cmjax.io.atomic import check_writable
from cmjax.io.configs import config_dict, read_config, read_json, write_json
from cmjax.io.images import read_images, to_uint8, write_png
from cmjax.models import UNet, UNetConfig, from_nnx
from cmjax.samplers.cm import CMConfig

__all__ = ["run"]

_CHECKPOINT, _RUN = "checkpoint.safetensors", "run.json"
_OPTIONS = {"stage_steps": "--steps", "batch_size": "--batch", "seed": "--seed", "block_out_channels": "--channels"}
_WIDTHS = (16, 48, 96, 144)  # channels of a UNet's levels, finest first
_MOST_TOKENS = 1024  # pixels of the coarsest level that attention compares, each with each
_SAMPLED_CLASSES, _SAMPLES_A_CLASS, _SAMPLE_STEPS = 10, 8, 2


def run(args: argparse.Namespace) -> None:
    """Train as `args` says and write the run's folder."""
    out = Path(args.out)
    _check_out(out, Path(args.data), args.resume)
    if not args.no_compile_cache:
        compile_cache.enable()
    with bad_input():
        data = read_images(args.data)
        names = _label_names(args.label_names, data)
        start = None if args.init is None else cmjax.load(args.init)
        unet_config, config, recipe = _settle(args, data, read_json(out / _RUN) if args.resume else None, start)
    if recipe.batch_size > len(data.images):
        raise UsageError(
            f"--batch: a batch of {recipe.batch_size} takes more images than the {len(data.images)} there are."
        )
    if tuple(data.images.shape[1:]) != image_shape(unet_config):
        raise UsageError(
            f"the network is for images of {image_shape(unet_config)}, but these are {data.images.shape[1:]}."
        )
    with bad_input("--out"):
        (out / "samples").mkdir(parents=True, exist_ok=True)
        settled = {"recipe": dataclasses.asdict(recipe), "network": unet_config.to_dict()}
        write_json({**settled, "scheduler": config_dict(config), "data": _fingerprint(data)}, out / _RUN)

    model = start.model if start else from_nnx(UNet(unet_config, rngs=nnx.Rngs(recipe.seed)))
    console = Console(markup=False, highlight=False)
    size = sum(leaf.size for leaf in jax.tree.leaves(model))
    console.print(f"{len(data.images):,} images, {size:,} parameters, {recipe.steps:,} steps of {recipe.batch_size}")
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(), console=console
    )
    with bar:
        task = bar.add_task("training", total=recipe.steps, figures="compiling")

        def on_progress(progress: training.Progress) -> None:
            figures = f"loss {progress.loss:.4f}, gap {progress.gap:.3g}, {progress.images_per_second:.0f} images/s"
            bar.update(task, completed=progress.step, figures=figures)

        keep = _Keeper(out, model, config, unet_config, names, console)
        try:
            training.train(
                model,
                config,
                data.images,
                data.labels,
                recipe=recipe,
                out=out,
                resume=args.resume,
                checkpoint_every=args.checkpoint_every,
                on_progress=on_progress,
                on_checkpoint=keep,
            )
        except FloatingPointError as error:
            raise UsageError(f"the run has diverged: {error} The last checkpoint is whole.") from error
        except OSError as error:
            raise UsageError(f"--out: {error}") from error
    console.print(f"the model is in {out / 'model'}; draw from it: cmjax sample --model {out / 'model'}")


class _Keeper:
    """At every checkpoint: the averaged weights as a model that `cmjax.load` reads, and a grid of what it draws."""

    def __init__(
        self, out: Path, model: Any, config: Any, unet_config: Any, names: tuple[str, ...] | None, console: Console
    ):
        self.out, self.config, self.names, self.console = out, config, names, console
        classes = unet_config.num_class_embeds
        shown = None if classes is None else range(min(classes, _SAMPLED_CLASSES))
        self.titles = None if shown is None else [names[i] if names else str(i) for i in shown]
        count = _SAMPLES_A_CLASS * (_SAMPLES_A_CLASS if shown is None else len(shown))
        state = cmjax.cm.init(config, _SAMPLE_STEPS)
        shape = (count, *image_shape(unet_config))
        self.draw = compile_draw(model, state, shape, classes=shown, seed=0)

    def __call__(self, state: training.TrainState) -> None:
        picture = self.out / "samples" / f"{int(state.step):07d}.png"
        drawn = self.draw(0, state.ema)
        with bad_input("--out"):
            cmjax.save((state.ema, self.config), self.out / "model", label_names=self.names)
            write_png(class_grid(to_uint8(drawn.images), self.titles), picture)
        self.console.print(f"step {int(state.step):,}: {picture}")


def _check_out(out: Path, data: Path, resume: bool) -> None:
    if out.is_file():
        raise UsageError(f"--out: {out} is a file, not a folder.")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"--out: {out} lies in the data, {data}, which its pictures would join; choose another folder."
        )
    model = out / "model"
    if model.is_dir() and any(model.iterdir()) and not (model / "model_index.json").exists():
        raise UsageError(f"--out: {model} holds other files than a model's; choose another folder.")
    if resume and not (out / _CHECKPOINT).exists():
        raise UsageError(f"--resume: there is no checkpoint to go on from in {out}.")
    if not resume and (out / _CHECKPOINT).exists():
        raise UsageError(f"--out: {out} already holds a run; add --resume to go on with it, or choose another folder.")
    with bad_input("--out"):
        check_writable(out)


def _label_names(given: list[str] | None, data: ImageData) -> tuple[str, ...] | None:
    names = tuple(given) if given else data.label_names
    if data.labels is None or names is None:
        if given:
            raise UsageError("--label-names: the data has no labels.")
        return None
    if len(names) != data.labels.max() + 1:
        source = "--label-names" if given else "label_names in the data"
        raise UsageError(f"{source}: the data has {data.labels.max() + 1} classes, but there are {len(names)} names.")
    return names


def _fingerprint(data: ImageData) -> dict[str, int]:
    """Tell a data set from others: a run goes on with the one that it began with."""
    labels = b"" if data.labels is None else data.labels.tobytes()
    return {"images": len(data.images), "crc32": zlib.crc32(labels, zlib.crc32(data.images.tobytes()))}


def _settle(
    args: argparse.Namespace, data: ImageData, run: dict[str, Any] | None, start: Checkpoint | None
) -> tuple[UNetConfig, CMConfig, training.Recipe]:
    """Settle network, noise levels and recipe: as asked, or by default; or as of the run to resume, which must agree.

    A model to start from brings its own network and noise levels.
    """
    if start is not None:
        if run is not None:
            raise ValueError("--init: a run that is resumed goes on from its own weights; leave out that option.")
        return *_fitting(start, data), _recipe(args, training.Recipe())
    if run is None:
        return _network(args, data), CMConfig(), _recipe(args, training.Recipe())
    if not isinstance(run, dict) or not run.keys() >= {"network", "recipe", "scheduler", "data"}:
        raise ValueError(f"{_RUN} is not of a run that this version of cmjax can resume.")
    if run["data"] != _fingerprint(data):
        raise ValueError(f"--resume: the run was of other data, {run['data']}, not {_fingerprint(data)}.")
    unet_config, recipe = UNetConfig.from_dict(run["network"]), _changed(training.Recipe(), run["recipe"], _RUN)
    asked = _network(args, data) if args.network or args.channels else unet_config
    for was, now in ((unet_config, asked), (recipe, _recipe(args, recipe))):
        for name, value in dataclasses.asdict(was).items():
            if getattr(now, name) != value:
                option = _OPTIONS.get(name, "--recipe or --network")
                raise ValueError(
                    f"the run to resume has {name} = {value}, not {getattr(now, name)}: leave out {option}. "
                    "To train its model on in another way: --init RUN/model --out ANOTHER."
                )
    return unet_config, read_config(run["scheduler"], CMConfig), recipe


def _fitting(start: Checkpoint, data: ImageData) -> tuple[UNetConfig, CMConfig]:
    """Refuse a model to start from that is no consistency model, or has other classes than the data."""
    network, config = start.model.module.config, start.config
    if not isinstance(config, CMConfig):
        raise ValueError(f"--init: the model is for {config.scheduler}; training is of {CMConfig.scheduler}s.")
    classes = None if data.labels is None else int(data.labels.max()) + 1
    if network.num_class_embeds != classes:
        raise ValueError(f"--init: the model has {network.num_class_embeds} classes, but the data has {classes}.")
    return network, config


def _recipe(args: argparse.Namespace, base: training.Recipe) -> training.Recipe:
    """Change a recipe as asked. Steps are shared out among the stages in proportion; the first gets the rest."""
    base = _changed(base, read_json(args.recipe), f"--recipe: {args.recipe}") if args.recipe else base
    asked = {name: value for name, value in (("batch_size", args.batch), ("seed", args.seed)) if value is not None}
    if args.steps is not None:
        later = [args.steps * stage // base.steps for stage in base.stage_steps[1:]]
        asked["stage_steps"] = (args.steps - sum(later), *(stage for stage in later if stage))
    return dataclasses.replace(base, **asked)


def _changed(base: training.Recipe, changes: Any, out_of: str) -> training.Recipe:
    """Change a recipe by what a file holds."""
    if not isinstance(changes, dict):
        raise ValueError(f"{out_of} must hold a JSON object of recipe fields, but it holds a {type(changes).__name__}.")
    unknown = changes.keys() - {field.name for field in dataclasses.fields(base)}
    if unknown:
        raise ValueError(f"{out_of} has unknown names: {', '.join(sorted(unknown))}.")
    return dataclasses.replace(base, **changes)


def _network(args: argparse.Namespace, data: ImageData) -> UNetConfig:
    """Read --network, or describe a UNet for these images: as many levels as their size allows.

    The coarsest level has attention, unless it is so large (of images of odd sizes) that no memory would hold it.
    """
    height, width, depth = data.images.shape[1:]
    fits = {
        "sample_size": height if height == width else (height, width),
        "in_channels": depth,
        "out_channels": depth,
        "num_class_embeds": None if data.labels is None else int(data.labels.max()) + 1,
    }
    if args.network:
        given = read_json(args.network)
        if not isinstance(given, dict):
            raise ValueError(f"--network: {args.network} must hold a JSON object.")
        config = UNetConfig.from_dict({**given, **fits})
        if config.class_embed_type is not None:
            raise ValueError(
                f"--network: class_embed_type = {config.class_embed_type!r} is not for classes; leave it out."
            )
        return config
    levels = 1
    while math.gcd(height, width) % 2**levels == 0 and min(height, width) >> levels >= 4 and levels < len(_WIDTHS):
        levels += 1
    widths = tuple(args.channels or _WIDTHS[:levels])
    plain = len(widths) - 1
    attends = (height >> plain) * (width >> plain) <= _MOST_TOKENS
    return UNetConfig(
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D" if attends else "DownBlock2D",),
        up_block_types=("AttnUpBlock2D" if attends else "UpBlock2D",) + ("UpBlock2D",) * plain,
        add_attention=attends,
        layers_per_block=1,
        norm_num_groups=8,
        attn_norm_num_groups=8,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=128,
        **fits,
    )
