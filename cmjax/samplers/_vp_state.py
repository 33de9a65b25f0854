"""Shared by TCD, LCM, DDIM and DPM-Solver++: the state of a variance-preserving network that is walked in its rates."""

from __future__ import annotations

from cmjax._numerics import f32
from cmjax._struct import static
from cmjax.parameterization import x0_eps
from cmjax.samplers._vp import Bound
from cmjax.samplers.base import Prediction, SamplerState
from cmjax.types import Array

__all__ = ["VPState"]


class VPState(SamplerState):
    """A path of timesteps, x = α x0 + σ ε with α² + σ² = 1.

    Attributes:
      alphas: f32[n] or f32[n + 1], α at the timesteps, and perhaps where the path ends.
      sigmas: of the same shape, σ there.
      prediction_type: what the network predicts.
      bound: the bound on x0.
    """

    alphas: Array
    sigmas: Array
    prediction_type: str = static(kw_only=True)
    bound: Bound = static(default=Bound(), kw_only=True)

    def rates(self) -> tuple[Array, Array]:
        """(α_t, σ_t), f32[] each."""
        return self.now(self.alphas), self.now(self.sigmas)

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """Compute x0 (bounded) and the network's own ε, f32[B, *S] each, from its output at t."""
        x0, eps = x0_eps(self.prediction_type, f32(model_out), f32(x), *self.rates())
        return Prediction(self.bound(x0), eps)
