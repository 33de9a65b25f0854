"""Open what `cmjax export` wrote in the place of a model, for `cmjax sample --artifact`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_model import UnloadedModel
from cmjax.cli.options import PathOptions
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler
from cmjax.io import Checkpoint

__all__ = ["OpenedArtifact", "notes_of", "open_artifact"]


class OpenedArtifact(NamedTuple):
    """What stands for a model, whose weights are the artifact's; its path; and what stands for `cmjax.generate`."""

    model: UnloadedModel
    setup: SamplerSetup
    generate: Callable[..., Any]


def notes_of(name: str, path: PathOptions, checkpoint: Checkpoint) -> dict[str, Any]:
    """Record how an export laid out its path, so that `sample --artifact` lays out others in the same way."""
    made_for = cmjax.io.config_dict(checkpoint.config)
    timesteps = None if path.timesteps is None else list(path.timesteps)
    asked = {"sampler": path.sampler, "steps": path.steps, "timesteps": timesteps, "eta": path.eta, "mu": path.mu}
    return {"model": name, "made_for": made_for, **asked}


def open_artifact(folder: str, path: PathOptions, fixed: Mapping[str, Any]) -> OpenedArtifact:
    """Look an artifact up, and lay out its path.

    Args:
      folder: where it is.
      path: the steps, timesteps, eta and mu that were asked for.
      fixed: options that an export fixes, by name; None for those that were not given.

    Raises:
      UsageError: there is none, or it cannot run here, or an option asks for what the export fixed.
    """
    for name, value in fixed.items():
        if value is not None:
            raise UsageError(f"--{name}: an artifact runs as it was exported; export another with cmjax export.")
    with bad_input():
        found = cmjax.artifact.load(folder)
        setup = _lay_out(found, folder, path)
    if len(found.held.image) != 3:
        raise UsageError(f"{folder} makes samples of shape {found.held.image}, which are not images.")
    height, width, channels = found.held.image
    whole: Any = Checkpoint(found, found.held.config)  # pyright: ignore[reportArgumentType]

    def generate(drawer: Any, state: Any, keys: Any, shape: tuple[int, ...], cond: Any) -> Any:
        return drawer(state, keys, cond)

    shown = setup._replace(model=found, with_weights=lambda checkpoint: checkpoint.model)
    names = found.held.label_names
    model = UnloadedModel(whole, lambda: whole, (height, width, channels), found.held.classes, names)
    return OpenedArtifact(model, shown, generate)


def _lay_out(found: cmjax.artifact.Artifact, folder: str, path: PathOptions) -> SamplerSetup:
    """Lay out the path that was asked for; what was not asked for stays as it was at the export."""
    held = found.held
    own = cmjax.samplers.sampler_of(held.config)
    if path.steps is None and path.timesteps is None and path.eta is None and path.mu is None:
        state = cmjax.pad(own.init(held.config, 1), held.max_steps).replace(**held.state)
        return SamplerSetup(None, lambda checkpoint: None, state, own.__name__.rpartition(".")[2], held.config)
    if "made_for" not in held.notes:
        raise UsageError(f"{folder} does not say how its path was laid out: leave out --steps and the like.")
    notes = held.notes
    steps, timesteps = path.steps, path.timesteps
    if steps is None and timesteps is None:
        steps, timesteps = notes["steps"], _numbers(notes["timesteps"])
    eta = notes["eta"] if path.eta is None else path.eta
    mu = notes.get("mu") if path.mu is None else path.mu  # older artifacts know of none
    asked = PathOptions(sampler=notes["sampler"], steps=steps, timesteps=timesteps, eta=eta, mu=mu)
    nothing: Any = jax.tree_util.Partial(_no_network)
    made_for = cmjax.io.read_config(notes["made_for"])
    setup = choose_sampler(Checkpoint(nothing, made_for), notes["model"], asked)
    if (steps := setup.state.num_steps) > held.max_steps:
        raise UsageError(
            f"--steps must be at most {held.max_steps}, the most that the artifact has room for, got {steps}: "
            "export one with a larger --max-steps."
        )
    return setup._replace(state=cmjax.pad(setup.state, held.max_steps))


def _numbers(timesteps: Any) -> tuple[float, ...] | None:
    """Read recorded timesteps: numbers, or, in older artifacts, lists of them."""
    if timesteps is None:
        return None
    return tuple(number for part in timesteps for number in (part if isinstance(part, list) else [part]))


def _no_network(x: Any, t: Any, cond: Any) -> Any:
    """Stand for the network, which is inside the program."""
    return x
