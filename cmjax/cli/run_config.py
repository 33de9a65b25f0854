"""Settle what a run of `cmjax train` is: recipe, network, noise levels; as asked, or as of the run to go on with."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cmjax import recipes, training
from cmjax._typed import unknown_names
from cmjax.cli.options import TrainOptions
from cmjax.io import Checkpoint, ImageData
from cmjax.io.configs import config_dict, read_config, read_json
from cmjax.models import UNetConfig
from cmjax.samplers._vp import VPConfig
from cmjax.samplers.cm import CMConfig
from cmjax.samplers.ctm import CTMConfig
from cmjax.samplers.meanflow import MeanFlowConfig, ShortcutConfig
from cmjax.training.checkpoints import fingerprint

__all__ = ["RUN", "RunConfig", "compute_dtype", "data_fingerprint", "recipe_as_asked", "run_config"]

RUN = "run.json"
_DEFAULT = "ect"
_KINDS = {  # of models, by the classes of their configs; those that are made of others first
    ShortcutConfig: "of a flow, such as `shortcut` makes",
    MeanFlowConfig: "of a flow, such as `meanflow` makes",
    CTMConfig: "told where its jumps land, such as `ctm` makes",
    VPConfig: "of timesteps, such as `vp` makes",
    CMConfig: "of noise levels, such as `edm` makes",
}
_OPTIONS = {"steps": "--steps", "batch_size": "--batch", "seed": "--seed"}
_WIDTHS = (16, 48, 96, 144)  # channels of a UNet's levels, finest first
_MOST_TOKENS = 1024  # pixels of the coarsest level that attention compares, each with each


class RunConfig(NamedTuple):
    """All that decides a run but the images themselves, as run.json holds it."""

    recipe: training.Recipe
    network: UNetConfig
    config: Any
    dtype: str

    def to_dict(
        self, data: ImageData, teacher: Checkpoint | None, *, started: bool, classes: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """What run.json says; it also tells the data, and the teacher, from others.

        Args:
          data: the images, with the labels that the network is told.
          teacher: the model of --teacher, if there is one.
          started: whether the run began with a model of --init, which brings its network and noise levels.
          classes: the network's number of each of the data's classes, where those differ.
        """
        return {
            "recipe": self.recipe.to_dict(),
            "network": self.network.to_dict(),
            "scheduler": config_dict(self.config),
            "dtype": self.dtype,
            "data": data_fingerprint(data.images, data.labels),
            "teacher": _fingerprint_of_teacher(teacher),
            "init": started,
            **({} if classes is None else {"classes": list(classes)}),
        }


def compute_dtype(asked: str | None, run: Any) -> str:
    """What the networks compute in: as asked, or as in the run to go on with.

    Raises:
      ValueError: the two differ.
    """
    if not isinstance(run, dict) or "dtype" not in run:
        return asked or "float32"
    if asked not in (None, run["dtype"]):
        raise ValueError(f"the run to resume has dtype = {run['dtype']}, not {asked}: leave out --dtype.")
    return run["dtype"]


def run_config(
    options: TrainOptions,
    data: ImageData,
    run: dict[str, Any] | None,
    start: Checkpoint | None,
    teacher: Checkpoint | None,
) -> RunConfig:
    """Settle recipe, network and noise levels.

    A model to start from brings its own network and noise levels, whatever the recipe says of them. A teacher brings
    its network unless another is said, and its noise levels unless the recipe says them.

    Args:
      options: what was asked for.
      data: the images.
      run: what run.json of the run to resume says.
      start: the model of --init.
      teacher: the model of --teacher.

    Raises:
      ValueError: they do not go together.
    """
    if run is not None:
        if options.init is not None:
            raise ValueError("--init: a resumed run continues from its own weights; leave out --init.")
        return _of_run(options, data, run, teacher)
    name = options.recipe or _DEFAULT
    given = recipes.read(name)
    network, scheduler = given.pop("network", None), given.pop("scheduler", None)
    recipe = recipe_as_asked(options, training.Recipe().changed(given, name))
    said = bool(options.network or options.channels or network)
    taught = None if teacher is None else _fitting(teacher, data, "--teacher")
    if start is not None:
        unet = _fitting(start, data, "--init")
    else:
        unet = _network(options, data, network) if said or taught is None else taught
    if recipe.method.is_told_target:
        unet = dataclasses.replace(unet, target_embed_type="timestep")
    source = start or teacher
    if scheduler is not None and start is None:
        config = _said(scheduler, name)
    elif source is not None:
        config = _as_method_wants(source.config, recipe.method.kind_of(source.config))
    else:
        config = recipe.method.config_type()
    if not isinstance(config, (recipe.method.config_type, *recipe.method.also_for)):
        if start is None and taught is not None and not recipe.method.needs_teacher:
            raise ValueError("--teacher: this recipe has none; to start from a model's weights: --init.")
        option = "[scheduler]" if source is None else "--init" if start is not None else "--teacher"
        wanted, got = map(_kind, (recipe.method.config_type, type(config)))
        raise ValueError(f"{option}: {name} needs a model {wanted}, but this one is {got}.")
    return RunConfig(recipe, unet, config, compute_dtype(options.dtype, None))


def _kind(config: type) -> str:
    return next((said for kind, said in _KINDS.items() if issubclass(config, kind)), f"with a {config.__name__}")


def _said(scheduler: Any, source: str) -> Any:
    """The config of a recipe's [scheduler], where a name that no config has would be a mistake."""
    config = read_config(scheduler)
    if unknown := [key for key, _ in config.extra if not key.startswith("_")]:
        known = [field.name for field in dataclasses.fields(config) if field.name != "extra"]
        raise ValueError(unknown_names(unknown, known, f"{source} [scheduler]"))
    return config


