"""A variance-preserving network at any timestep of its table, the base of the functions that are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like, f32, floating, read
from cmjax._struct import Struct, static
from cmjax.parameterization import x0_eps
from cmjax.samplers import _vp
from cmjax.samplers._checks import count_steps
from cmjax.samplers._distilled import DistilledConfig
from cmjax.samplers.base import Prediction

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from cmjax.types import Array, Cond, Key, ModelFn

__all__ = ["VPNetwork", "network", "whole_timesteps"]


class VPNetwork(Struct):
    """A network with its rates at every timestep; x = α_t x0 + σ_t ε, and t may differ from image to image.

    Attributes:
      model: `model(x, t, cond)`, a callable pytree.
      alphas: f32[T], α at every timestep.
      sigmas: f32[T], σ at every timestep.
      prediction_type: what the model predicts.
      original_inference_steps: O, the size of the grid that a few-step model is distilled on.
    """

    model: ModelFn
    alphas: Array
    sigmas: Array
    prediction_type: str = static()
    original_inference_steps: int = static()

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps in the table, T."""
        return self.alphas.shape[-1]

    @property
    def grid(self) -> np.ndarray:
        """The timesteps that a few-step model is distilled on, i64[O], ascending."""
        return schedules.training_grid(self.num_train_timesteps, self.original_inference_steps)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        """(α_t, σ_t), f32[] or f32[B] each, at timestep t, i32[] or i32[B]; NaN out of the table."""
        t = whole_timesteps("t", t)
        return read(self.alphas, t), read(self.sigmas, t)

    def output(self, x: Array, t: ArrayLike, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Compute the model's output for x, f[B, *S], at timestep t, i32[] or i32[B]."""
        x = floating("x", x)
        t = whole_timesteps("t", t, x)
        out = self.model(x, t, cond, **({} if key is None else {"key": key}))
        if out.shape != x.shape:
            raise ValueError(f"the model returned shape {out.shape} for x of shape {x.shape}; it must keep the shape.")
        return out

    def predict(self, x: Array, t: ArrayLike, cond: Cond = None, *, key: Key | None = None) -> Prediction:
        """Compute x0 and ε, f32[B, *S] each. x0 is not clipped, since clipped values have no gradient."""
        alpha, sigma = (expand_like(rate, x) for rate in self.rates(t))
        return Prediction(*x0_eps(self.prediction_type, f32(self.output(x, t, cond, key=key)), f32(x), alpha, sigma))


def whole_timesteps(name: str, t: ArrayLike, x: Array | None = None) -> Array:
    """Check timesteps: whole numbers, one for all or (given x) one for each image."""
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(f"{name} must be timesteps, whole numbers of the table, got {t.dtype}.")
    if x is not None and t.shape not in ((), x.shape[:1]):
        raise ValueError(f"{name} must be one timestep, or one for each of {x.shape[0]} images, got shape {t.shape}.")
    return t


NetworkT = TypeVar("NetworkT", bound=VPNetwork)


def network(kind: type[NetworkT], model: ModelFn, config: _vp.VPConfig, **fields: Any) -> NetworkT:
    """Make a `VPNetwork` of some kind: its tables are computed in float64 on the host."""
    config = _vp.as_config(config, DistilledConfig)
    alpha, sigma = _vp.rate_tables(config)
    size = config.num_train_timesteps
    count_steps(config.original_inference_steps, size, f"num_train_timesteps = {size}", "original_inference_steps")
    return kind(
        model=model,
        alphas=f32(alpha.astype(np.float32)),
        sigmas=f32(sigma.astype(np.float32)),
        prediction_type=config.prediction_type,
        original_inference_steps=config.original_inference_steps,
        **fields,
    )
