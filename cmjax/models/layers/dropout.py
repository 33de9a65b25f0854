"""Dropout that acts exactly where it is given a key."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, repeat

import jax
import jax.numpy as jnp

from cmjax.types import Array, Key

__all__ = ["dropout", "dropout_keys"]


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Set entries of x to zero with probability `rate` and scale up the others; without a key, do nothing."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def dropout_keys(key: Key | None, rate: float) -> Iterator[Key | None]:
    """Give one key for each dropout in a network, in the order of use; None for ever where there is none to give."""
    if key is None or rate == 0:
        return repeat(None)
    return (jax.random.fold_in(key, i) for i in count())
