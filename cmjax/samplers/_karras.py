"""Shared by CM and CTM: their states' base, CM's path, and the checks of configs and of levels given by hand."""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import f32
from cmjax.parameterization import c_in, c_noise
from cmjax.samplers._checks import concrete, count_steps, last_part, strictly_decreasing
from cmjax.samplers.base import SamplerState
from cmjax.types import Array

__all__ = ["KarrasState", "check", "given", "path", "traced"]


class KarrasState(SamplerState):
    """A path in noise levels with Karras preconditioning; alpha is 1, so x = x0 + sigma eps.

    Attributes:
      sigmas: f32[n + 1], noise levels, descending; the last is sigma_min.
      sigma_data: f32[].
    """

    sigmas: Array
    sigma_data: Array

    @property
    def init_noise_sigma(self) -> Array:
        """The path's first noise level, f32[]."""
        return self.sigmas[..., 0]

    def rates(self) -> tuple[Array, Array]:
        """(1, σ), f32[] each."""
        return jnp.ones((), jnp.float32), self.now(self.sigmas)

    def model_input(self, x: Array) -> tuple[Array, Array]:
        """(c_in(σ) x, 250 ln σ): x at unit variance, f[B, *S], and the noise level as the network is told it, f32[]."""
        x_in = c_in(self.now(self.sigmas), self.sigma_data) * f32(x)
        return x_in.astype(x.dtype), self.now(self.timesteps)


class KarrasConfig(Protocol):
    """The numbers of a grid of noise levels."""

    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    @property
    def sigma_data(self) -> float: ...
    @property
    def rho(self) -> float: ...


class GridConfig(KarrasConfig, Protocol):
    """And of its points."""

    @property
    def num_train_timesteps(self) -> int: ...


def check(config: KarrasConfig) -> None:
    """Raise ValueError if the numbers leave no grid."""
    if not 0 < np.float32(config.sigma_min) < np.float32(config.sigma_max):
        raise ValueError(f"0 < sigma_min < sigma_max must hold, got {config.sigma_min:g} and {config.sigma_max:g}.")
    for name in ("sigma_data", "rho"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name):g}.")
    with np.errstate(over="ignore"):
        ends = np.array([config.sigma_min, config.sigma_max]) ** (1 / config.rho)
    if not (np.isfinite(ends).all() and 0 < ends[0] < ends[1]):
        raise ValueError(
            f"rho = {config.rho:g} leaves no room between sigma_min and sigma_max; published models have 7."
        )


def given(config: KarrasConfig, sigmas: Any) -> np.ndarray:
    """Levels given by hand, f64[n], strictly decreasing, in [sigma_min, sigma_max]."""
    levels = strictly_decreasing("sigmas", concrete("sigmas", sigmas))
    lowest, highest = np.float32(config.sigma_min), np.float32(config.sigma_max)
    if not lowest * (1 - 1e-6) <= levels[-1] <= levels[0] <= highest * (1 + 1e-6):  # room for float32 tables given back
        bad = levels[0] if levels[0] > highest else levels[-1]
        raise ValueError(
            f"sigmas must lie in [sigma_min, sigma_max] = [{config.sigma_min:g}, {config.sigma_max:g}], got {bad:.12g}."
        )
    return levels


def traced(sigmas: Any) -> tuple[Array, Array]:
    """Levels without values yet, f32[n], and what the network is told of them."""
    levels = f32(jnp.asarray(sigmas))
    if levels.ndim != 1:
        raise ValueError(f"sigmas must be a list of noise levels, got shape {levels.shape}.")
    return levels, c_noise(levels)


def path(config: GridConfig, num_steps: Any, timesteps: Any, sigmas: Any, strength: float) -> np.ndarray:
    """Compute the noise levels to visit, f64[n], from whichever of the three arguments is given."""
    if sigmas is not None:
        return last_part(given(config, sigmas), strength, "sigmas")
    size = config.num_train_timesteps
    if num_steps is not None:
        grid = last_part(np.arange(size), strength, "grid points")
        limit = f"num_train_timesteps = {size}"
        if strength < 1:
            limit = f"{len(grid)} ({limit} times strength = {strength})"
        count = count_steps(num_steps, len(grid), limit)
        indices = grid[:: len(grid) // count][:count]
    else:
        indices = strictly_decreasing("timesteps", concrete("timesteps", timesteps))[::-1]
        if not 0 <= indices[0] <= indices[-1] <= size - 1:
            bad = indices[0] if indices[0] < 0 else indices[-1]
            raise ValueError(
                f"timesteps must be grid indices in [0, {size - 1}] (num_train_timesteps = {size}), got {bad:.12g}."
            )
        indices = last_part(indices, strength, "timesteps")
    return schedules.karras_sigmas(indices, size, config.sigma_min, config.sigma_max, config.rho)
