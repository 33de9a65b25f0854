"""Attention: softmax(q k^T / sqrt(d)) v, over all heads at once or one after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmjax.types import Array

__all__ = ["attend"]

# Where the weights of all heads are more than this many, they do not stay in a CPU's cache: one head's do.
_WEIGHTS = 1 << 22


def attend(q: Array, k: Array, v: Array) -> Array:
    """Average values with the weights softmax(q k^T / sqrt(d)); logits and softmax are float32.

    Args:
      q: queries, f[B, heads, N, d]. Heads come before pixels, so that the big products need no transposition.
      k: keys, f[B, heads, N, d].
      v: values, f[B, heads, N, d].

    Returns:
      f[B, heads, N, d], in the dtype of v.

    References:
      Vaswani et al., Attention Is All You Need, 2017, equation 1.
    """
    batch = q.shape[0] if isinstance(q.shape[0], int) else 1  # of any size (`jax.export`): then one picture decides
    if batch * q.shape[1] * q.shape[2] * k.shape[2] <= _WEIGHTS:
        return _all_heads(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cpu=_head_by_head, default=_all_heads)


def _all_heads(q: Array, k: Array, v: Array) -> Array:
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, v)


def _head_by_head(q: Array, k: Array, v: Array) -> Array:
    first = [jnp.moveaxis(y, 1, 0) for y in (q, k, v)]  # the batch stays an axis of its own, as it may be sharded
    return jnp.moveaxis(jax.lax.map(lambda head: _all_heads(*head), tuple(first)), 0, 1)
