"""Ancestral sampling in noise levels: Euler's method below the next level, then fresh noise up to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmjax._numerics import f32
from cmjax.samplers import _levels, _vp
from cmjax.samplers._eta import weight
from cmjax.samplers._sigma_state import SigmaState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

__all__ = ["EulerAncestralConfig", "EulerAncestralState", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerAncestralConfig(_vp.VPConfig):
    """The keys of an `EulerAncestralDiscreteScheduler`'s `scheduler_config.json`: those of `VPConfig`."""

    scheduler: ClassVar[str] = "EulerAncestralDiscreteScheduler"

    timestep_spacing: str = "linspace"


class EulerAncestralState(SigmaState):
    """The path of ancestral sampling: that of `SigmaState`, and these.

    Attributes:
      kept: f32[n], or f32[B, n] of one η per image, σ_down, the level that a step lands at.
      fresh: of that shape, σ_up, the weight of fresh noise; σ_down² + σ_up² = σ'². The last is 0.
    """

    kept: Array
    fresh: Array

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Step to x' = x0 + σ_down ε + σ_up z, f32[B, *S]."""
        return pred.x0 + weight(self, self.kept, pred) * pred.eps + weight(self, self.fresh, pred) * f32(z)


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    eta: float | Sequence[float] | Sequence[Sequence[float]] | Array = 1.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
) -> EulerAncestralState:
    """Plan the path of ancestral sampling. Give exactly one of num_steps, timesteps and sigmas.

    Args:
      config: the model's config; another variance-preserving sampler's is read as this one's.
      num_steps: n in [1, T], spaced as the config says. 20 to 50 are usual; SD-Turbo and SDXL-Turbo take 1 to 4, with
        the spacing `"trailing"`.
      eta: η in [0, 1], the share of fresh noise as in DDIM; 0 is Euler's method. A scalar, one value per
        step, f[n], or one per image, f[1, B] or f[n, B], for batches of B. May be traced: then out of range gives NaN.
      timesteps: strictly decreasing, in [0, T - 1], in place of num_steps; fractions lie between those of the table.
      sigmas: noise levels to visit, strictly decreasing, in place of num_steps. The path ends at 0.

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer, a path is traced, or config is for another kind of model.

    Example:
      >>> state = init(EulerAncestralConfig(), sigmas=[10.0, 5.0])
      >>> (state.kept**2 + state.fresh**2).round(1), state.kept
      (Array([25.,  0.], dtype=float32), Array([2.5, 0. ], dtype=float32))

    References:
      Song, Meng & Ermon 2021, equation 16 (η); Karras et al. 2022, section 2 (noise levels). In k-diffusion: Euler a.

    Differs from diffusers:
      Networks that predict x0 (`"sample"`) are taken, and η may be below 1. After `skip`, the prior has the first level
      that is left. Zero terminal SNR is refused with `"epsilon"`.
    """
    config = _vp.as_config(config, EulerAncestralConfig)
    times, levels = _levels.ladder(config, num_steps, timesteps, sigmas)
    kept, fresh = _levels.jump(np.ones_like(levels), levels, eta)
    return build(
        EulerAncestralState,
        index=0,
        timesteps=times,
        sigmas=levels,
        kept=kept,
        fresh=fresh,
        prediction_type=config.prediction_type,
        counts_data=config.timestep_spacing == "leading",
    )


Config, State = EulerAncestralConfig, EulerAncestralState
