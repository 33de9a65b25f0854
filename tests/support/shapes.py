"""Networks without their numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
from flax import nnx

__all__ = ["shaped"]


def shaped(make: Callable[[Any], nnx.Module]) -> Any:
    """Make the shapes of a network.

    Args:
      make: makes it of keys. It always gets the same one: JAX takes four times as long where nnx counts them.
    """
    return nnx.eval_shape(lambda: make(SimpleNamespace(params=lambda: jax.random.key(0))))
