"""Consistency training without a teacher: pull f at two neighbouring noise levels of one trajectory together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from cmjax._numerics import floating, is_traced
from cmjax.losses._functions import X0Fn
from cmjax.losses._pairs import compare, dropout_option, neighbours, noised
from cmjax.losses.metrics import Metric, pseudo_huber
from cmjax.losses.proposals import Proposal, lognormal
from cmjax.losses.weightings import Weighting, edm, inverse_gap

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["consistency_training", "easy_consistency_tuning"]

_IMPROVED = lognormal()
_ROOT_EDM = edm(power=0.5)


def consistency_training(
    f: X0Fn,
    f_target: X0Fn,
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
    weighting: Weighting = inverse_gap,
    metric: Metric = pseudo_huber,
) -> Array:
    """Compute the discrete consistency-training loss, one value per example.

    A level σ is proposed; its neighbours r ≤ σ < t on the Karras grid of N points make the pair, and

        loss = w(t, r) d(f(x0 + t z, t), sg f⁻(x0 + r z, r)).

    Interval i is thus drawn with the proposal's mass between its ends. With `lognormal()` this is the discretized
    lognormal of improved consistency training, for any N and without a table. The defaults are those of the improved
    recipe. The first recipe has `proposal=karras()` (all intervals equally often), `weighting=uniform` and `metric=l2`,
    with an average of f as f_target.

    Args:
      f: the consistency function being trained, as `cmjax.consistency_fn` makes it.
      f_target: the function that computes the targets: f itself (θ⁻ = sg θ, the improved recipe) or an average of it.
      x0: f[B, *S], data.
      key: one key; student and target get the same noise and the same dropout.
      num_scales: i32[], N ≥ 2, the number of levels; may be traced, see `curricula.num_scales`.
      cond: conditioning pytree, or None.
      dropout: whether to pass the networks a `key=` for dropout.
      sigma_min: the smallest noise of the Karras grid, as in `cm.CMConfig`.
      sigma_max: the largest noise.
      rho: how strongly the grid crowds towards sigma_min.
      proposal: how noise levels are drawn.
      weighting: (t, r) -> f32[B].
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: num_scales is concrete and below 2.
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> f = cmjax.consistency_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> consistency_training(f, f, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), num_scales=11).shape
      (4,)

    References:
      Song et al. 2023, algorithm 3; Song & Dhariwal 2023, equations 6 to 10.
    """
    x0 = floating("x0", x0)
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    sigma = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)
    t, r = neighbours(sigma, num_scales, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    x_t, x_r = noised(x0, (t, r), z_key)
    distance = compare(f, (x_t, t), f_target, (x_r, r), cond, metric, **dropout_option(dropout_key, dropout))
    return weighting(t, r) * distance


def easy_consistency_tuning(
    f: X0Fn,
    f_target: X0Fn,
    x0: Array,
    key: Key,
    *,
    gap: float | Array,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    proposal: Proposal = _IMPROVED,
    weighting: Weighting = _ROOT_EDM,
    metric: Metric = pseudo_huber,
) -> Array:
    """Compute the loss of easy consistency tuning, one value per example.

    Levels are continuous. A pair is t, drawn from the proposal, and r = t (1 - gap · (1 + k σ(-t))), at least
    sigma_min, with k = 8 and the logistic function σ:

        loss = w(t, r) d(f(x0 + t z, t), sg f⁻(x0 + r z, r)).

    With gap 1 every r is sigma_min, where f⁻ is the identity: the loss is plain denoising, and f⁻ is not computed. As
    the gap shrinks (`curricula.gap`), one loss thus leads from a diffusion model to a consistency model.

    Args:
      f: the consistency function being trained, as `cmjax.consistency_fn` makes it.
      f_target: the function that computes the targets, usually f itself.
      x0: f[B, *S], data.
      key: one key; student and target get the same noise and the same dropout.
      gap: f32[] in (0, 1]; may be traced.
      cond: conditioning pytree, or None.
      dropout: whether to pass the networks a `key=` for dropout.
      sigma_min: the smallest noise, as in `cm.CMConfig`.
      sigma_max: the largest noise.
      proposal: how noise levels are drawn.
      weighting: (t, r) -> f32[B]; give `edm` the sigma_data of the preconditioning.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: gap is concrete and outside (0, 1].
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> f = cmjax.consistency_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> easy_consistency_tuning(f, f, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), gap=0.5).shape
      (4,)

    References:
      Geng et al. 2024, algorithm 1 and equation 14 (mapping from t to r).

    Differs from the paper:
      The weight is the root of the denoising weight of Karras et al. 2022 (table 1), since the metric is a
      length (like `pseudo_huber`) rather than its square; and r stops at sigma_min instead of 0.
    """
    x0 = floating("x0", x0)
    if not (is_traced(gap) or 0.0 < gap <= 1.0):
        raise ValueError(f"gap must lie in (0, 1], got {gap}. (1 is plain denoising.)")
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    t = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)
    r = jnp.maximum(t * (1.0 - gap * (1.0 + 8.0 * jax.nn.sigmoid(-t))), sigma_min)
    x_t, x_r = noised(x0, (t, r), z_key)

    def target(x: Array, sigma: Array, cond: Cond = None, **options: Any) -> Array:
        return jax.lax.cond(
            jnp.all(sigma <= sigma_min),
            lambda x, sigma, cond: x,
            lambda x, sigma, cond: jax.lax.stop_gradient(f_target(x, sigma, cond, **options)),
            x, sigma, cond,
        )  # fmt: skip

    distance = compare(f, (x_t, t), target, (x_r, r), cond, metric, **dropout_option(dropout_key, dropout))
    return weighting(t, r) * distance
