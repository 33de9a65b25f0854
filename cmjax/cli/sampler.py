"""From options to a model and a path: shared by `cmjax sample` and `cmjax inspect`."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.io import Checkpoint
from cmjax.io.published import published

__all__ = ["Setup", "prepare"]

_DEFAULT_STEPS = 2


class Setup(NamedTuple):
    """What is run: the model as the sampler sees it, the state at the start of the path, the sampler and its config.

    `note` says, to be put after the number of steps, where the path is from if it was not asked for.
    """

    model: Any
    state: Any
    sampler: str
    config: Any
    note: str = ""


def prepare(checkpoint: Checkpoint, args: argparse.Namespace) -> Setup:
    """Choose the sampler and lay out its path.

    Args:
      checkpoint: what `cmjax.load` returned.
      args: with `sampler`, `steps`, `timesteps` and `eta`.

    Raises:
      UsageError: the sampler does not suit the model, or an option does not suit the sampler.
    """
    model, config = checkpoint
    own = _name(config)
    sampler = args.sampler or own
    if args.eta is not None and sampler != "tcd":
        raise UsageError(f"--eta belongs to the sampler tcd, but the sampler is {sampler}.")
    if sampler != own and sampler == "cm":
        raise UsageError(f"the sampler cm needs a sigma-space consistency model, but this model was made for {own}.")
    module = getattr(cmjax, sampler)
    with bad_input():
        if isinstance(config, cmjax.cm.CMConfig) and sampler != "cm":
            vp_config = module.Config(prediction_type="sample", clip_sample=config.clip_denoised)
            model, config = cmjax.models.vp_from_sigma(model, config, vp_config), vp_config
        elif own != sampler:
            config = cmjax.io.read_config(cmjax.io.config_dict(config), as_=module.Config)
        timesteps = None if args.timesteps is None else [t for part in args.timesteps for t in part]
        steps = _DEFAULT_STEPS if args.steps is None and timesteps is None else args.steps
        note = ""
        if sampler == own == "cm" and timesteps is None and (found := _published_path(args.model, config, steps)):
            steps, timesteps, note = None, found, f" (timesteps {', '.join(map(str, found))}, as published)"
        eta = {} if args.eta is None else {"eta": args.eta}
        return Setup(model, module.init(config, steps, timesteps=timesteps, **eta), sampler, config, note)


def _published_path(name: str, config: Any, steps: int | None) -> tuple[int, ...] | None:
    """The path of that many steps that was published with a model, if there is one on its grid."""
    entry = published(name)
    if entry is None or entry.timesteps is None or entry.num_train_timesteps != config.num_train_timesteps:
        return None
    return entry.timesteps if len(entry.timesteps) == steps else None


def _name(config: Any) -> str:
    """Name the sampler that a config belongs to, as the package does."""
    return next(sampler.__name__.rpartition(".")[2] for sampler in cmjax.samplers.ALL if type(config) is sampler.Config)
