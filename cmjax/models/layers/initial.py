"""Initial weights."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.types import Array, Key

__all__ = ["fan_in_uniform", "normal", "zeros"]

# Zeros where a branch rejoins the picture (the last layer of a residual block, of an attention, of the network): every
# block begins as the identity and the network as 0, so training starts at f(x, sigma) = c_skip x and is stable at any
# depth. diffusers draws these weights at random; loaded weights replace them, so only training sees the difference.
zeros = nnx.initializers.zeros_init()


def fan_in_uniform(key: Key | None, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draw weights of variance 1 / fan_in, U(-b, b) with b^2 = 3 / fan_in; the last axis is the output's.

    XLA takes about a second to compile a draw of each new size, and a UNet has dozens. So the numbers come from draws
    of a few sizes, powers of four, and the rest of a draw is dropped.

    Args:
      key: for the draw; None for zeros, where only the shape of a network is made.
      shape: of the weights.
      dtype: of the weights.

    References:
      LeCun et al. 1998, Efficient BackProp, section 4.6.
    """
    if key is None:
        return jnp.zeros(shape, dtype)
    size = math.prod(shape)
    most = 4 ** max(6, math.ceil(math.log(size, 4)))
    draw = jax.random.uniform(key, (most,), jnp.float32, -1.0, 1.0)[:size].reshape(shape)
    return (draw * math.sqrt(3 * shape[-1] / size)).astype(dtype)


def normal(key: Key | None, shape: tuple[int, ...]) -> Array:
    """Draw weights from N(0, 1); zeros without a key."""
    return jnp.zeros(shape, jnp.float32) if key is None else jax.random.normal(key, shape, jnp.float32)
