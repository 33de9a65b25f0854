"""The linear layer."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers.initial import fan_in_uniform, zeros

__all__ = ["Dtype", "linear"]

Dtype = jnp.dtype | type


def linear(c_in: int, c_out: int, *, zero: bool = False, dtype: Dtype = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """Make a linear layer."""
    return nnx.Linear(c_in, c_out, dtype=dtype, kernel_init=zeros if zero else fan_in_uniform, rngs=rngs)
