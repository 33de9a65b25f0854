"""Distributions of the noise levels, or the times of a flow, to train at."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from cmjax.types import Array, Key

__all__ = ["Proposal", "TimeProposal", "karras", "logit_normal", "lognormal"]


class Proposal(Protocol):
    """Draw noise levels: (key, shape, sigma_min, sigma_max) -> f32[shape] within the two."""

    def __call__(self, key: Key, shape: tuple[int, ...], sigma_min: float, sigma_max: float) -> Array:
        """Draw f32[shape] in [sigma_min, sigma_max]."""
        ...


@dataclasses.dataclass(frozen=True)
class lognormal:
    """Propose noise levels with ln σ ~ N(mean, std²), kept within [sigma_min, sigma_max].

    The defaults are those of improved consistency training.

    Example:
      >>> import jax
      >>> sigma = lognormal()(jax.random.key(0), (1000,), 0.002, 80.0)
      >>> bool((sigma >= 0.002).all() and (sigma <= 80.0).all())
      True

    References:
      Karras et al. 2022, table 1; Song & Dhariwal 2023, section 3.5.
    """

    mean: float = -1.1
    std: float = 2.0

    def __call__(self, key: Key, shape: tuple[int, ...], sigma_min: float, sigma_max: float) -> Array:
        """Draw f32[shape] in [sigma_min, sigma_max]."""
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {sigma_min:g} and {sigma_max:g}.")
        low, high = ((math.log(sigma) - self.mean) / self.std for sigma in (sigma_min, sigma_max))
        log_sigma = self.mean + self.std * jax.random.truncated_normal(key, low, high, shape, jnp.float32)
        return jnp.clip(jnp.exp(log_sigma), sigma_min, sigma_max)


@dataclasses.dataclass(frozen=True)
class karras:
    """Propose noise levels evenly in σ^(1/ρ): on a Karras grid of any size, all intervals equally often.

    Example:
      >>> import jax
      >>> sigma = karras()(jax.random.key(0), (1000,), 0.002, 80.0)
      >>> bool((sigma >= 0.002).all() and (sigma <= 80.0).all())
      True

    References:
      Karras et al. 2022, equation 5; Song et al. 2023, algorithms 2 and 3 (n ~ U[1, N - 1]).
    """

    rho: float = 7.0

    def __call__(self, key: Key, shape: tuple[int, ...], sigma_min: float, sigma_max: float) -> Array:
        """Draw f32[shape] in [sigma_min, sigma_max]."""
        low, high = (sigma ** (1 / self.rho) for sigma in (sigma_min, sigma_max))
        root = jax.random.uniform(key, shape, jnp.float32, low, high)
        return jnp.clip(root**self.rho, sigma_min, sigma_max)


class TimeProposal(Protocol):
    """Draw times of a flow: (key, shape) -> f32[shape] in (0, 1)."""

    def __call__(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Draw f32[shape]."""
        ...


@dataclasses.dataclass(frozen=True)
class logit_normal:
    """Propose times t with ln(t / (1 - t)) ~ N(mean, std²). The defaults are MeanFlow's.

    Example:
      >>> import jax
      >>> t = logit_normal()(jax.random.key(0), (1000,))
      >>> bool(((0 < t) & (t < 1)).all())
      True

    References:
      Esser et al. 2024, section 3.1; Geng et al. 2025, table 1d.
    """

    mean: float = -0.4
    std: float = 1.0

    def __call__(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Draw f32[shape] in (0, 1)."""
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, shape, jnp.float32))
