"""The levels of a flow's path: the keys of its files, and how they shift, stretch and space them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import f32, is_traced
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

__all__ = ["FlowKeys", "check", "path"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowKeys(SamplerConfig):
    """The keys that every flow matching `scheduler_config.json` has.

    Attributes:
      num_train_timesteps: T; the network is told T s at level s.
      shift: how far levels are moved towards noise: s becomes shift s / (1 + (shift - 1) s).
      use_dynamic_shifting: whether the shift goes by the size of the picture (mu) instead.
      base_shift: mu for base_image_seq_len tokens.
      max_shift: mu for max_image_seq_len tokens.
      base_image_seq_len: see base_shift.
      max_image_seq_len: see max_shift.
      invert_sigmas: whether the network's time runs from noise at 0 to data at T, and it predicts x0 - ε (Mochi).
      shift_terminal: the last level above 0; the path is stretched to end there.
      use_karras_sigmas: whether levels are spaced anew between the path's ends, even in s^(1/7).
      use_exponential_sigmas: the same, even in ln s.
      use_beta_sigmas: the same, by quantiles of a beta distribution.
      time_shift_type: what mu is: `"exponential"`, the logarithm of the shift, or `"linear"`, the shift itself.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float | None = 0.5
    max_shift: float | None = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    time_shift_type: str = "exponential"


def path(
    config: FlowKeys,
    num_steps: int | None,
    timesteps: Any,
    sigmas: Any,
    spacing: str,
    mu: float | None,
    image_seq_len: int | None,
    strength: float,
) -> Any:
    """The levels to visit, f32[n], strictly decreasing in (0, 1]; see `flow.init` for the arguments.

    What the reference computes in float32 is computed in float32 here too, so that levels are those of the pipelines
    that models were published with: the two ends of the training grid, and all of the path where levels are given.
    """
    exactly_one(num_steps=num_steps, timesteps=timesteps, sigmas=sigmas)
    strength = fraction("strength", strength)
    mu = _mu(config, mu, image_seq_len)
    if timesteps is not None:
        return last_part(_given("timesteps", timesteps, config.num_train_timesteps), strength, "timesteps")
    if sigmas is not None:
        return last_part(_finished(config, _given("sigmas", sigmas, 1), mu), strength, "sigmas")
    return _finished(config, _grid(config, num_steps, spacing, strength), mu)


def _grid(config: FlowKeys, num_steps: Any, spacing: str, strength: float) -> np.ndarray:
    """Spread n levels over the grid that the network was trained on, 1/T ... 1, or over its clean end."""
    size = config.num_train_timesteps
    if not (kept := int(size * strength)):
        raise ValueError(
            f"strength = {strength} leaves none of {size} levels; it must be at least {least_strength(size)}."
        )
    limit = f"num_train_timesteps = {size}" + (f" times strength = {strength}" if strength < 1 else "")
    n = count_steps(num_steps, kept, limit if strength == 1 else f"{kept} ({limit})")
    if spacing == "trailing":
        return (np.linspace(1.0, 1.0 / n, n) * (kept / size)).astype(np.float32)
    if spacing != "linspace":
        raise ValueError(f"spacing must be 'linspace' or 'trailing', got {spacing!r}.")
    ends = np.array([kept, 1], np.float32) / np.float32(size)
    if not config.use_dynamic_shifting:
        ends = _shifted(config, ends, None)  # and once more below, as the reference does
    highest, lowest = (float(end) * size for end in ends)
    return np.linspace(highest, lowest, n) / size


def _given(name: str, values: Any, highest: int) -> Any:
    """Check levels given by hand, as shares of the highest, f32[n]; traced ones are not checked."""
    if is_traced(values):
        if (levels := f32(jnp.asarray(values))).ndim != 1:
            raise ValueError(f"{name} must be a list of levels, got shape {levels.shape}.")
        return levels / highest
    levels = strictly_decreasing(name, concrete(name, values))
    for level in levels[[0, -1]]:
        if not 0 < level <= highest:
            raise ValueError(f"{name} must lie in (0, {highest}], got {level:.12g}. (The final 0 is added.)")
    return levels.astype(np.float32) / np.float32(highest)


