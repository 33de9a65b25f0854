"""Consistency training without a teacher: pull f at two neighbouring noise levels of one trajectory together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, is_traced, refuse_integers
from cmjax.losses.metrics import Metric, pseudo_huber
from cmjax.losses.proposals import Proposal, lognormal

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["consistency_training", "easy_consistency_tuning"]

_IMPROVED = lognormal()


class _ConsistencyFn(Protocol):
    """f(x, σ, cond, key=) -> x0, as `cmjax.consistency_fn` makes it; only with dropout is a key passed."""

    def __call__(self, x: Array, sigma: Array, cond: Cond = None, *, key: Key | None = None) -> Array: ...


def _pair_loss(
    f: _ConsistencyFn,
    f_target: _ConsistencyFn,
    x0: Array,
    t: Array,
    r: Array,
    cond: Cond,
    z_key: Key,
    dropout_key: Key | None,
    metric: Metric,
) -> Array:
    """Compare f(x0 + t z, t) with the frozen f_target(x0 + r z, r): same noise, same dropout."""
    refuse_integers("x0", x0)
    z = jax.random.normal(z_key, x0.shape, jnp.float32)
    at = {} if dropout_key is None else {"key": dropout_key}
    x_t, x_r = (f32(x0) + expand_like(sigma, x0) * z for sigma in (t, r))
    target = jax.lax.stop_gradient(f_target(x_r, r, cond, **at))
    return metric(f(x_t, t, cond, **at), target)


def consistency_training(
    f: _ConsistencyFn,
    f_target: _ConsistencyFn,
    x0: Array,
    key: Key,
    *,
    num_scales: int | Array,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    proposal: Proposal = _IMPROVED,
    metric: Metric = pseudo_huber,
) -> Array:
    """Compute the improved discrete consistency-training loss, one value per example.

    A level σ is proposed; its neighbours r ≤ σ < t on the Karras grid of N points make the pair, and

        loss = d(f(x0 + t z, t), sg f⁻(x0 + r z, r)) / (t - r).

    So interval i is drawn with the proposal's mass between its ends: with `lognormal()` this is the discretized
    lognormal of the paper, for any N, with no table.

    Args:
      f: the consistency function being trained, as `cmjax.consistency_fn` makes it.
      f_target: the one that gives the targets: f itself (θ⁻ = sg θ, the improved recipe) or an average of it.
      x0: f[B, *S], data.
      key: one key; the student and the target get the same noise and the same dropout from it.
      num_scales: i32[], N ≥ 2, the number of levels; may be traced, see `curricula.num_scales`.
      cond: conditioning pytree, or None.
      dropout: whether to hand the networks a `key=` for dropout.
      sigma_min: the least noise of the Karras grid, as in `cm.CMConfig`.
      sigma_max: the most.
      rho: its crowding towards sigma_min.
      proposal: how noise levels are drawn.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: for a concrete `num_scales` below 2.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> f = cmjax.consistency_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> consistency_training(f, f, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), num_scales=11).shape
      (4,)

    References:
      Song et al. 2023, algorithm 3; Song & Dhariwal 2023, equations 6 to 10.
    """
    if not is_traced(num_scales) and num_scales < 2:
        raise ValueError(f"num_scales must be at least 2 (a pair of noise levels), got {num_scales}.")
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    sigma = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)

    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    intervals = f32(num_scales) - 1.0
    i = jnp.floor((sigma ** (1 / rho) - low) / (high - low) * intervals)
    i = jnp.clip(i, 0.0, intervals - 1.0)
    r, t = ((low + j / intervals * (high - low)) ** rho for j in (i, i + 1.0))
    r = jnp.where(i == 0.0, sigma_min, r)  # exactly, so that there f⁻ is the identity

    distance = _pair_loss(f, f_target, x0, t, r, cond, z_key, dropout_key if dropout else None, metric)
    return distance / (t - r)


def easy_consistency_tuning(
    f: _ConsistencyFn,
    f_target: _ConsistencyFn,
    x0: Array,
    key: Key,
    *,
    gap: float | Array,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    proposal: Proposal = _IMPROVED,
    metric: Metric = pseudo_huber,
) -> Array:
    """Compute the loss of easy consistency tuning, one value per example.

    Levels are continuous. A pair is t, drawn from the proposal, and r = t (1 - gap · (1 + k σ(-t))), at least
    sigma_min, with k = 8 and the logistic function σ:

        loss = √(t² + σ_d²) / (t σ_d) · d(f(x0 + t z, t), sg f⁻(x0 + r z, r)).

    With gap 1 every r is sigma_min, where f⁻ is the identity: plain denoising, and f⁻ is then not computed. So one loss
    goes all the way from a diffusion model to a consistency model as the gap shrinks (`curricula.gap`).

    Args:
      f: the consistency function being trained, as `cmjax.consistency_fn` makes it.
      f_target: the one that gives the targets, as a rule f itself.
      x0: f[B, *S], data.
      key: one key; the student and the target get the same noise and the same dropout from it.
      gap: f32[] in (0, 1]; may be traced.
      cond: conditioning pytree, or None.
      dropout: whether to hand the networks a `key=` for dropout.
      sigma_min: the least noise, as in `cm.CMConfig`.
      sigma_max: the most.
      sigma_data: the standard deviation of the data that the preconditioning assumes.
      proposal: how noise levels are drawn.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: for a concrete gap outside (0, 1].

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> f = cmjax.consistency_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> easy_consistency_tuning(f, f, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), gap=0.5).shape
      (4,)

    References:
      Geng et al. 2024, algorithm 1 and equation 14 (mapping from t to r).

    Differs from the paper:
      The weight is the root of the denoising weight of Karras et al. 2022 (table 1), since the metric is, like
      `pseudo_huber`, a length rather than its square; and r stops at sigma_min instead of 0.
    """
    if not (is_traced(gap) or 0.0 < gap <= 1.0):
        raise ValueError(f"gap must lie in (0, 1], got {gap}. (1 is plain denoising.)")
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    t = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)
    r = jnp.maximum(t * (1.0 - gap * (1.0 + 8.0 * jax.nn.sigmoid(-t))), sigma_min)

    def target(x: Array, sigma: Array, cond: Cond = None, *, key: Key | None = None) -> Array:
        at = {} if key is None else {"key": key}
        return jax.lax.cond(
            jnp.all(sigma <= sigma_min),
            lambda x, sigma, cond: x,
            lambda x, sigma, cond: jax.lax.stop_gradient(f_target(x, sigma, cond, **at)),
            x, sigma, cond,
        )  # fmt: skip

    distance = _pair_loss(f, target, x0, t, r, cond, z_key, dropout_key if dropout else None, metric)
    return distance * jnp.sqrt(t**2 + sigma_data**2) / (t * sigma_data)
