"""From options to a model and a path: shared by `cmjax sample` and `cmjax inspect`."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.io import Checkpoint

__all__ = ["Setup", "prepare"]

_DEFAULT_STEPS = 2


class Setup(NamedTuple):
    """What is run: the model as the sampler sees it, the state at the start of the path, the sampler and its config."""

    model: Any
    state: Any
    sampler: str
    config: Any


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
        eta = {} if args.eta is None else {"eta": args.eta}
        return Setup(model, module.init(config, steps, timesteps=timesteps, **eta), sampler, config)


def _name(config: Any) -> str:
    """Name the sampler that a config belongs to, as the package does."""
    return next(sampler.__name__.rpartition(".")[2] for sampler in cmjax.samplers.ALL if type(config) is sampler.Config)
