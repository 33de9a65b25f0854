"""Euler's method in noise levels (Karras et al. 2022): one straight piece of the probability flow a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmjax.samplers import _levels, _vp
from cmjax.samplers._sigma_state import SigmaState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

__all__ = ["EulerConfig", "EulerState", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerConfig(_vp.VPConfig):
    """The keys of an `EulerDiscreteScheduler`'s `scheduler_config.json`: those of `VPConfig`, and these.

    Attributes:
      interpolation_type: `"linear"`: σ at the timesteps of the spacing; `"log_linear"`: a geometric series over the
        whole table.
      use_karras_sigmas: whether the levels between the first and the last are spread as Karras et al. do.
      use_exponential_sigmas: whether they are a geometric series.
      use_beta_sigmas: whether they are quantiles of a beta distribution. At most one of the three.
      sigma_min: the last level of those three; None for that of the timesteps.
      sigma_max: the first level of those three; None for that of the timesteps.
      timestep_type: `"continuous"` tells a network that predicts v ¼ ln σ in place of a timestep.
      final_sigmas_type: where the path ends: at `"zero"`, or at the least level of the table, `"sigma_min"`.
    """

    scheduler: ClassVar[str] = "EulerDiscreteScheduler"

    timestep_spacing: str = "linspace"
    interpolation_type: str = "linear"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"


class EulerState(SigmaState):
    """The path of Euler's method: that of `SigmaState`."""

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Step to x' = x + (σ' - σ) ε = x0 + σ' ε, f32[B, *S]; no fresh noise."""
        return pred.x0 + self.next(self.sigmas) * pred.eps


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
) -> EulerState:
    """Plan the path of Euler's method. Give exactly one of num_steps, timesteps and sigmas.

    Args:
      config: the model's config; another variance-preserving sampler's is read as Euler's.
      num_steps: n in [1, T], spaced as the config says. 20 to 50 are usual.
      timesteps: strictly decreasing, in [0, T - 1], in place of num_steps; fractions lie between those of the table.
      sigmas: noise levels to visit, strictly decreasing, in place of num_steps. The end of the path is not among them.

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer, an argument is traced, or config is for another kind of model.

    Example:
      >>> config = EulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
      >>> init(dataclasses.replace(config, timestep_spacing="trailing"), num_steps=4).sigmas.round(1)
      Array([14.6,  4.1,  1.6,  0.7,  0. ], dtype=float32)

    References:
      Karras et al. 2022, algorithm 1 without its second order; section 5 of it for the spread of levels.

    Differs from diffusers:
      With `"log_linear"`, the network is told the timesteps of the levels (in diffusers, those of the spacing, which
      have other levels), and the path ends as final_sigmas_type says (in diffusers, always at the least level of the
      table). After `skip`, the prior has the first level that is left. Zero terminal SNR is refused with `"epsilon"`,
      and so are levels that grow. Churn is not there: `euler_ancestral` adds noise.
    """
    config = _vp.as_config(config, EulerConfig)
    times, levels = _levels.ladder(config, num_steps, timesteps, sigmas)
    if config.timestep_type not in ("discrete", "continuous"):
        raise ValueError(f"timestep_type must be discrete or continuous, got {config.timestep_type!r}.")
    if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
        times = 0.25 * np.log(levels[:-1])
    return build(
        EulerState,
        index=0,
        timesteps=times,
        sigmas=levels,
        prediction_type=config.prediction_type,
        counts_data=config.timestep_spacing == "leading",
    )


Config, State = EulerConfig, EulerState
