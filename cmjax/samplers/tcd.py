"""Trajectory consistency distillation (Zheng et al. 2024): jump below the next level, then add fresh noise up to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like, f32, is_traced, read
from cmjax._struct import static
from cmjax.samplers import _distilled, _vp
from cmjax.samplers._checks import concrete, steps_last
from cmjax.samplers._eta import weight
from cmjax.samplers._network import VPNetwork, network, whole_timesteps
from cmjax.samplers._vp_state import VPState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from cmjax.types import Cond, Key, ModelFn

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


# ---- the function that is trained ------------------------------------------------------------------------------------


class TrajectoryFn(VPNetwork):
    """g(x, t, s): from timestep t of a trajectory to timestep s of it; see `trajectory_fn`."""

    lambdas: Array | None = None
    order: int = static(default=1)

    def __call__(self, x: Array, t: ArrayLike, s: ArrayLike, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Jump from t to s, i32[] or i32[B] each: f[B, *S] for x of f[B, *S]. Exactly x where t = s."""
        t, s = whole_timesteps("t", t, x), whole_timesteps("s", s, x)
        pred = self.predict(x, t, cond, key=key)
        if self.order == 2:
            pred = self._midway(pred, x, t, s, cond, key)
        return self.land(pred, x, t, s).astype(x.dtype)

    def land(self, pred: Prediction, x: Array, t: Array, s: Array) -> Array:
        """x_s = α_s x0 + σ_s ε, f32[B, *S]; where s has the rates of t, x itself."""
        (alpha, sigma), (alpha_s, sigma_s) = self.rates(t), self.rates(s)
        x_s = expand_like(alpha_s, x) * pred.x0 + expand_like(sigma_s, x) * pred.eps
        stays = (alpha == alpha_s) & (sigma == sigma_s)
        return jnp.where(expand_like(stays, x), f32(x), x_s)

    def _midway(self, pred: Prediction, x: Array, t: Array, s: Array, cond: Cond, key: Key | None) -> Prediction:
        """x0 + (x0_u - x0) / 2r with r = (λ_u - λ_t) / (λ_s - λ_t), and the ε that then explains x."""
        assert self.lambdas is not None
        at_t, at_s = read(self.lambdas, t), read(self.lambdas, s)
        u = jnp.argmin(jnp.abs(jnp.subtract.outer((at_t + at_s) / 2.0, self.lambdas)), axis=-1).astype(t.dtype)
        u = jnp.where(u == t, s, u)  # no timestep lies between: the slope is taken at the end, as Heun does
        step = read(self.lambdas, u) - at_t
        share = (at_s - at_t) / jnp.where(step == 0.0, 1.0, 2.0 * step)
        x_u = self.land(pred, x, t, u).astype(x.dtype)
        x0_u = self.predict(x_u, u, cond, key=key).x0
        x0 = pred.x0 + expand_like(share, x) * (x0_u - pred.x0)
        alpha, sigma = (expand_like(rate, x) for rate in self.rates(t))
        return Prediction(x0, (f32(x) - alpha * x0) / sigma)


def trajectory_fn(model: ModelFn, config: _vp.VPConfig, *, order: int = 1) -> TrajectoryFn:
    """Make the trajectory function g of a variance-preserving model: one jump from timestep t to timestep s.

    Order 1 is g(x, t, s) = α_s x0 + σ_s ε, with the model's x0 and ε at t. This is DDIM, so the same function serves as
    the student, its target, and one step of the (guided) teacher. Order 2 calls the model again at a timestep u between
    the two, with λ = ln(α / σ) and h = λ_s - λ_t:

        x_u = α_u x0 + σ_u ε
        g(x, t, s) = (σ_s / σ_t) x - α_s (e^-h - 1) ((1 - 1 / 2r) x0 + (1 / 2r) x0(x_u, u)),  r = (λ_u - λ_t) / h

    Times are indices of the table, so u is the timestep whose λ lies nearest to the middle of λ_t and λ_s (r is then
    near 1/2, and its exact value is used); where there is none between them, u is s and r is 1.

    Args:
      model: a callable pytree `model(x, t, cond)`, perhaps guided; training may pass `key=` for dropout.
      config: a `TCDConfig` (or an `LCMConfig`), which determines the rates and the prediction type.
      order: 1, one call of the model; or 2, two calls.

    Returns:
      g(x, t, s, cond=None, *, key=None) -> x_s, for x and x_s of f[B, *S] in one dtype (arithmetic is in float32), t
      and s of i32[] or i32[B]. Where s = t it is exactly x; outside of the table it is NaN. `g.rates(t)` is the pair
      (α_t, σ_t). It is a pytree of the model's arrays and the tables, f32[T]. If an optimizer should see only the
      model, make g inside the function that is differentiated.

    Raises:
      ValueError: order is neither 1 nor 2, a value of the config is out of range, or order is 2 and the table has a
        timestep without signal or noise, where λ is infinite.
      TypeError: config is for another kind of model.

    Example:
      >>> g = trajectory_fn(lambda x, t, cond: 0.5 * x, TCDConfig())
      >>> x = jnp.ones((2, 3))
      >>> g(x, jnp.array([999, 499]), jnp.array([499, 499]))[:, 0].round(3)
      Array([4.294, 1.   ], dtype=float32)

    References:
      Zheng et al. 2024, section 4.1 (orders 1 and 2, in the exponential-integrator form); Song, Meng & Ermon 2021,
      equation 12 with no noise; Lu et al. 2022 (DPM-Solver++), algorithm 1.

    Differs from diffusers:
      x0 is not clipped or thresholded, whatever the config says.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (one call of the model) or 2 (two calls), got {order!r}.")
    g = network(TrajectoryFn, model, config, order=order)
    if order == 1:
        return g
    alpha, sigma = _vp.rate_tables(config)
    if np.float32(alpha.min()) == 0 or np.float32(sigma.min()) == 0:
        raise ValueError(
            "order = 2 needs signal and noise at every timestep, since it goes by ln(alpha / sigma); the table of this "
            f"config has alpha down to {alpha.min():g} and sigma down to {sigma.min():g}: take order = 1."
        )
    return g.replace(lambdas=f32((np.log(alpha) - np.log(sigma)).astype(np.float32)))


Config, State = TCDConfig, TCDState
