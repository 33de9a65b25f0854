"""Heun's method in noise levels (Karras et al. 2022): Euler's step, corrected by the slope where it lands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmjax.samplers import _levels, _vp
from cmjax.samplers._sigma_state import SigmaState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

__all__ = ["HeunConfig", "HeunState", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunConfig(_vp.VPConfig):
    """The keys of a `HeunDiscreteScheduler`'s `scheduler_config.json`: those of `VPConfig`, and these.

    Attributes:
      clip_sample: whether x0 is clipped to ± clip_sample_range.
      clip_sample_range: the limit of clip_sample.
      use_karras_sigmas: whether the levels between the first and the last are spread as Karras et al. do.
      use_exponential_sigmas: whether they are a geometric series.
      use_beta_sigmas: whether they are quantiles of a beta distribution. At most one of the three.
    """

    scheduler: ClassVar[str] = "HeunDiscreteScheduler"

    beta_start: float = 0.00085
    beta_end: float = 0.012
    timestep_spacing: str = "linspace"
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False


class HeunState(SigmaState):
    """The path of Heun's method: that of `SigmaState`. It remembers ε, the slope.

    Its steps are model calls. Those of even index are Euler's steps to the next level; those of odd index stay there,
    and correct the step before. So the n levels of `init` are 2 n - 1 steps, and all but the first are listed twice.

    Attributes:
      bend: f32[2 n - 1], half of the step before, (σ' - σ) / 2, where a step corrects; 0 elsewhere, and where the step
        before came from noise alone.
    """

    bend: Array

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Step to x' = x0 + σ' ε, and where it corrects + (σ' - σ) (ε - ε of the step before) / 2, f32[B, *S]."""
        return pred.x0 + self.next(self.sigmas) * pred.eps + self.now(self.bend) * self.since(pred)

    def remembered(self, pred: Prediction) -> Array:
        """ε, f32[B, *S]."""
        return pred.eps


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
) -> HeunState:
    """Plan the path of Heun's method. Give exactly one of num_steps, timesteps and sigmas.

    Args:
      config: the model's config; another variance-preserving sampler's is read as Heun's.
      num_steps: n in [1, T] levels, spaced as the config says: a path of 2 n - 1 model calls. 10 to 25 are usual.
      timesteps: strictly decreasing, in [0, T - 1], in place of num_steps; fractions lie between those of the table.
      sigmas: noise levels to visit, strictly decreasing, in place of num_steps. The path ends at 0.

    Returns:
      A state at index 0, whose num_steps is 2 n - 1. A step from noise alone (zero terminal SNR) is not corrected.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer, an argument is traced, or config is for another kind of model.

    Example:
      >>> init(HeunConfig(), sigmas=[10.0, 5.0]).sigmas
      Array([10.,  5.,  5.,  0.], dtype=float32)

    References:
      Karras et al. 2022, algorithm 1 with no churn.

    Differs from diffusers:
      The betas `"exp"` are refused. A zero terminal SNR is honoured (diffusers' Heun ignores the key). After `skip`,
      the prior has the first level that is left, and a path that begins with a correction leaves x as it is there.
    """
    config = _vp.as_config(config, HeunConfig)
    times, levels = _levels.ladder(config, num_steps, timesteps, sigmas)
    bend = np.zeros(2 * len(times) - 1)
    bend[1::2] = np.diff(levels[:-1]) / 2
    if config.rescale_betas_zero_snr and times[0] == config.num_train_timesteps - 1:
        bend[1:2] = 0.0  # half of an endless step, times a difference of two slopes
    return build(
        HeunState,
        index=0,
        timesteps=np.repeat(times, 2)[1:],
        sigmas=np.append(np.repeat(levels[:-1], 2)[1:], levels[-1]),
        bend=bend,
        prediction_type=config.prediction_type,
        counts_data=config.timestep_spacing == "leading",
        bound=_vp.bound(config),
    )


Config, State = HeunConfig, HeunState
