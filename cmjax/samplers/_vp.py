"""Shared by the samplers of variance-preserving models: the keys of their files, their rates, and bounds on x0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like
from cmjax.samplers._checks import concrete, right_config, strictly_decreasing
from cmjax.samplers.base import SamplerConfig
from cmjax.types import Array

__all__ = ["Bound", "VPConfig", "as_config", "bound", "check_noisy", "custom_path", "rate_tables"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPConfig(SamplerConfig):
    """The keys that every variance-preserving `scheduler_config.json` has.

    Attributes:
      num_train_timesteps: T.
      beta_start: the first β of the schedule.
      beta_end: the last β of the schedule.
      beta_schedule: `"linear"`, `"scaled_linear"` or `"squaredcos_cap_v2"`.
      trained_betas: T values in place of the schedule.
      prediction_type: what the network predicts: `"epsilon"`, `"sample"` (x0) or `"v_prediction"`.
      rescale_betas_zero_snr: whether the last timestep is pure noise. Not with `"epsilon"`, which divides by alpha.
      timestep_spacing: how num_steps timesteps are chosen: `"leading"`, `"trailing"` or `"linspace"`.
      steps_offset: added to the timesteps of `"leading"`.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 0


ConfigT = TypeVar("ConfigT", bound=SamplerConfig)


def as_config(config: Any, wanted: type[ConfigT]) -> ConfigT:
    """Read any variance-preserving model's config as one sampler's: every `init` takes the others' configs by this.

    The noise levels and what the network predicts stay as they are. What x0 is bounded by stays too: where the config
    says nothing of clipping, nothing is clipped, whatever the default of the other sampler.

    Raises:
      TypeError: it is another kind of model's.
    """
    if isinstance(config, wanted):
        return config
    right_config(config, VPConfig)
    values = config.values()
    if any(field.name == "clip_sample" for field in dataclasses.fields(wanted)):
        values.setdefault("clip_sample", False)
    return wanted.of(values)


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


# ---- paths by hand ---------------------------------------------------------------------------------------------------


def custom_path(config: VPConfig, timesteps: Sequence[int]) -> np.ndarray:
    """A path given by hand: timesteps of the table, i64[n], strictly decreasing."""
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
    """Read the keys about x0's range, those of them that the config has; raises ValueError if they are invalid."""
    if getattr(config, "thresholding", False):
        ratio, most = config.dynamic_thresholding_ratio, config.sample_max_value  # pyright: ignore
        if not 0 <= ratio <= 1:
            raise ValueError(f"dynamic_thresholding_ratio must lie in [0, 1], got {ratio}.")
        if not most > 0:
            raise ValueError(f"sample_max_value must be positive, got {most}.")
        return Bound(quantile=float(ratio), most=float(most))
    if getattr(config, "clip_sample", False):
        limit = config.clip_sample_range  # pyright: ignore
        if not limit > 0:
            raise ValueError(f"clip_sample_range must be positive, got {limit}.")
        return Bound(limit=float(limit))
    return Bound()


def check_noisy(timesteps: np.ndarray, sigma: np.ndarray) -> None:
    """Refuse a path through a timestep without noise, where there is nothing to denoise and eps is undefined."""
    for i, t in enumerate(timesteps):
        if np.float32(sigma[t]) == 0:
            raise ValueError(f"timesteps[{i}] = {t} has no noise (sigma = 0): end the path before it.")
