"""Consistency models (Song et al. 2023): jump from a noise level to clean data, add less noise, jump again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import f32, is_traced, safe_sqrt
from cmjax._struct import static
from cmjax.parameterization import c_out, c_skip
from cmjax.samplers import _karras
from cmjax.samplers._checks import (
    concrete,
    exactly_one,
    fraction,
    last_part,
    right_config,
)
from cmjax.samplers.base import Prediction, SamplerConfig, build
from cmjax.types import Array

__all__ = ["CMConfig", "CMState", "init"]

_DENOISER_STEPS = "denoiser_steps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMConfig(SamplerConfig):
    """The keys of a `CMStochasticIterativeScheduler`'s `scheduler_config.json`.

    Attributes:
      num_train_timesteps: N, the size of the Karras grid: 40 for distilled models, 201 or 151 for models trained alone.
      sigma_min: the noise level at which a picture counts as clean; f(x, sigma_min) = x.
      sigma_max: the noise level of the prior.
      sigma_data: the standard deviation of the data that the preconditioning assumes.
      s_noise: the scale of the noise added between steps; 1 in the paper.
      rho: how strongly the grid crowds towards sigma_min.
      clip_denoised: whether x0 is clipped to [-1, 1].

    A file may have one more key, `denoiser_steps`. The network is then not a consistency model but a denoiser, such as
    a teacher, which draws a picture in so many steps along the probability-flow ODE. diffusers does not know this key.
    """

    scheduler: ClassVar[str] = "CMStochasticIterativeScheduler"

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    s_noise: float = 1.0
    rho: float = 7.0
    clip_denoised: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.denoiser_steps
        if steps is not None and (type(steps) is not int or steps < 1):
            raise TypeError(f"{_DENOISER_STEPS} must be a whole number of at least 1, got {steps!r:.40}.")

    @property
    def denoiser_steps(self) -> int | None:
        """The number of steps of a denoiser; None for a consistency model."""
        return dict(self.extra).get(_DENOISER_STEPS)

    def of_denoiser(self, num_steps: int) -> CMConfig:
        """Copy the config for a denoiser with this number of steps."""
        return dataclasses.replace(self, extra=(*self.of_consistency_model().extra, (_DENOISER_STEPS, num_steps)))

    def of_consistency_model(self) -> CMConfig:
        """Copy the config for a consistency model."""
        return dataclasses.replace(self, extra=tuple(item for item in self.extra if item[0] != _DENOISER_STEPS))


class CMState(_karras.KarrasState):
    """The path of a consistency model; alpha is 1, so x = x0 + sigma eps.

    Attributes:
      s_noise: f32[].
      clip_denoised: whether x0 is clipped to [-1, 1].
    """

    s_noise: Array
    clip_denoised: bool = static()

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """x0 = c_skip(σ) x + c_out(σ) F, clipped; ε = (x - x0) / σ. Each f32[B, *S]."""
        model_out, x = f32(model_out), f32(x)
        sigma, sigma_min = self.now(self.sigmas), self.sigmas[-1]
        x0 = c_skip(sigma, self.sigma_data, sigma_min) * x + c_out(sigma, self.sigma_data, sigma_min) * model_out
        if self.clip_denoised:
            x0 = jnp.clip(x0, -1.0, 1.0)
        return Prediction(x0, (x - x0) / sigma)

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Add noise, x' = x0 + s_noise √(σ'² - σ_min²) z, f32[B, *S]. At the end σ' = σ_min: exactly none."""
        sigma, sigma_min = self.next(self.sigmas), self.sigmas[-1]
        std = safe_sqrt((sigma - sigma_min) * (sigma + sigma_min))  # σ² - σ_min² would cancel to less than 0
        return pred.x0 + self.s_noise * std * f32(z)


def init(
    config: CMConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | np.ndarray | Array | None = None,
    s_noise: float | Array | None = None,
    strength: float = 1.0,
) -> CMState:
    """Plan the path of a consistency model. Give exactly one of num_steps, timesteps and sigmas.

    Args:
      config: the model's config.
      num_steps: n in [1, N]; every ⌊N / n⌋-th point of the grid, from the noisiest.
      timesteps: grid indices, strictly decreasing, in [0, N - 1]. Index 0 is sigma_max and is written last: `[22, 0]`
        visits sigma 80, then 1.38. Fractions are between grid points.
      sigmas: noise levels to visit, strictly decreasing, in [sigma_min, sigma_max]. May be traced, f32[n]: then
        they are not checked.
      s_noise: replaces the config's. May be traced.
      strength: in (0, 1], for image-to-image. With num_steps, it keeps the clean end of the grid, ⌊N · strength⌋
        points, and still takes n steps. With timesteps or sigmas, it keeps the last ⌊n · strength⌋ of them. (`skip`
        drops the first steps of a path.)

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument is out of range, or not exactly one of the three is given.
      TypeError: num_steps is not an integer, or timesteps are traced.

    Example:
      >>> [f"{sigma:.4g}" for sigma in init(CMConfig(), timesteps=[22, 0]).sigmas]
      ['80', '1.382', '0.002']

    References:
      Song et al. 2023, algorithm 1 and appendix C; Karras et al. 2022, equation 5.

    Differs from diffusers:
      The prior of `timesteps=[22]` has the sigma of that level (in diffusers, it stays sigma_max). Fractional timesteps
      are not truncated. Sigmas may be given. The last step adds no noise at all, whatever sigma_min is.
    """
    exactly_one(num_steps=num_steps, timesteps=timesteps, sigmas=sigmas)
    _check(config)
    strength = fraction("strength", strength)
    s_noise = config.s_noise if s_noise is None else s_noise
    if np.shape(s_noise) or not (is_traced(s_noise) or concrete("s_noise", s_noise) >= 0):
        raise ValueError(f"s_noise must be one number, not negative, got {s_noise}.")
    if is_traced(sigmas):
        levels, told = (last_part(table, strength, "sigmas") for table in _karras.traced(sigmas))
        path = jnp.append(levels, jnp.float32(config.sigma_min))
    else:
        levels = _karras.path(config, num_steps, timesteps, sigmas, strength)
        path, told = np.append(levels, config.sigma_min), schedules.sigma_to_timestep(levels)
    return build(
        CMState,
        index=0,
        timesteps=told,
        sigmas=path,
        sigma_data=config.sigma_data,
        s_noise=s_noise,
        clip_denoised=config.clip_denoised,
    )


def _check(config: CMConfig) -> None:
    right_config(config, CMConfig)
    if config.denoiser_steps is not None:
        raise ValueError(
            "config is of a denoiser, which no consistency sampler can jump with: walk, "
            "cmjax.ode.solve(step, cmjax.denoiser_fn(model, config), sigmas, x)."
        )
    if not config.num_train_timesteps >= 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {config.num_train_timesteps}.")
    _karras.check(config)


Config, State = CMConfig, CMState
