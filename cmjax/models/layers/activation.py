"""Activations by their names in a config."""

from __future__ import annotations

from collections.abc import Callable

import jax

from cmjax.types import Array

__all__ = ["activation"]


def activation(name: str) -> Callable[[Array], Array]:
    """The activation with a config's name, in capitals or not."""
    table = {
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
        "mish": jax.nn.mish,
        "gelu": _gelu,
        "relu": jax.nn.relu,
        "quick_gelu": _quick_gelu,
    }
    return table[name.lower()]


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)
