"""DPM-Solver++ (Lu et al. 2022), 2M and its SDE form: DDIM's step, bent by the change of x0 since the step before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmjax._numerics import f32
from cmjax.parameterization import x0_eps
from cmjax.samplers import _levels, _vp
from cmjax.samplers._vp_state import VPState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

__all__ = ["DPMPPConfig", "DPMPPState", "init"]

_KNOWN = {
    "algorithm_type": ("sde-dpmsolver++", "dpmsolver++"),
    "solver_order": (1, 2),
    "solver_type": ("heun", "midpoint"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMPPConfig(_vp.VPConfig):
    """The keys of a `DPMSolverMultistepScheduler`'s `scheduler_config.json`: those of `VPConfig`, and these.

    Attributes:
      algorithm_type: `"dpmsolver++"`, deterministic, or `"sde-dpmsolver++"`, with fresh noise at each step.
      solver_order: 1 (DDIM, or with fresh noise DDPM) or 2 (2M).
      solver_type: how order 2 weights the change of x0: `"midpoint"` or `"heun"`.
      lower_order_final: whether the last of fewer than 15 steps is of order 1.
      euler_at_final: whether the last step is of order 1. It always is where the path ends at zero.
      thresholding: whether x0 is bounded by its own quantile, image by image.
      dynamic_thresholding_ratio: that quantile.
      sample_max_value: the largest bound that thresholding may choose.
      use_karras_sigmas: whether levels are spread over the whole table as Karras et al. do. At most one of these four.
      use_exponential_sigmas: whether they are a geometric series.
      use_beta_sigmas: whether they are quantiles of a beta distribution.
      use_lu_lambdas: whether they are evenly spread in ln(α / σ): a geometric series too.
      use_flow_sigmas: for flow models, which are refused.
      final_sigmas_type: where the path ends: at `"zero"`, or at the least level of the table, `"sigma_min"`.

    A file's `lambda_min_clipped` is kept in `extra`, since it may be infinite: the least ln(α / σ) of a path.
    """

    scheduler: ClassVar[str] = "DPMSolverMultistepScheduler"

    timestep_spacing: str = "linspace"
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    use_flow_sigmas: bool | None = False
    final_sigmas_type: str = "zero"


class DPMPPState(VPState):
    """The path of DPM-Solver++; it remembers x0.

    Attributes:
      alphas: f32[n + 1], α at the steps, then where the path ends.
      sigmas: f32[n + 1], σ there.
      kept: f32[n], the weight of ε at the next level: σ', or with fresh noise σ' e^-h.
      fresh: f32[n], the weight of fresh noise, σ' √(1 - e^-2h), or 0.
      bend: f32[n], the weight of the change of x0 since the step before; 0 where a step is of order 1.
    """

    kept: Array
    fresh: Array
    bend: Array

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """Compute x0 (bounded) and the ε that then explains x, f32[B, *S] each."""
        (alpha, sigma), x = self.rates(), f32(x)
        x0, eps = x0_eps(self.prediction_type, f32(model_out), x, alpha, sigma)
        if self.bound == _vp.Bound():
            return Prediction(x0, eps)
        x0 = self.bound(x0)
        return Prediction(x0, (x - alpha * x0) / sigma)

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Step to x' = α' x0 + kept ε + fresh z + bend (x0 - x0 of the step before), f32[B, *S]."""
        x = self.next(self.alphas) * pred.x0 + self.now(self.kept) * pred.eps + self.now(self.fresh) * f32(z)
        return x + self.now(self.bend) * self.since(pred)

    def remembered(self, pred: Prediction) -> Array:
        """x0, f32[B, *S]."""
        return pred.x0


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[int] | None = None,
) -> DPMPPState:
    """Plan the path of DPM-Solver++. Give exactly one of num_steps and timesteps.

    With h = ln(α' / σ') - ln(α / σ), h₀ the step before, and D = (x0 - x0 of the step before) h / h₀:

        2M: x' = (σ' / σ) x + α' (1 - e^-h) (x0 + D / 2)
        SDE: x' = (σ' / σ) e^-h x + α' (1 - e^-2h) (x0 + D / 2) + σ' √(1 - e^-2h) z

    Args:
      config: the model's config; another variance-preserving sampler's is read as this one's.
      num_steps: n in [1, T], spaced as the config says. 15 to 25 are usual.
      timesteps: strictly decreasing integers in [0, T - 1], in place of num_steps.

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range, or the config asks for another algorithm.
      TypeError: num_steps is not an integer, timesteps are traced, or config is for another kind of model.

    Example:
      >>> state = init(DPMPPConfig(), num_steps=4)
      >>> state.timesteps, bool(state.bend[0] == 0.0), bool(state.bend[3] == 0.0)
      (Array([999, 749, 500, 250], dtype=int32), True, True)

    References:
      Lu et al. 2022 (DPM-Solver++), algorithm 2 (2M), and appendix A (SDE).

    Differs from diffusers:
      Timesteps between those of the table are rounded to the nearest (in diffusers, cut off for exponential and beta
      sigmas and for cosine betas). The last step adds no noise, also where the path does not end at zero. The other
      algorithms, order 3 and flow models are refused, and so are levels that grow, and zero terminal SNR with
      `"epsilon"`.
    """
    config = _vp.as_config(config, DPMPPConfig)
    _check(config)
    path, ratios = _levels.table_ladder(config, num_steps, timesteps)
    alphas = 1 / np.sqrt(ratios**2 + 1)
    sigmas = ratios * alphas
    noisy = config.algorithm_type == "sde-dpmsolver++"
    kept, fresh = _levels.jump(alphas, sigmas, 1.0 if noisy else 0.0)
    return build(
        DPMPPState,
        index=0,
        timesteps=path,
        alphas=alphas,
        sigmas=sigmas,
        kept=kept,
        fresh=fresh,
        bend=_bend(config, ratios, alphas),
        prediction_type=config.prediction_type,
        bound=_vp.bound(config),
    )


def _bend(config: DPMPPConfig, ratios: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """The weight of the change of x0 at each step, f64[n]: half of the rest's, or the integral of a line."""
    n, power = len(ratios) - 1, 2 if config.algorithm_type == "sde-dpmsolver++" else 1
    bend = np.zeros(n)
    if config.solver_order == 1:
        return bend
    with np.errstate(divide="ignore"):
        steps = -np.diff(np.log(ratios))  # h; infinite where the path ends at zero
    is_last_lower = config.euler_at_final or ratios[-1] == 0 or (config.lower_order_final and n < 15)
    for k in range(1, n - 1 if is_last_lower else n):
        h, before = steps[k], steps[k - 1]
        if h > 0 and before > 0:
            rest = -np.expm1(-power * h)
            half = rest / 2 if config.solver_type == "midpoint" else 1 - rest / (power * h)
            bend[k] = alphas[k + 1] * half * h / before
    return bend


def _check(config: DPMPPConfig) -> None:
    for name, known in _KNOWN.items():
        if (got := getattr(config, name)) not in known:
            remedy = f"dataclasses.replace(config, {name}={known[-1]!r})"
            raise ValueError(f"{name} must be {' or '.join(map(str, known))}, got {got!r}: {remedy}.")
    if config.use_flow_sigmas:
        raise ValueError("use_flow_sigmas is for flow models, but this sampler walks variance-preserving ones.")


Config, State = DPMPPConfig, DPMPPState
