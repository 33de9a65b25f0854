"""Shared by the samplers of distilled models, TCD and LCM: the keys of their files, and the path on the grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cmjax import schedules
from cmjax.samplers._checks import count_steps, exactly_one, fraction, last_part, least_strength
from cmjax.samplers._vp import VPConfig, custom_path

__all__ = ["DistilledConfig", "path"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledConfig(VPConfig):
    """The keys of a distilled model's `scheduler_config.json`: those of `VPConfig`, some of them without effect.

    Attributes:
      original_inference_steps: O; the model was distilled on every ⌊T / O⌋-th timestep.
      clip_sample: whether x0 is clipped to ± clip_sample_range.
      clip_sample_range: the limit of clip_sample.
      set_alpha_to_one: has no effect, since only a negative timestep could use it, and those are refused.
      steps_offset: has no effect. Published configs have 1, and honouring it would change every result.
      thresholding: whether x0 is bounded by its own quantile, image by image; takes precedence over clip_sample.
      dynamic_thresholding_ratio: that quantile.
      sample_max_value: the largest bound that thresholding may choose.
      timestep_spacing: has no effect: the grid is the one that the model was distilled on.
      timestep_scaling: how fast LCM's boundary scalings fall; TCD has none.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_scaling: float = 10.0


def path(
    config: DistilledConfig,
    num_steps: int | None,
    timesteps: Sequence[int] | None,
    original_inference_steps: int | None,
    strength: float,
) -> np.ndarray:
    """The timesteps to visit, i64[n], strictly decreasing; see `tcd.init` for the arguments."""
    exactly_one(num_steps=num_steps, timesteps=timesteps)
    strength = fraction("strength", strength)
    if timesteps is not None:
        if original_inference_steps is not None:
            raise ValueError(
                "original_inference_steps makes the grid for num_steps; with timesteps there is none: drop it."
            )
        return last_part(custom_path(config, timesteps), strength, "timesteps")
    size = config.num_train_timesteps
    original = config.original_inference_steps if original_inference_steps is None else original_inference_steps
    original = count_steps(original, size, f"num_train_timesteps = {size}", "original_inference_steps")
    grid = schedules.training_grid(size, original, strength)
    if not len(grid):
        raise ValueError(
            f"strength = {strength} leaves none of original_inference_steps = {original} timesteps; "
            f"it must be at least {least_strength(original)}."
        )
    limit = f"original_inference_steps = {original}"
    if strength < 1:
        limit = f"{len(grid)} (original_inference_steps = {original} times strength = {strength})"
    return schedules.spread(grid, count_steps(num_steps, len(grid), limit))
