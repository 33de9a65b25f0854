"""Shared by TCD and LCM: the keys of their files, the path on the training grid, and bounds on x0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like
from cmjax.samplers._checks import (
    concrete,
    count_steps,
    exactly_one,
    fraction,
    last_part,
    least_strength,
    right_config,
    strictly_decreasing,
)
from cmjax.samplers.base import SamplerConfig
from cmjax.types import Array

__all__ = ["Bound", "VPConfig", "bound", "path", "rate_tables"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPConfig(SamplerConfig):
    """The keys of a variance-preserving `scheduler_config.json`.

    Attributes:
      num_train_timesteps: T.
      beta_start: the first β of the schedule.
      beta_end: the last β of the schedule.
      beta_schedule: `"linear"`, `"scaled_linear"` or `"squaredcos_cap_v2"`.
      trained_betas: T values in place of the schedule.
      original_inference_steps: O; the model was distilled on every ⌊T / O⌋-th timestep.
      clip_sample: whether x0 is clipped to ± clip_sample_range.
      clip_sample_range: the limit of clip_sample.
      set_alpha_to_one: has no effect, since only a negative timestep could use it, and those are refused.
      steps_offset: has no effect. Published configs have 1, and honouring it would change every result.
      prediction_type: what the network predicts: `"epsilon"`, `"sample"` (x0) or `"v_prediction"`.
      thresholding: whether x0 is bounded by its own quantile, image by image; takes precedence over clip_sample.
      dynamic_thresholding_ratio: that quantile.
      sample_max_value: the largest bound that thresholding may choose.
      timestep_spacing: has no effect: the grid is the one that the model was distilled on.
      timestep_scaling: how fast LCM's boundary scalings fall; TCD has none.
      rescale_betas_zero_snr: whether the last timestep is pure noise. Not with `"epsilon"`, which divides by alpha.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    timestep_scaling: float = 10.0
    rescale_betas_zero_snr: bool = False


# ---- the rates -------------------------------------------------------------------------------------------------------


def rate_tables(config: VPConfig) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) at every training timestep, f64[T] each; raises ValueError for invalid numbers."""
    right_config(config, VPConfig)
    tables = schedules.rates(
        schedules.alphas_cumprod(
            config.beta_schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            config.trained_betas,
            config.rescale_betas_zero_snr,
        )
    )
    if config.prediction_type not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"prediction_type must be epsilon, sample or v_prediction, got {config.prediction_type!r}.")
    if config.prediction_type == "epsilon" and np.float32(tables[0].min()) == 0:
        raise ValueError(
            "prediction_type 'epsilon' divides by alpha, which is 0 at the last timestep "
            f"(rescale_betas_zero_snr = {config.rescale_betas_zero_snr}); such models predict v_prediction or sample."
        )
    return tables


# ---- the path --------------------------------------------------------------------------------------------------------


def path(
    config: VPConfig,
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
        return last_part(_custom(config, timesteps), strength, "timesteps")
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


def _custom(config: VPConfig, timesteps: Sequence[int]) -> np.ndarray:
    """A path given by hand."""
    values = strictly_decreasing("timesteps", concrete("timesteps", timesteps))
    last = config.num_train_timesteps - 1
    for value in values:
        if not 0 <= value <= last:
            raise ValueError(f"timesteps must lie in [0, {last}] (num_train_timesteps = {last + 1}), got {value:.12g}.")
        if value != int(value):
            raise ValueError(f"timesteps must be integers, got {value:.12g}.")
    return values.astype(np.int64)


# ---- bounds on x0 ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bound:
    """The bound on x0: none, clipping, or its own quantile. Hashable, called with f32[B, *S].

    Attributes:
      limit: clip to ± limit.
      quantile: the fraction of an image's values that stay unchanged.
      most: the largest limit that the quantile may set; the limit is never below 1, unless `most` is.

    References:
      Saharia et al. 2022, section 2.3 (dynamic thresholding).
    """

    limit: float | None = None
    quantile: float | None = None
    most: float = 1.0

    def __call__(self, x0: Array) -> Array:
        if self.quantile is not None:
            sizes = jnp.abs(x0).reshape(x0.shape[0], -1)
            limit = jnp.minimum(jnp.maximum(jnp.quantile(sizes, self.quantile, axis=1), 1.0), self.most)
            limit = expand_like(limit, x0)
            return jnp.clip(x0, -limit, limit) / limit
        return x0 if self.limit is None else jnp.clip(x0, -self.limit, self.limit)

    def __repr__(self) -> str:
        if self.quantile is not None:
            return f"Bound(quantile={self.quantile:g}, most={self.most:g})"
        return "Bound()" if self.limit is None else f"Bound(limit={self.limit:g})"


def bound(config: VPConfig) -> Bound:
    """Read the keys about x0's range; raises ValueError if they are invalid."""
    if config.thresholding:
        ratio, most = config.dynamic_thresholding_ratio, config.sample_max_value
        if not 0 <= ratio <= 1:
            raise ValueError(f"dynamic_thresholding_ratio must lie in [0, 1], got {ratio}.")
        if not most > 0:
            raise ValueError(f"sample_max_value must be positive, got {most}.")
        return Bound(quantile=float(ratio), most=float(most))
    if config.clip_sample:
        if not config.clip_sample_range > 0:
            raise ValueError(f"clip_sample_range must be positive, got {config.clip_sample_range}.")
        return Bound(limit=float(config.clip_sample_range))
    return Bound()


def check_noisy(timesteps: np.ndarray, sigma: np.ndarray) -> None:
    """Refuse a path through a timestep without noise, where there is nothing to denoise and eps is undefined."""
    for i, t in enumerate(timesteps):
        if np.float32(sigma[t]) == 0:
            raise ValueError(f"timesteps[{i}] = {t} has no noise (sigma = 0): end the path before it.")
