"""From options to a model and a path: shared by every command that has a model to draw with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import cmjax
from cmjax.cli.drawing import image_shape
from cmjax.cli.errors import UsageError, bad_input
from cmjax.io import Checkpoint
from cmjax.io.single_files.published import published
from cmjax.samplers._vp import rate_tables
from cmjax.schedules import karras_sigmas

__all__ = ["UnloadedModel", "SamplerSetup", "open_model", "own_path", "prepare", "two_steps"]


class UnloadedModel(NamedTuple):
    """A model before its weights are there: compiling takes memory that they can have after it.

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


def open_model(args: argparse.Namespace, *, pictures: bool) -> UnloadedModel:
    """Look a model up, and check its files.

    Args:
      args: with `model`, `dtype` and `variant`.
      pictures: whether what it makes must be pictures, of 1 or 3 channels.

    Raises:
      UsageError: there is none, or it is damaged, or of no use to commands.
    """
    load = partial(cmjax.load, args.model, dtype=args.dtype, variant=args.variant)
    with bad_input():
        checkpoint = load(abstract=True)
        names = cmjax.io.label_names(args.model, variant=args.variant)
        unet = checkpoint.model.config
        shape = image_shape(unet)
    if unet.class_embed_type is not None:
        raise UsageError(f"the model is conditioned on a {unet.class_embed_type}, which cannot be given here.")
    if pictures and shape[-1] not in (1, 3):
        raise UsageError(f"the model makes images of {shape[-1]} channels, but pictures have 1 or 3.")
    return UnloadedModel(checkpoint, load, shape, unet.num_class_embeds, names)


class SamplerSetup(NamedTuple):
    """What is run: the model as the sampler sees it, the state at the start of the path, the sampler and its config.

    `with_weights` shows a loaded checkpoint's model to the sampler in the same way. `note` says, to be put after the
    number of steps, where the path is from if it was not asked for.
    """

    model: Any
    with_weights: Callable[[Checkpoint], Any]
    state: Any
    sampler: str
    config: Any
    note: str = ""


