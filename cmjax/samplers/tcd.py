"""Trajectory consistency distillation (Zheng et al. 2024): jump below the next level, then add fresh noise up to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import f32, is_traced, read
from cmjax.samplers import _distilled, _vp
from cmjax.samplers._checks import concrete, steps_last
from cmjax.samplers._eta import weight
from cmjax.samplers._trajectory import TrajectoryFn, trajectory_fn
from cmjax.samplers._vp_state import VPState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

__all__ = ["TCDConfig", "TCDState", "TrajectoryFn", "init", "trajectory_fn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TCDConfig(_distilled.DistilledConfig):
    """The keys of a `TCDScheduler`'s `scheduler_config.json`: those of `DistilledConfig`.

    Differs from diffusers:
      `clip_sample`, `thresholding` and their numbers have the documented effect; diffusers' TCD ignores them.
    """

    scheduler: ClassVar[str] = "TCDScheduler"


class TCDState(VPState):
    """The path of TCD. Each step lands at s, at or below the next timestep p, and is then noised to p.

    With one eta per image, the tables that depend on eta have a row for each image, [B, n]: steps are the last axis.

    Attributes:
      landings: i32[n] or i32[B, n], s for each step. They hold eta: to sweep it, `vmap` over `init`, or call it again.
      alphas: f32[n], α at the timesteps.
      sigmas: f32[n], σ at the timesteps.
      landing_alphas: f32[n] or f32[B, n], α at the landings.
      landing_sigmas: f32[n] or f32[B, n], σ at the landings.
      kept: f32[n] or f32[B, n], r = α_p / α_s, the weight of the landing at the next timestep p. The last p is 0.
      fresh: f32[n] or f32[B, n], √(1 - r²), the weight of fresh noise; exactly 0 where s = p.
    """

    landings: Array
    landing_alphas: Array
    landing_sigmas: Array
    kept: Array
    fresh: Array

    def land(self, pred: Prediction) -> Array:
        """x_s = α_s x0 + σ_s ε: the sample at the landing time, before fresh noise. f32[B, *S]."""
        return weight(self, self.landing_alphas, pred) * pred.x0 + weight(self, self.landing_sigmas, pred) * pred.eps

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """x_p = r x_s + √(1 - r²) z with r = α_p / α_s, f32[B, *S]."""
        return weight(self, self.kept, pred) * self.land(pred) + weight(self, self.fresh, pred) * f32(z)


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    eta: float | Sequence[float] | Sequence[Sequence[float]] | Array = schedules.DEFAULT_ETA,
    timesteps: Sequence[int] | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
) -> TCDState:
    """Plan the path of TCD. Give exactly one of num_steps and timesteps.

    Args:
      config: the model's config; another variance-preserving sampler's is read as TCD's.
      num_steps: n points, evenly spread over the grid that the model was distilled on.
      eta: η in [0, 1], the paper's γ: 0 is deterministic (DDIM), 1 lands at timestep 0 before it adds noise again. A
        scalar, or one value per step, f[n]; or one per image, f[1, B], or per step and image, f[n, B], and then the
        path is for batches of B images. May be traced: then out of range gives NaN. The landing s = ⌊(1 - η) p⌋ is
        exact for the number you pass: float32(0.3) is not 0.3, and may land one index away.
      timesteps: strictly decreasing integers in [0, T - 1], in place of num_steps.
      original_inference_steps: O, the size of the grid, in place of the config's; T gives every timestep.
      strength: in (0, 1]. With num_steps, it keeps the clean end of the grid and still takes n steps. With timesteps,
        it keeps the last ⌊n · strength⌋ of them. The product is of binary floats, as in diffusers: 0.58 of 50 is 28.
        (`skip` instead drops the first steps of a path.)

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer, or timesteps are traced.

    Example:
      >>> state = init(TCDConfig(), num_steps=4, eta=0.3)
      >>> state.timesteps, state.landings
      (Array([999, 759, 499, 259], dtype=int32), Array([531, 349, 181,   0], dtype=int32))

      One eta for each of three images:

      >>> init(TCDConfig(), num_steps=4, eta=[[0.0, 0.3, 1.0]]).landings
      Array([[759, 499, 259,   0],
             [531, 349, 181,   0],
             [  0,   0,   0,   0]], dtype=int32)

    References:
      Zheng et al. 2024, algorithm 4; Kim et al. 2023, algorithm 3 (γ-sampling, the same idea in noise levels).

    Differs from diffusers:
      An original_inference_steps passed here makes the documented grid; the reference then uses every timestep,
      whatever the number. Negative timesteps and a strength above 1 are refused.
    """
    config = _vp.as_config(config, TCDConfig)
    alpha, sigma = _vp.rate_tables(config)
    path = _distilled.path(config, num_steps, timesteps, original_inference_steps, strength)
    _vp.check_noisy(path, sigma)
    arrivals = np.append(path[1:], 0).astype(np.int32)
    landings = _landings(eta, arrivals)
    arrivals = np.broadcast_to(arrivals, landings.shape)
    alpha_s, sigma_s, kept, fresh = _jump(alpha, sigma, landings, arrivals)
    return build(
        TCDState,
        index=0,
        timesteps=path,
        landings=landings,
        alphas=alpha[path],
        sigmas=sigma[path],
        landing_alphas=alpha_s,
        landing_sigmas=sigma_s,
        kept=kept,
        fresh=fresh,
        prediction_type=config.prediction_type,
        bound=_vp.bound(config),
    )


def _landings(eta: Any, arrivals: np.ndarray) -> Any:
    """Land at s = ⌊(1 - η) p⌋, i32[n] or i32[B, n]; for a traced η out of range at -1, which reads as NaN."""
    eta = jnp.asarray(eta) if is_traced(eta) else concrete("eta", eta)
    n = len(arrivals)
    eta = steps_last(eta, n)
    arrivals = arrivals.reshape((1,) * (eta.ndim - 1) + (n,))
    in_range = (eta >= 0) & (eta <= 1)
    if is_traced(eta):
        eta = eta if eta.dtype == jnp.float64 else f32(eta)
        return jnp.where(in_range, schedules.landing(eta, arrivals, jnp), -1)
    if not in_range.all():
        raise ValueError(f"eta must lie in [0, 1], got {eta}. (The TCD paper calls it gamma.)")
    return schedules.landing(eta, arrivals)


def _jump(alpha: Any, sigma: Any, landings: Any, arrivals: Any) -> tuple[Any, Any, Any, Any]:
    """Compute the rates at s, the weight of x_s at p, r = α_p / α_s, and the weight of fresh noise, √(1 - r²)."""
    xp, look = np, np.take
    if is_traced(landings):  # in float32 then, and a landing of -1 reads as NaN
        xp, look, alpha, sigma = jnp, read, f32(alpha), f32(sigma)
    alpha_s, sigma_s, sigma_p = look(alpha, landings), look(sigma, landings), look(sigma, arrivals)
    r = look(alpha, arrivals) / alpha_s
    fresh = xp.sqrt(xp.maximum((sigma_p - r * sigma_s) * (sigma_p + r * sigma_s), 0.0))  # has all digits where r ≈ 1
    is_there = landings == arrivals  # no rounding may add noise then: the last step is such a one
    return alpha_s, sigma_s, xp.where(is_there, 1.0, r), xp.where(is_there, 0.0, fresh)


Config, State = TCDConfig, TCDState
