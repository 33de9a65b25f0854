"""Type aliases and protocols, and the shape notation of every docstring.

Shapes are written `dtype[axes]`: `f32[n + 1]`, `i32[B]`, `f[B, *S]`. `f` is any float dtype, `n` the number of steps,
`T` the number of training timesteps, `B` the batch, `*S` the shape of one sample: (H, W, C) for images, though samplers
do not depend on the meaning of the axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax

__all__ = ["Array", "Cond", "Edit", "Key", "ModelFn"]

Array: TypeAlias = jax.Array
"""A JAX array (or a tracer of one)."""

Key: TypeAlias = jax.Array
"""One PRNG key, key[], or one for each image, key[B]. The older u32[2] and u32[B, 2] work too."""

Cond: TypeAlias = Any
"""What a model is conditioned on: any pytree (class labels i32[B], a dict of embeddings, ...) or None."""

Edit: TypeAlias = Callable[[Array], Array]
"""x0 -> x0, f32[B, *S]: a projection of the clean estimate, such as inpainting. A callable pytree."""


class ModelFn(Protocol):
    """A network: any callable pytree `model(x, t, cond)`, called with positional arguments.

    x is f[B, *S]; t is a scalar for the whole batch, or one value per image in training; cond is any pytree.
    The output has the shape of x. Keyword options, such as `key=` for dropout in training, are passed on.
    """

    def __call__(self, x: Array, t: Array, cond: Cond, /) -> Array:
        """Predict from the noisy x at noise level t, given cond."""
        ...