def two_steps(sampler: str, config: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Plan what was asked for, or else two steps."""
    return asked or {"num_steps": 2}


def prepare(
    checkpoint: Checkpoint,
    args: argparse.Namespace,
    plan: Callable[[str, Any, dict[str, Any]], dict[str, Any]] = two_steps,
) -> SamplerSetup:
    """Choose the sampler and lay out its path.

    Args:
      checkpoint: what `cmjax.load` returned.
      args: with `sampler`, `steps`, `timesteps` and `eta`, and `sigmas` where the command has them.
      plan: from the sampler's name, its config, and what was asked for, to the arguments of its `init`.

    Raises:
      UsageError: the sampler does not suit the model, or an option does not suit the sampler.
    """
    config, show = checkpoint.config, _as_it_is
    own = _name(config)
    sampler = args.sampler or own
    if _is_denoiser(config):
        with bad_input():
            return _of_denoiser(checkpoint, args, plan)
    if args.eta is not None and sampler != "tcd":
        raise UsageError(f"--eta belongs to the sampler tcd, but the sampler is {sampler}.")
    if sampler != own and sampler == "cm":
        raise UsageError(f"the sampler cm needs a sigma-space consistency model, but this model was made for {own}.")
    module = getattr(cmjax, sampler)
    with bad_input():
        if isinstance(config, cmjax.cm.CMConfig) and sampler != "cm":
            vp_config = module.Config(prediction_type="sample", clip_sample=config.clip_denoised)
            show, config = partial(_as_vp, config=vp_config), vp_config
        elif own != sampler:
            config = cmjax.io.read_config(cmjax.io.config_dict(config), as_=module.Config)
        asked = _asked(args)
        if "sigmas" in asked and sampler != "cm":
            raise UsageError(f"--sigmas belongs to the sampler cm, but the sampler is {sampler}.")
        path = plan(sampler, config, asked)
        note = ""
        if sampler == own == "cm" and (found := _published_path(args.model, config, path)):
            path, note = {"timesteps": found}, f" (timesteps {', '.join(map(str, found))}, as published)"
        eta = {} if args.eta is None else {"eta": args.eta}
        return SamplerSetup(show(checkpoint), show, module.init(config, **path, **eta), sampler, config, note)


def own_path(config: Any, num_steps: int) -> tuple[Callable[[Checkpoint], Any], Any]:
    """How a model is sampled where nothing else is asked for: what the sampler sees of it, and the state.

    Args:
      config: the model's.
      num_steps: of the path, unless the config says how many it takes.
    """
    if _is_denoiser(config):
        return _ddim(config, {"num_steps": config.denoiser_steps})[:2]
    return _as_it_is, cmjax.samplers.sampler_of(config).init(config, num_steps)


def _is_denoiser(config: Any) -> bool:
    return isinstance(config, cmjax.cm.CMConfig) and config.denoiser_steps is not None


def _ddim(config: Any, path: dict[str, Any]) -> tuple[Callable[[Checkpoint], Any], Any, Any]:
    """Plan a denoiser's walk: TCD with eta 0 is DDIM. Returns what the sampler sees, the state, and its config.

    So many steps go down the Karras grid of that size, on which a student of so many steps was trained.
    """
    vp = cmjax.tcd.TCDConfig(
        prediction_type="sample",
        clip_sample=config.clip_denoised,
        beta_schedule="linear",  # as far as noise of the largest levels; the default ends at 14.6
        beta_start=1e-4,
        beta_end=0.02,
    )
    if path.keys() == {"num_steps"}:
        path = {"timesteps": _karras_timesteps(config, vp, path["num_steps"])}
    return partial(_as_vp, config=vp), cmjax.tcd.init(vp, **path, eta=0.0), vp


def _karras_timesteps(config: Any, vp: Any, num_steps: int) -> list[int]:
    """The timesteps nearest to the levels of the Karras grid of so many steps, from the noisiest."""
    alpha, sigma = rate_tables(vp)
    levels = karras_sigmas(np.arange(num_steps), num_steps + 1, config.sigma_min, config.sigma_max, config.rho)
    nearest = np.abs(np.log(sigma / alpha)[:, None] - np.log(levels)).argmin(axis=0)
    return np.unique(nearest)[::-1].tolist()


def _of_denoiser(checkpoint: Checkpoint, args: argparse.Namespace, plan: Callable[..., dict[str, Any]]) -> SamplerSetup:
    asked = _asked(args)
    if (args.sampler or "tcd") != "tcd" or args.eta or "sigmas" in asked:
        said = [f"--{name}" for name in ("sampler", "eta", "sigmas") if getattr(args, name, None)]
        remedy = f"leave out {' and '.join(said)}" if said else "give a consistency model"
        raise UsageError(f"the model is a denoiser, which walks as DDIM (tcd with eta 0) and cannot jump: {remedy}.")
    path = plan("tcd", checkpoint.config, asked or {"num_steps": checkpoint.config.denoiser_steps})
    show, state, config = _ddim(checkpoint.config, path)
    return SamplerSetup(show(checkpoint), show, state, "tcd", config, " (a denoiser, by DDIM)")


def _as_it_is(checkpoint: Checkpoint) -> Any:
    return checkpoint.model


def _as_vp(checkpoint: Checkpoint, config: Any) -> Any:
    """Show a model of noise levels to a sampler of variance-preserving ones."""
    return cmjax.models.vp_from_sigma(checkpoint.model, checkpoint.config, config)


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The path that the options say, as arguments of a sampler's `init`; empty where they do not."""
    path = {"num_steps": args.steps, "timesteps": args.timesteps, "sigmas": getattr(args, "sigmas", None)}
    path = {name: value for name, value in path.items() if value is not None}
    for name in ("timesteps", "sigmas"):
        if name in path:
            path[name] = [value for part in path[name] for value in part]
    return path


def _published_path(name: str, config: Any, path: dict[str, Any]) -> tuple[int, ...] | None:
    """The path of that many steps that was published with a model, if there is one on its grid."""
    entry = published(name)
    if entry is None or entry.timesteps is None or entry.num_train_timesteps != config.num_train_timesteps:
        return None
    return entry.timesteps if path == {"num_steps": len(entry.timesteps)} else None


def _name(config: Any) -> str:
    """Name the sampler that a config belongs to, as the package does."""
    return cmjax.samplers.sampler_of(config).__name__.rpartition(".")[2]
