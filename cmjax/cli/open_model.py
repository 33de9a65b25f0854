"""Open a model: to draw with it, so that its weights are read last, or to train from it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.drawing import image_shape
from cmjax.io import Checkpoint
from cmjax.io.configs import read_json
from cmjax.io.memory import return_freed_memory
from cmjax.io.other_folders import other_scheduler, scheduler_file

__all__ = ["UnloadedModel", "load_abstract", "load_source", "model_class_names", "open_model"]

# Schedulers of diffusion models whose noise levels cmjax knows, and what they take for keys that a file leaves out.
_DIFFUSION = ("DDPMScheduler",)
_DEFAULTS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True}


class UnloadedModel(NamedTuple):
    """A model whose weights are not read yet: compiling takes memory that they can have after it.

    Attributes:
      checkpoint: the abstract model, and the config.
      load: reads the weights, and returns the checkpoint.
      shape: (H, W, C) of its images.
      classes: how many it has, or None.
      names: of the classes, if known.
    """

    checkpoint: Checkpoint
    load: Callable[[], Checkpoint]
    shape: tuple[int, int, int]
    classes: int | None
    names: tuple[str, ...] | None


def open_model(name: str, *, dtype: str, variant: str | None, pictures: bool = False) -> UnloadedModel:
    """Look a model up, and check its files.

    Args:
      name: a folder, a model of the package, or a hub id.
      dtype: what the network computes in.
      variant: which of the weights.
      pictures: whether what it draws must be pictures, of 1 or 3 channels.

    Raises:
      UsageError: there is none, or it is damaged, or of no use to commands.
    """

    def load(*, abstract: bool = False) -> Checkpoint:
        if not abstract:
            return_freed_memory()  # the compiler's, for the weights
        return cmjax.load(name, dtype=dtype, variant=variant, abstract=abstract)

    checkpoint = load_abstract(name, lambda: load(abstract=True))
    unet = checkpoint.model.config
    with bad_input():
        shape = image_shape(unet)
        names = model_class_names(name, checkpoint, variant=variant)
    if unet.class_embed_type is not None:
        raise UsageError(f"the model is conditioned on a {unet.class_embed_type}, which cannot be given here.")
    if pictures and shape[-1] not in (1, 3):
        raise UsageError(f"the model makes images of {shape[-1]} channels, but pictures have 1 or 3.")
    return UnloadedModel(checkpoint, load, shape, unet.num_class_embeds, names)


def load_abstract(name: str, load: Callable[[], Checkpoint]) -> Checkpoint:
    """Check a model's files, and say of a diffusion model what to do with it.

    Args:
      name: what `load` loads.
      load: reads the configs, and no weights.

    Raises:
      UsageError: there is no such model, or it is damaged, or it is a diffusion model.
    """
    try:
        with bad_input():
            return load()
    except UsageError as error:
        folder = Path(name).expanduser()
        if (scheduler := _diffusion_scheduler(folder)) is None:
            raise
        raise UsageError(
            f"{name} is a diffusion model ({scheduler}), which takes many steps. Distil it into one of a few steps: "
            f"cmjax train tcd --teacher {shlex.quote(name)} --data DATA --out RUN. Its network alone: "
            "cmjax.io.load_unet."
        ) from error


def load_source(name: str, *, dtype: str) -> Checkpoint:
    """Load a model to train from: one that `cmjax.load` reads, or a diffusers folder of a DDPM.

    Args:
      name: a folder, a model of the package, or a hub id.
      dtype: what the network computes in.

    Raises:
      ValueError: it is damaged, or of a scheduler whose noise levels cmjax does not know.
      OSError: there is none.
    """
    folder = Path(name).expanduser()
    if _diffusion_scheduler(folder) is None:
        return cmjax.load(name, dtype=dtype)
    values = {**_DEFAULTS, **read_json(scheduler_file(folder))}
    return Checkpoint(cmjax.io.load_unet(name, dtype=dtype), cmjax.io.read_config(values, as_=cmjax.tcd.TCDConfig))


def model_class_names(name: str, checkpoint: Checkpoint, *, variant: str | None = None) -> tuple[str, ...] | None:
    """Read the names of a model's classes, if they have names. Without classes, a labels.json is another tool's."""
    if checkpoint.model.config.num_class_embeds is None:
        return None
    return cmjax.io.label_names(name, variant=variant)


def _diffusion_scheduler(folder: Path) -> str | None:
    """Name the scheduler of a diffusion model's folder; None for anything else."""
    try:
        scheduler = other_scheduler(folder)
    except (OSError, ValueError):
        return None
    return scheduler if scheduler in _DIFFUSION else None