def _as_method_wants(config: Any, kind: type) -> Any:
    """A variance-preserving model's config as that of the sampler it is distilled for; a denoiser's noise levels."""
    if issubclass(kind, VPConfig) and isinstance(config, VPConfig):
        return read_config(config_dict(config), as_=kind)
    if kind is CTMConfig and isinstance(config, CMConfig):  # a teacher's levels are the student's
        return CTMConfig.of_teacher(config)
    return config.of_consistency_model() if isinstance(config, CMConfig) else config


def _of_run(options: TrainOptions, data: ImageData, run: Any, teacher: Checkpoint | None) -> RunConfig:
    """What was settled when the run began, if what is asked now agrees with it."""
    if not isinstance(run, dict) or not run.keys() >= {"network", "recipe", "scheduler", "dtype", "data"}:
        raise ValueError(f"{RUN} is not of a run that this version of cmjax can resume.")
    if run["data"] != data_fingerprint(data.images, data.labels):
        was = f"{run['data']['images']:,} images" if isinstance(run["data"], dict) else "others"
        raise ValueError(f"--resume: the run had other data, of {was}; give that data. These are {len(data.images):,}.")
    was, given = run.get("teacher"), _fingerprint_of_teacher(teacher)
    if None not in (was, given) and was != given:
        raise ValueError("--teacher: the run to resume was of another teacher; give that one.")
    recipe = training.Recipe().changed(run["recipe"], RUN)
    unet = UNetConfig.from_dict(run["network"])
    config = read_config(run["scheduler"])
    asked, network, scheduler = recipe, None, None
    if options.recipe is not None:
        given = recipes.read(options.recipe)
        network, scheduler = given.pop("network", None), given.pop("scheduler", None)
        if run.get("init"):  # then the model's counted, not the recipe's
            network = scheduler = None
        own = {name: getattr(recipe, name) for name in _OPTIONS}
        asked = training.Recipe().changed({**given, **own}, options.recipe)
    asked = recipe_as_asked(options, asked)
    asked_unet = _network(options, data, network) if options.network or options.channels or network else unet
    asked_config = config if scheduler is None else _said(scheduler, str(options.recipe))
    for was, now in (
        (recipe.to_dict(), asked.to_dict()),
        (unet.to_dict(), asked_unet.to_dict()),
        (config_dict(config), config_dict(asked_config)),
    ):
        for name, value in was.items():
            if now.get(name) != value:
                option = _OPTIONS.get(name, "RECIPE, --network and --channels")
                raise ValueError(
                    f"the run to resume has {name} = {value}, not {now.get(name)}: leave out {option}. "
                    "To train its model further in another way: --init RUN/model --out ANOTHER."
                )
    return RunConfig(recipe, unet, config, run["dtype"])


def recipe_as_asked(options: TrainOptions, base: training.Recipe) -> training.Recipe:
    """Change a recipe as the options ask."""
    asked = {"steps": options.steps, "batch_size": options.batch, "seed": options.seed}
    return dataclasses.replace(base, **{name: value for name, value in asked.items() if value is not None})


def _fitting(source: Checkpoint, data: ImageData, option: str) -> UNetConfig:
    """The network of a model to start from, which must have the data's classes; it may have more."""
    network = source.model.config
    classes, wanted = network.num_class_embeds, None if data.labels is None else int(data.labels.max()) + 1
    if (classes is None) != (wanted is None):
        remedy = "--no-classes takes all images as of one kind" if classes is None else "give labels, or another model"
        has, lacks = ("no classes", f"{wanted}") if classes is None else (f"{classes} classes", "no labels")
        raise ValueError(f"{option}: the model has {has}, but the data has {lacks}: {remedy}.")
    if classes is not None and wanted is not None and classes < wanted:
        raise ValueError(f"{option}: the model has {classes} classes, but the data has {wanted}.")
    return network


def data_fingerprint(images: np.ndarray, labels: np.ndarray | None) -> dict[str, int]:
    """Identify a data set: a run continues only with the data that it began with."""
    told = b"" if labels is None else labels.tobytes()
    # no copy: they may be larger than memory
    return {"images": len(images), "crc32": zlib.crc32(told, zlib.crc32(np.ascontiguousarray(images).data))}


def _fingerprint_of_teacher(teacher: Checkpoint | None) -> int | None:
    return None if teacher is None else fingerprint(teacher.model)


def _network(options: TrainOptions, data: ImageData, described: Any) -> UNetConfig:
    """Read --network, or the recipe's [network], or describe a UNet: as many levels as the images' size allows.

    The coarsest level has attention, unless it is so large (of images of odd sizes) that no memory would hold it.
    """
    height, width, depth = data.images.shape[1:]
    fits = {
        "sample_size": height if height == width else (height, width),
        "in_channels": depth,
        "out_channels": depth,
        "num_class_embeds": None if data.labels is None else int(data.labels.max()) + 1,
    }
    if options.network or (described is not None and not options.channels):
        given = read_json(options.network) if options.network else described
        if not isinstance(given, dict):
            raise ValueError(f"{options.network or options.recipe}: a network must be a JSON object, or a table.")
        config = UNetConfig.from_dict({**given, **fits})
        if config.class_embed_type is not None:
            raise ValueError(
                f"the network's class_embed_type = {config.class_embed_type!r} is not for classes; leave it out."
            )
        return config
    levels = 1
    while math.gcd(height, width) % 2**levels == 0 and min(height, width) >> levels >= 4 and levels < len(_WIDTHS):
        levels += 1
    widths = tuple(options.channels or _WIDTHS[:levels])
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
