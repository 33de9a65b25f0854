"""Latent consistency models (Luo et al. 2023): jump to clean data, noise it to the next timestep, jump again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmjax import schedules
from cmjax._numerics import f32
from cmjax._struct import static
from cmjax.parameterization import x0_eps
from cmjax.samplers import _vp
from cmjax.samplers.base import Prediction, SamplerState, build
from cmjax.types import Array

__all__ = ["LCMConfig", "LCMState", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LCMConfig(_vp.VPConfig):
    """The keys of an `LCMScheduler`'s `scheduler_config.json`: those of `VPConfig`."""

    scheduler: ClassVar[str] = "LCMScheduler"


class LCMState(SamplerState):
    """The path of LCM.

    Attributes:
      alphas, sigmas: f32[n + 1], the rates at the timesteps, then (1, 0): the path ends at clean data.
      c_skip, c_out: f32[n], the boundary scalings at the timesteps.
      prediction_type: what the network says.
      bound: how x0 is kept in range.
    """

    alphas: Array
    sigmas: Array
    c_skip: Array
    c_out: Array
    prediction_type: str = static()
    bound: _vp.Bound = static(default=_vp.Bound())

    def rates(self) -> tuple[Array, Array]:
        """(α_t, σ_t), f32[] each."""
        return self.now(self.alphas), self.now(self.sigmas)

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """c_skip(t) x + c_out(t) x0 (the reference's `denoised`; x0 is bounded first) and ε, f32[B, *S] each."""
        x0, eps = x0_eps(self.prediction_type, f32(model_out), f32(x), *self.rates())
        return Prediction(self.now(self.c_skip) * f32(x) + self.now(self.c_out) * self.bound(x0), eps)

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """x_p = α_p x0 + σ_p z, f32[B, *S]. At the end (α_p, σ_p) = (1, 0)."""
        return self.next(self.alphas) * pred.x0 + self.next(self.sigmas) * f32(z)


def init(
    config: LCMConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
) -> LCMState:
    """Plan the path of LCM. Give exactly one of num_steps and timesteps.

    Args:
      config: the model's numbers.
      num_steps: n; that many points, evenly spread over the grid that the model was distilled on.
      timesteps: in place of num_steps: strictly decreasing integers in [0, T - 1].
      original_inference_steps: O, the size of the grid, in place of the config's; T gives every timestep.
      strength: in (0, 1]; keeps the clean end of the grid, and still takes n steps. Of a path given by timesteps, it
        keeps the last ⌊n · strength⌋. (`skip` instead drops the first steps of a path.)

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a number of the config is out of its range.
      TypeError: num_steps is not an integer, or timesteps are traced.

    Example:
      >>> init(LCMConfig(), num_steps=4, original_inference_steps=30).timesteps
      Array([989, 758, 494, 263], dtype=int32)

    References:
      Luo et al. 2023, algorithm 3 and equation 8.

    Differs from diffusers:
      Negative timesteps and a strength above 1 are refused. The last step never adds noise (there it does after
      `timesteps` with a strength below 1).
    """
    alpha, sigma = _vp.rate_tables(config)
    path = _vp.path(config, num_steps, timesteps, original_inference_steps, strength)
    _vp.check_noisy(path, sigma)
    c_skip, c_out = schedules.boundary_scalings(path, config.timestep_scaling)
    return build(
        LCMState,
        index=0,
        timesteps=path,
        alphas=np.append(alpha[path], 1.0),
        sigmas=np.append(sigma[path], 0.0),
        c_skip=c_skip,
        c_out=c_out,
        prediction_type=config.prediction_type,
        bound=_vp.bound(config),
    )


Config, State = LCMConfig, LCMState
