"""Shared by the ordinary samplers: how many timesteps of the table become which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmjax.samplers._checks import concrete, count_steps, strictly_decreasing
from cmjax.samplers._vp import VPConfig, custom_path

__all__ = ["by_hand", "spaced", "spaced_between"]

_SPACINGS = ("leading", "trailing", "linspace")


def spaced(config: VPConfig, num_steps: Any) -> np.ndarray:
    """The timesteps of a number of steps, f64[n], decreasing; those of `"linspace"` may be fractions.

    leading: k ⌊T / n⌋ + offset · trailing: T - k T / n - 1, rounded · linspace: k (T - 1) / (n - 1)

    References:
      Lin et al. 2023, table 2.
    """
    size = config.num_train_timesteps
    n = count_steps(num_steps, size, f"num_train_timesteps = {size}")
    match config.timestep_spacing:
        case "leading":
            timesteps = np.arange(n)[::-1] * float(size // n) + config.steps_offset
        case "trailing":
            timesteps = np.round(np.arange(size, 0, -size / n)[:n]) - 1  # its last may be one too many
        case "linspace":
            timesteps = np.linspace(0, size - 1, n)[::-1]
        case other:
            raise _unknown(other)
    _refuse_outside(config, timesteps)
    return timesteps


def spaced_between(config: VPConfig, num_steps: Any, room: int) -> np.ndarray:
    """The timesteps of a number of steps, i64[n], above one more that is not visited, timestep 0 or so.

    leading: k ⌊R / (n + 1)⌋ + offset, k = n … 1 · trailing: R - k T / n - 1 · linspace: k (R - 1) / n, rounded

    Args:
      config: of the model.
      num_steps: n.
      room: R, how many of the table's timesteps may be visited, from the clean end.
    """
    size, is_trailing = config.num_train_timesteps, config.timestep_spacing == "trailing"
    most = room if is_trailing else max(room - 1, 1)
    n = count_steps(num_steps, most, f"{most} (num_train_timesteps = {size}, {config.timestep_spacing})")
    match config.timestep_spacing:
        case "leading":
            path = np.arange(1, n + 1)[::-1] * float(room // (n + 1)) + config.steps_offset
        case "trailing":
            path = np.round(np.arange(room, 0, -size / n)[:n]) - 1
            path = path[path >= 0]
        case "linspace":
            path = np.round(np.linspace(0, room - 1, n + 1))[:0:-1]
        case other:
            raise _unknown(other)
    _refuse_outside(config, path)
    return custom_path(config, path.tolist())


def by_hand(config: VPConfig, timesteps: Sequence[float]) -> np.ndarray:
    """Timesteps given by hand, f64[n]; fractions lie between those of the table."""
    values = strictly_decreasing("timesteps", concrete("timesteps", timesteps))
    last = config.num_train_timesteps - 1
    for value in values:
        if not 0 <= value <= last:
            raise ValueError(f"timesteps must lie in [0, {last}] (num_train_timesteps = {last + 1}), got {value:.12g}.")
    return values


def _refuse_outside(config: VPConfig, timesteps: np.ndarray) -> None:
    last = config.num_train_timesteps - 1
    if timesteps[-1] < 0 or timesteps[0] > last:
        raise ValueError(
            f"steps_offset = {config.steps_offset} moves the timesteps to [{timesteps[-1]:g}, {timesteps[0]:g}], out "
            f"of [0, {last}] (num_train_timesteps = {last + 1}): take fewer steps, or an offset of 0 or 1."
        )


def _unknown(spacing: str) -> ValueError:
    return ValueError(f"timestep_spacing must be one of {', '.join(_SPACINGS)}, got {spacing!r}.")
