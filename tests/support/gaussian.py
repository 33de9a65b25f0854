"""Data whose truth is known: N(mean, std²), value by value, noised to x = α x0 + σ z in any of the usual variables.

With it the denoiser, the probability-flow ODE and so every consistency and trajectory function are closed forms. In
noise levels α is 1; in VP variables α² + σ² = 1; in TrigFlow α = cos t and σ = sin t.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Gaussian"]


def _wide(rate: Any, x: Any) -> Any:
    """A rate, f[] or f[B], against x, f[B, *S]."""
    rate = jnp.asarray(rate, jnp.float32)
    return rate if rate.ndim == 0 else rate.reshape(rate.shape + (1,) * (x.ndim - rate.ndim))


class Gaussian(NamedTuple):
    """N(mean, std²); both may be arrays of an example's shape."""

    mean: Any = 0.3
    std: Any = 0.6

    def draw(self, key: Any, shape: tuple[int, ...]) -> Any:
        """Data, f32[B, *S]."""
        return self.mean + self.std * jax.random.normal(key, shape)

    def x0(self, x: Any, alpha: Any, sigma: Any) -> Any:
        """E[x0 | x], f32[B, *S]: the exact denoiser."""
        alpha, sigma = _wide(alpha, x), _wide(sigma, x)
        share = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + share * (x - alpha * self.mean)

    def flow(self, x: Any, rates: tuple[Any, Any], rates_next: tuple[Any, Any]) -> Any:
        """Where the probability-flow ODE takes x from one pair of rates (α, σ) to another: quantiles stay quantiles."""
        spread, spread_next = (jnp.hypot(_wide(a, x) * self.std, _wide(s, x)) for a, s in (rates, rates_next))
        alpha, alpha_next = _wide(rates[0], x), _wide(rates_next[0], x)
        return alpha_next * self.mean + spread_next / spread * (x - alpha * self.mean)

    def denoise(self, x: Any, sigma: Any, cond: Any = None, *, key: Any = None) -> Any:
        """The denoiser D(x, σ) of noise levels."""
        return self.x0(x, 1.0, sigma)

    def to(self, x: Any, sigma: Any, sigma_next: Any, cond: Any = None, *, key: Any = None) -> Any:
        """The exact step (x, σ, σ', cond) -> x' of noise levels; what a teacher's step approximates."""
        return self.flow(x, (1.0, sigma), (1.0, sigma_next))
