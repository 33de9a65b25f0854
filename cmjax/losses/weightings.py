"""Weights of pairs of noise levels r < t: functions (t, r) -> f32[B]."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import jax.numpy as jnp

if TYPE_CHECKING:
    from cmjax.types import Array

__all__ = ["Weighting", "edm", "inverse_gap", "min_snr", "snr", "snr_plus_one", "truncated_snr", "uniform"]


class Weighting(Protocol):
    """Weight a pair of noise levels: (t, r) -> f32[B] for f32[B] each, r < t. Losses with one level pass it twice."""

    def __call__(self, t: Array, r: Array, /) -> Array:
        """Compute the weights."""
        ...


def uniform(t: Array, r: Array) -> Array:
    """1: every pair counts the same. Song et al. 2023, section 6 (all their published models)."""
    return jnp.ones_like(t)


def inverse_gap(t: Array, r: Array) -> Array:
    """1 / (t - r), and 0 where t equals r. Song & Dhariwal 2023, section 3.3."""
    is_pair = t > r
    return jnp.where(is_pair, 1.0 / jnp.where(is_pair, t - r, 1.0), 0.0)


def snr(t: Array, r: Array) -> Array:
    """1 / t². Salimans & Ho 2022, section 4 (of a sigma-space model)."""
    return t**-2


def snr_plus_one(t: Array, r: Array) -> Array:
    """1 / t² + 1. Salimans & Ho 2022, section 4."""
    return t**-2 + 1.0


def truncated_snr(t: Array, r: Array) -> Array:
    """The larger of 1 / t² and 1. Salimans & Ho 2022, section 4."""
    return jnp.maximum(t**-2, 1.0)


@dataclasses.dataclass(frozen=True)
class edm:
    """Weigh by (1 / t² + 1 / σ_d²)^power, which gives a network with Karras preconditioning a loss of unit size.

    Attributes:
      sigma_data: σ_d, the standard deviation of the data that the preconditioning assumes.
      power: 1 for a squared metric, 1/2 for a length such as `pseudo_huber`.

    Example:
      >>> edm(0.5)(jnp.array([0.5, 80.0]), jnp.zeros(2)).round(2)
      Array([8., 4.], dtype=float32)

    References:
      Karras et al. 2022, table 1.
    """

    sigma_data: float = 0.5
    power: float = 1.0

    def __call__(self, t: Array, r: Array) -> Array:
        """Compute the weight of t, f32[B]."""
        return (t**-2 + self.sigma_data**-2) ** self.power


@dataclasses.dataclass(frozen=True)
class min_snr:
    """Weight the error of x0 by the smaller of 1 / t² and γ, so that nearly clean timesteps do not dominate.

    Attributes:
      gamma: γ.

    Example:
      >>> min_snr()(jnp.array([0.1, 1.0]), jnp.zeros(2))
      Array([5., 1.], dtype=float32)

    References:
      Hang et al. 2023, section 3.4.
    """

    gamma: float = 5.0

    def __call__(self, t: Array, r: Array) -> Array:
        """Compute the weight of t, f32[B]."""
        return jnp.minimum(t**-2, self.gamma)
