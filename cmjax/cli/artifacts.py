"""An artifact in the place of a model: for `cmjax sample --artifact`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import cmjax
from cmjax import artifact
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.sampler import Opened, Setup, prepare
from cmjax.io import Checkpoint

__all__ = ["open_artifact"]


def open_artifact(args: argparse.Namespace) -> tuple[Opened, Setup, Callable[..., Any]]:
    """Look an artifact up, and lay out its path.

    Args:
      args: those of `cmjax sample`.

    Returns:
      What stands for a model, whose weights are the artifact's; its path; and what takes the place of `cmjax.generate`.

    Raises:
      UsageError: there is none, or it cannot run here, or an option asks for what was settled at its export.
    """
    settled = {"sampler": args.sampler, "variant": args.variant, "trajectory": args.trajectory or None}
    if args.dtype != "float32":
        settled["dtype"] = args.dtype
    for name, value in settled.items():
        if value is not None:
            raise UsageError(f"--{name}: an artifact runs as it was exported; export another with cmjax export.")
    with bad_input():
        found = artifact.load(args.artifact)
    if len(found.image) != 3:
        raise UsageError(f"{args.artifact} makes samples of shape {found.image}, which are no images.")
    height, width, channels = found.image
    held: Any = dict(found.weights)  # in a network's place
    weights = Checkpoint(held, found.config)
    setup = _path(found, weights, args)

    def generate(weights: Any, state: Any, keys: Any, shape: tuple[int, ...], cond: Any) -> Any:
        return dataclasses.replace(found, weights=weights)(state, keys, cond)

    opened = Opened(weights, lambda: weights, (height, width, channels), found.classes, found.label_names)
    return opened, setup, generate


def _path(found: artifact.Artifact, weights: Checkpoint, args: argparse.Namespace) -> Setup:
    """Lay out the path that is asked for, or else the one that was exported."""
    if args.steps is None and args.timesteps is None and args.eta is None:
        own = cmjax.samplers.sampler_of(found.config)
        state = cmjax.pad(own.init(found.config, 1), found.max_steps).replace(**found.state)
        return Setup(weights.model, _weights_of, state, own.__name__.rpartition(".")[2], found.config)
    setup = prepare(weights, args)
    steps = setup.state.num_steps
    if steps > found.max_steps:
        raise UsageError(
            f"--steps must be at most {found.max_steps}, for which the artifact has room, got {steps}: "
            "export one with a larger --max-steps."
        )
    return setup._replace(state=cmjax.pad(setup.state, found.max_steps), with_weights=_weights_of)


def _weights_of(checkpoint: Checkpoint) -> Any:
    return checkpoint.model
