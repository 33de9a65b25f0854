"""An artifact in the place of a model: what `cmjax export` wrote, for `cmjax sample --artifact`."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import jax

import cmjax
from cmjax import artifact
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_model import SamplerSetup, UnloadedModel, prepare
from cmjax.io import Checkpoint

__all__ = ["notes_of", "open_artifact"]

_PATH = ("sampler", "steps", "timesteps", "eta")


def notes_of(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """What an artifact has to say of its export, so that other paths can be laid out as for the model itself."""
    made_for = cmjax.io.config_dict(checkpoint.config)
    return {"model": args.model, "made_for": made_for, **{name: getattr(args, name) for name in _PATH}}


def open_artifact(args: argparse.Namespace) -> tuple[UnloadedModel, SamplerSetup, Callable[..., Any]]:
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
        setup = _path(found, args)
    if len(found.held.image) != 3:
        raise UsageError(f"{args.artifact} makes samples of shape {found.held.image}, which are no images.")
    height, width, channels = found.held.image
    whole: Any = Checkpoint(found, found.held.config)  # pyright: ignore[reportArgumentType]

    def generate(drawer: Any, state: Any, keys: Any, shape: tuple[int, ...], cond: Any) -> Any:
        return drawer(state, keys, cond)

    shown = setup._replace(model=found, with_weights=lambda checkpoint: checkpoint.model)
    opened = UnloadedModel(whole, lambda: whole, (height, width, channels), found.held.classes, found.held.label_names)
    return opened, shown, generate


def _path(found: artifact.Artifact, args: argparse.Namespace) -> SamplerSetup:
    """Lay out the path that is asked for: what is not said is as it was at the export."""
    held = found.held
    own = cmjax.samplers.sampler_of(held.config)
    if args.steps is None and args.timesteps is None and args.eta is None:
        state = cmjax.pad(own.init(held.config, 1), held.max_steps).replace(**held.state)
        return SamplerSetup(None, lambda checkpoint: None, state, own.__name__.rpartition(".")[2], held.config)
    if "made_for" not in held.notes:
        raise UsageError(f"{args.artifact} does not say how its path was laid out: leave out --steps and the like.")
    asked = copy.copy(args)
    for name in ("model", "sampler"):
        setattr(asked, name, held.notes[name])
    if args.steps is None and args.timesteps is None:
        asked.steps, asked.timesteps = held.notes["steps"], held.notes["timesteps"]
    asked.eta = held.notes["eta"] if args.eta is None else args.eta
    nothing: Any = jax.tree_util.Partial(_no_network)
    setup = prepare(Checkpoint(nothing, cmjax.io.read_config(held.notes["made_for"])), asked)
    if (steps := setup.state.num_steps) > held.max_steps:
        raise UsageError(
            f"--steps must be at most {held.max_steps}, for which the artifact has room, got {steps}: "
            "export one with a larger --max-steps."
        )
    return setup._replace(state=cmjax.pad(setup.state, held.max_steps))


def _no_network(x: Any, t: Any, cond: Any) -> Any:
    """Stand for the network, which is inside the program."""
    return x
