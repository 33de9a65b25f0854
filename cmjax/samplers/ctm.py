"""Consistency trajectory models (Kim et al. 2023): jump from a noise level to any lower one, which the network is told.

A step jumps to s = √(1 - η²) σ' and adds noise up to σ'; η is the paper's γ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import f32, is_traced, safe_sqrt
from cmjax.parameterization import c_noise, c_out, c_skip
from cmjax.samplers import _karras
from cmjax.samplers._checks import count_steps, etas, exactly_one, right_config
from cmjax.samplers.base import Prediction, SamplerConfig, build
from cmjax.samplers.cm import CMConfig
from cmjax.types import Array

__all__ = ["CTMConfig", "CTMState", "init"]

_MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTMConfig(SamplerConfig):
    """The keys of a consistency trajectory model's `scheduler_config.json`; diffusers has no such scheduler.

    Attributes:
      sigma_min: the noise level at which a picture counts as clean.
      sigma_max: the noise level of the prior.
      sigma_data: the standard deviation of the data that the preconditioning assumes.
      rho: how strongly a path crowds towards sigma_min.
    """

    scheduler: ClassVar[str] = "CTMScheduler"

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0

    @classmethod
    def of_teacher(cls, config: CMConfig) -> CTMConfig:
        """The config of a student: the noise levels of its teacher."""
        return cls(sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data, rho=config.rho)


class CTMState(_karras.KarrasState):
    """The path of a consistency trajectory model; alpha is 1, so x = x0 + sigma eps.

    The network's estimate x0 serves the jump to s: it is where the straight line through x and the landing meets
    clean data, and a picture only in the last step.

    Attributes:
      landings: f32[n], s, where each step's jump lands.
    """

    landings: Array

    def model_options(self) -> dict[str, Array]:
        """What the network is told of the landing, s = 250 ln of its level, f32[]."""
        return {"s": c_noise(self.now(self.landings))}

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """x0 = c_skip(σ) x + c_out(σ) F; ε = (x - x0) / σ. Each f32[B, *S]."""
        model_out, x, sigma = f32(model_out), f32(x), self.now(self.sigmas)
        x0 = c_skip(sigma, self.sigma_data) * x + c_out(sigma, self.sigma_data) * model_out
        return Prediction(x0, (x - x0) / sigma)

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Land, x_s = x0 + s ε, and add noise up to σ': x_s + √(σ'² - s²) z, f32[B, *S]; none at the end."""
        s, sigma = self.now(self.landings), self.next(self.sigmas)
        return pred.x0 + s * pred.eps + safe_sqrt((sigma - s) * (sigma + s)) * f32(z)


def init(
    config: CTMConfig,
    num_steps: int | None = None,
    *,
    sigmas: Sequence[float] | np.ndarray | Array | None = None,
    eta: float | Sequence[float] | Array = 0.0,
) -> CTMState:
    """Plan the path of a consistency trajectory model. Give exactly one of num_steps and sigmas.

    Args:
      config: the model's config.
      num_steps: n steps from sigma_max to sigma_min, equal in σ^(1/ρ).
      sigmas: noise levels to visit, strictly decreasing, in (sigma_min, sigma_max]. May be traced, f32[n]: then they
        are not checked.
      eta: η in [0, 1], the paper's γ: 0 follows the trajectory and adds no noise, 1 jumps to sigma_min and adds noise
        anew, as a consistency model does. A scalar, or one value per step, f[n]. May be traced: then out of range gives
        NaN.

    Returns:
      A state at index 0. The model is called as `model(x_in, t, cond, s=...)`; by hand, with
      `**state.model_options()`.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer.

    Example:
      >>> state = init(CTMConfig(), num_steps=2, eta=[0.6, 0.0])
      >>> [f"{sigma:.4g}" for sigma in state.sigmas], [f"{s:.4g}" for s in state.landings]
      (['80', '2.515', '0.002'], ['2.012', '0.002'])

    References:
      Kim et al. 2023, algorithm 3 (γ-sampling) and equation 5; Karras et al. 2022, equation 5.

    Differs from the paper:
      A jump lands at sigma_min at the lowest, where the network's time 250 ln σ still is finite.
    """
    exactly_one(num_steps=num_steps, sigmas=sigmas)
    right_config(config, CTMConfig)
    _karras.check(config)
    if is_traced(sigmas):
        levels, told = _karras.traced(sigmas)
        path = jnp.append(levels, jnp.float32(config.sigma_min))
    else:
        levels = _levels(config, num_steps, sigmas)
        path, told = np.append(levels, config.sigma_min), schedules.sigma_to_timestep(levels)
    return build(
        CTMState,
        index=0,
        timesteps=told,
        sigmas=path,
        landings=_landings(etas(eta, len(levels)), path[1:], config.sigma_min),
        sigma_data=config.sigma_data,
    )


def _landings(eta: Any, arrivals: Any, sigma_min: float) -> Any:
    """Land at s = √(1 - η²) σ', but at the lowest at sigma_min: f[n]."""
    if is_traced((eta, arrivals)):
        eta, arrivals = f32(eta), f32(arrivals)
        kept = safe_sqrt((1.0 - eta) * (1.0 + eta))
        return jnp.maximum(jnp.where(kept == 1.0, arrivals, kept * arrivals), jnp.float32(sigma_min))
    return np.maximum(np.sqrt((1.0 - eta) * (1.0 + eta)) * arrivals, sigma_min)


def _levels(config: CTMConfig, num_steps: Any, sigmas: Any) -> np.ndarray:
    """The noise levels to visit, f64[n]."""
    lowest, highest = config.sigma_min, config.sigma_max
    if sigmas is None:
        n = count_steps(num_steps, _MOST_STEPS, f"{_MOST_STEPS}")
        return schedules.karras_sigmas(np.arange(n), n + 1, lowest, highest, config.rho)
    levels = _karras.given(config, sigmas)
    if levels[-1] <= np.float32(lowest):
        raise ValueError(f"sigmas must lie above sigma_min = {lowest:g}, where the path ends, got {levels[-1]:.12g}.")
    return levels


Config, State = CTMConfig, CTMState
