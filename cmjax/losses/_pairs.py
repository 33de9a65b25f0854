"""Parts that losses share: levels of the Karras grid, noised data, and the comparison of student and target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, is_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from cmjax.losses.metrics import Metric
    from cmjax.types import Array, Cond, Key

__all__ = ["compare", "dropout_option", "grid_level", "grid_size", "neighbours", "noised"]


def dropout_option(key: Key, dropout: bool) -> dict[str, Key]:
    """Make the keyword for both student and target: `key=`, or nothing without dropout."""
    return {"key": key} if dropout else {}


def compare(
    f: Callable[..., Array],
    at: tuple[Array, ...],
    f_target: Callable[..., Array],
    target_at: tuple[Array, ...],
    cond: Cond,
    metric: Metric,
    **options: Any,
) -> Array:
    """d(f(x_t, t), sg f⁻(x_r, r)), f32[B]: no gradient reaches the target, and both get the same options (dropout)."""
    target = jax.lax.stop_gradient(f_target(*target_at, cond, **options))
    return metric(f(*at, cond, **options), target)


def grid_size(num_scales: int | Array) -> int | Array:
    """Check N, the number of points of a grid: at least one pair of them."""
    if not is_traced(num_scales) and num_scales < 2:
        raise ValueError(f"num_scales must be at least 2 (a pair of noise levels), got {num_scales}.")
    return num_scales


def grid_level(i: Array, intervals: Array, *, sigma_min: float, sigma_max: float, rho: float) -> Array:
    """σ_i of the Karras grid, f32[B], upwards from i = 0: exactly sigma_min, where f⁻ is the identity."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return jnp.where(i == 0, sigma_min, (low + f32(i) / intervals * (high - low)) ** rho)


def neighbours(
    sigma: Array, num_scales: int | Array, *, sigma_min: float, sigma_max: float, rho: float
) -> tuple[Array, Array]:
    """The neighbours r ≤ σ < t of each level on the Karras grid of N points: (t, r), f32[B] each."""
    intervals = f32(grid_size(num_scales)) - 1.0
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    i = jnp.floor((sigma ** (1 / rho) - low) / (high - low) * intervals)
    i = jnp.clip(i, 0.0, intervals - 1.0)
    r, t = (grid_level(j, intervals, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho) for j in (i, i + 1.0))
    return t, r


def noised(x0: Array, levels: tuple[Array, ...], key: Key) -> tuple[Array, ...]:
    """x0 + σ z at each of the levels, with one z: f32[B, *S] each."""
    z = jax.random.normal(key, x0.shape, jnp.float32)
    return tuple(f32(x0) + expand_like(sigma, x0) * z for sigma in levels)
