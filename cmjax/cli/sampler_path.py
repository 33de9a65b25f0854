"""Choose the sampler and lay out its path: every command that draws with a model does it here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import cmjax
from cmjax._sampler_names import ORDINARY, TWO_TIMES
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.options import PathOptions
from cmjax.io import Checkpoint
from cmjax.io.single_files.published import published
from cmjax.published import Published
from cmjax.samplers._checks import fraction
from cmjax.samplers._vp import rate_tables
from cmjax.schedules import karras_sigmas

__all__ = ["SamplerSetup", "choose_sampler", "own_path", "two_steps"]

_MANY = 25  # steps of a model that was not distilled
_NEEDS = {  # models that no other one can be shown as
    "cm": "a sigma-space consistency model",
    "flow": "a flow",
    "scm": "a consistency model in angles",
    "ctm": "a consistency trajectory model",
    "meanflow": "a flow that is told where its steps land",
}


class SamplerSetup(NamedTuple):
    """A sampler with its path, and the model as it sees it.

    Attributes:
      model: as the sampler sees it.
      with_weights: shows a loaded checkpoint's model to the sampler in the same way.
      state: at the start of the path.
      sampler: its name.
      config: of the sampler.
      note: where the path is from, if it was not asked for.
    """

    model: Any
    with_weights: Callable[[Checkpoint], Any]
    state: Any
    sampler: str
    config: Any
    note: str = ""

    @property
    def steps(self) -> str:
        """How many steps are taken, and where the path is from."""
        return f"{self.state.num_steps - int(self.state.index)}{self.note}"


def two_steps(sampler: str, config: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Plan what was asked for, or else two steps."""
    return asked or {"num_steps": 2}


def choose_sampler(
    checkpoint: Checkpoint,
    name: str,
    path: PathOptions,
    plan: Callable[[str, Any, dict[str, Any]], dict[str, Any]] = two_steps,
) -> SamplerSetup:
    """Choose the sampler and lay out its path.

    Args:
      checkpoint: what `cmjax.load` returned.
      name: what it was loaded by: some models were published with a path.
      path: what was asked for.
      plan: from the sampler's name, its config, and what was asked for, to the arguments of its `init`.

    Raises:
      UsageError: the sampler does not suit the model, or an option does not suit the sampler.
    """
    config, show = checkpoint.config, _as_it_is
    own = _name(config)
    sampler = path.sampler or own
    if _is_denoiser(config):
        with bad_input():
            return _of_denoiser(checkpoint, path, plan)
    for option in ("eta", "mu", "sigmas"):
        if getattr(path, option) is not None and not _takes(getattr(cmjax, sampler), option):
            names = [_short(module) for module in cmjax.samplers.ALL if _takes(module, option)]
            said = f"samplers {', '.join(names[:-1])} and {names[-1]}" if names[1:] else f"sampler {names[0]}"
            raise UsageError(f"--{option} is for the {said}, but the sampler is {sampler}.")
    if sampler != own and sampler in _NEEDS:
        raise UsageError(f"the sampler {sampler} needs {_NEEDS[sampler]}, but this model was made for {own}.")
    if sampler != own and own in _NEEDS and own != "cm":
        raise UsageError(f"the model is {_NEEDS[own]}, which {sampler} cannot sample: leave out --sampler {sampler}.")
    if own == "cm" and sampler in ORDINARY:
        raise UsageError(
            f"the sampler {sampler} walks diffusion models, but this one was made to jump: cm, tcd or lcm."
        )
    if own in TWO_TIMES and not getattr(checkpoint.model.config, "is_told_target", True):
        raise UsageError(
            f"the model's scheduler is for {own}, whose networks are told where a step lands, but the network is not "
            "(its config has no target_embed_type): one of the two files is of another model."
        )
    module = getattr(cmjax, sampler)
    with bad_input():
        if isinstance(config, cmjax.cm.CMConfig) and sampler != "cm":
            vp_config = module.Config(prediction_type="sample", clip_sample=config.clip_denoised)
            show, config = partial(_as_vp, config=vp_config), vp_config
        elif own != sampler:
            config = cmjax.io.read_config(cmjax.io.config_dict(config), as_=module.Config)
        if path.published is not None:
            config = _as_published(config, path.published, sampler)
        asked, note = _asked(path), ""
        if not asked and own in ORDINARY and sampler in ORDINARY and path.published is None:
            asked, note = {"num_steps": _MANY}, " (usual for a model that was not distilled)"
        planned = plan(sampler, config, asked)
        if sampler == own == "cm" and (found := _published_path(name, config, planned)):
            planned, note = {"timesteps": found}, f" (timesteps {', '.join(map(str, found))}, as published)"
        knobs = {name: value for name in ("eta", "mu") if (value := getattr(path, name)) is not None}
        strength: Any = 1.0 if _takes(module, "strength") else planned.pop("strength", 1.0)
        state = _last_part(module.init(config, **planned, **knobs), strength)
        return SamplerSetup(show(checkpoint), show, state, sampler, config, note)