def _finished(config: FlowKeys, levels: Any, mu: float | None) -> Any:
    """Shift, stretch and space levels, f32[n] in and out."""
    levels = _shifted(config, levels, mu)
    if config.shift_terminal:
        if len(levels) == 1:
            raise ValueError(
                f"shift_terminal = {config.shift_terminal:g} stretches the path between its first level and its last: "
                "plan at least two steps, or set it to None."
            )
        noiseless = 1 - levels
        levels = 1 - noiseless / (noiseless[-1] / (1 - config.shift_terminal))
    if is_traced(levels):
        return levels
    for spacing in _respacings(config):  # at most one
        levels = schedules.respaced(spacing, float(levels[0]), float(levels[-1]), len(levels))
    levels = levels.astype(np.float32)
    if not (levels[0] <= 1 + 1e-6 and levels[-1] > 0 and (np.diff(levels) < 0).all()):
        raise ValueError(
            f"the levels must fall from at most 1 to above 0, but shift = {config.shift:g}, mu = {mu} and "
            f"{len(levels)} steps lead from {levels[0]:.9g} to {levels[-1]:.9g}: plan fewer steps, or shift less."
        )
    return levels


def _shifted(config: FlowKeys, levels: Any, mu: float | None) -> Any:
    """Move levels towards noise: the odds of noise, s / (1 - s), are multiplied by the shift."""
    if mu is not None:
        shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
        return shift / (shift + (1 / levels - 1))
    return config.shift * levels / (1 + (config.shift - 1) * levels)


def _respacings(config: FlowKeys) -> list[str]:
    return [name for name in schedules.SPACINGS if getattr(config, f"use_{name}_sigmas")]


def _mu(config: FlowKeys, mu: float | None, image_seq_len: int | None) -> float | None:
    """The mu of dynamic shifting; None where the shift is fixed."""
    if not config.use_dynamic_shifting:
        if mu is not None or image_seq_len is not None:
            raise ValueError(
                f"mu and image_seq_len are for use_dynamic_shifting, but this config has the fixed shift "
                f"{config.shift:g}: leave them out."
            )
        return None
    if mu is None:
        base, most = config.base_shift, config.max_shift
        if base is None or most is None or (image_seq_len is None and base != most):
            raise ValueError(
                "use_dynamic_shifting needs mu, or image_seq_len, the number of tokens that the network makes of a "
                "picture, from which base_shift and max_shift give it."
            )
        slope = (most - base) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = (image_seq_len or 0) * slope + (base - slope * config.base_image_seq_len)
    mu = float(concrete("mu", mu))
    if not math.isfinite(mu) or (config.time_shift_type == "linear" and not mu > 0):
        raise ValueError(f"mu must be a finite number, positive where time_shift_type is 'linear', got {mu:g}.")
    return mu


def check(config: FlowKeys, usual: type) -> None:
    """Refuse a config that leaves no path, or is none of a flow, as `usual` is; raises TypeError or ValueError."""
    right_config(config, FlowKeys if isinstance(config, FlowKeys) else usual)
    if not config.num_train_timesteps >= 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {config.num_train_timesteps}.")
    if not config.shift > 0:
        raise ValueError(f"shift must be positive, got {config.shift:g}; 1 moves nothing.")
    if config.time_shift_type not in ("exponential", "linear"):
        raise ValueError(f"time_shift_type must be 'exponential' or 'linear', got {config.time_shift_type!r}.")
    if not 0 <= (config.shift_terminal or 0) < 1:
        raise ValueError(f"shift_terminal must lie in [0, 1), got {config.shift_terminal}.")
    if not config.max_image_seq_len > config.base_image_seq_len:
        raise ValueError(
            f"max_image_seq_len must be above base_image_seq_len = {config.base_image_seq_len}, got "
            f"{config.max_image_seq_len}."
        )
    if len(asked := _respacings(config)) > 1:
        names = " and ".join(f"use_{name}_sigmas" for name in asked)
        raise ValueError(f"Only one of {names} can space the levels: set one of them.")
