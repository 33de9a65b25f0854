"""Small networks fitted to a loss in seconds: what a recipe teaches, tried on data whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

__all__ = ["affine", "affine_params", "fit"]


def affine(params: Any, x: Any, t: Any, cond: Any = None, key: Any = None) -> Any:
    """W(t) x + b(t), with W and b from a small network of t: it can say every answer on Gaussian data.

    Args:
      params: of `affine_params`.
      x: f32[B, d].
      t: f32[B] or f32[], 250 ln σ.
      cond: not used.
      key: not used.
    """
    size = x.shape[-1]
    hidden = jnp.tanh(jnp.broadcast_to(t, x.shape[:1])[:, None] / 250.0 * params["a"] + params["b"])
    out = (hidden @ params["c"]).reshape(-1, size, size + 1)
    return jnp.einsum("bij,bj->bi", out[..., :size], x) + out[..., size]


def affine_params(key: Any, size: int, width: int = 32) -> Any:
    """What `affine` starts from, for examples f32[size]."""
    a, b, c = jax.random.split(key, 3)
    shape = (width, size * (size + 1))
    return {
        "a": jax.random.normal(a, (width,)),
        "b": jax.random.normal(b, (width,)),
        "c": jax.random.normal(c, shape) / width**0.5,
    }


def fit(value: Callable[..., Any], params: Any, key: Any, *given: Any, steps: int = 2500, rate: float = 2e-2) -> Any:
    """Minimise `value(params, key, *given)`, f32[], by Adam, whose rate falls to zero: one compiled loop."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(value)(params, key, *given), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]
