"""Shared by Euler and Heun: the state of a variance-preserving network that is walked in noise levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmjax._numerics import f32
from cmjax._struct import static
from cmjax.parameterization import x0_eps
from cmjax.samplers._vp import Bound
from cmjax.samplers.base import Prediction, SamplerState
from cmjax.types import Array

__all__ = ["SigmaState"]


class SigmaState(SamplerState):
    """A path in noise levels, x = x0 + σ ε. The network sees x / √(σ² + 1), a variance-preserving sample.

    Attributes:
      sigmas: f32[n + 1], σ at the steps, then where the path ends.
      prediction_type: what the network predicts.
      counts_data: whether the prior has the variance of noise and data, σ² + 1, or of noise alone.
      bound: the bound on x0.
    """

    sigmas: Array
    prediction_type: str = static(kw_only=True)
    counts_data: bool = static(default=False, kw_only=True, repr=False)
    bound: Bound = static(default=Bound(), kw_only=True)

    @property
    def init_noise_sigma(self) -> Array:
        """The path's first noise level σ, or √(σ² + 1), f32[]."""
        first = self.sigmas[..., 0]
        return jnp.sqrt(first**2 + 1.0) if self.counts_data else first

    def rates(self) -> tuple[Array, Array]:
        """(1, σ), f32[] each."""
        return jnp.ones((), jnp.float32), self.now(self.sigmas)

    def model_input(self, x: Array) -> tuple[Array, Array]:
        """(x / √(σ² + 1), t): f[B, *S], and the timestep of this level, f32[], which may be a fraction."""
        return (self._alpha() * f32(x)).astype(x.dtype), self.now(self.timesteps)

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """Compute x0 (bounded) and ε = (x - x0) / σ, f32[B, *S] each."""
        x, alpha, sigma = f32(x), self._alpha(), self.now(self.sigmas)
        x0, eps = x0_eps(self.prediction_type, f32(model_out), alpha * x, alpha, alpha * sigma)
        if self.bound == Bound():
            return Prediction(x0, eps)
        x0 = self.bound(x0)
        return Prediction(x0, (x - x0) / sigma)

    def _alpha(self) -> Array:
        """The signal rate of a variance-preserving sample of this level, 1 / √(σ² + 1)."""
        return jax.lax.rsqrt(self.now(self.sigmas) ** 2 + 1.0)
