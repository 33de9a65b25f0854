"""The jump of a variance-preserving network from one timestep to another, the function that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import expand_like, f32, read
from cmjax._struct import static
from cmjax.samplers import _vp
from cmjax.samplers._network import VPNetwork, network, whole_timesteps
from cmjax.samplers.base import Prediction
from cmjax.types import Array

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from cmjax.types import Cond, Key, ModelFn

__all__ = ["TrajectoryFn", "trajectory_fn"]


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
      >>> import cmjax
      >>> g = trajectory_fn(lambda x, t, cond: 0.5 * x, cmjax.tcd.TCDConfig())
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