def _as_published(config: Any, row: Published, sampler: str) -> Any:
    """What the network of a published model predicts; and its steps' spacing, for the sampler that it is of."""
    if sampler == row.sampler:
        return row.configured(config)
    return dataclasses.replace(config, prediction_type=row.prediction_type) if row.prediction_type else config


def _last_part(state: Any, strength: float) -> Any:
    """The last steps of a path, that share of them: what diffusers' pipelines call strength."""
    strength = fraction("strength", strength)
    return cmjax.skip(state, state.num_steps - max(1, int(state.num_steps * strength)))


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


def _of_denoiser(checkpoint: Checkpoint, path: PathOptions, plan: Callable[..., dict[str, Any]]) -> SamplerSetup:
    asked = _asked(path)
    if (path.sampler or "tcd") != "tcd" or path.eta or path.mu is not None or "sigmas" in asked:
        said = [f"--{name}" for name in ("sampler", "eta", "mu", "sigmas") if getattr(path, name)]
        remedy = f"leave out {' and '.join(said)}" if said else "give a consistency model"
        raise UsageError(f"the model is a denoiser, which walks as DDIM (tcd with eta 0) and cannot jump: {remedy}.")
    planned = plan("tcd", checkpoint.config, asked or {"num_steps": checkpoint.config.denoiser_steps})
    show, state, config = _ddim(checkpoint.config, planned)
    return SamplerSetup(show(checkpoint), show, state, "tcd", config, " (a denoiser, by DDIM)")


def _as_it_is(checkpoint: Checkpoint) -> Any:
    return checkpoint.model


def _as_vp(checkpoint: Checkpoint, config: Any) -> Any:
    """Show a model of noise levels to a sampler of variance-preserving ones."""
    return cmjax.models.vp_from_sigma(checkpoint.model, checkpoint.config, config)


def _asked(path: PathOptions) -> dict[str, Any]:
    """The path that was asked for, as arguments of a sampler's `init`; empty where none was."""
    asked = {"num_steps": path.steps, "timesteps": path.timesteps, "sigmas": path.sigmas}
    return {name: value for name, value in asked.items() if value is not None}


def _published_path(name: str, config: Any, path: dict[str, Any]) -> tuple[int, ...] | None:
    """The path of that many steps that was published with a model, if there is one on its grid."""
    entry = published(name)
    if entry is None or entry.timesteps is None or entry.num_train_timesteps != config.num_train_timesteps:
        return None
    return entry.timesteps if path == {"num_steps": len(entry.timesteps)} else None


def _name(config: Any) -> str:
    """Name the sampler that a config belongs to, as the package does."""
    return _short(cmjax.samplers.sampler_of(config))


def _takes(sampler: ModuleType, option: str) -> bool:
    return option in inspect.signature(sampler.init).parameters


def _short(sampler: ModuleType) -> str:
    return sampler.__name__.rpartition(".")[2]
