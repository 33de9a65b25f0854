"""The loss of autoencoders whose latents a diffusion model learns: reconstruction, and bounded latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cmjax._numerics import f32, floating
from cmjax.losses.metrics import l1

if TYPE_CHECKING:
    from cmjax.types import Array, Key

__all__ = ["autoencoding"]


def autoencoding(
    encode: Callable[[Array], tuple[Array, Array | None]],
    decode: Callable[[Array], Array],
    x0: Array,
    key: Key,
    *,
    kl: float = 1e-6,
    edges: float = 1.0,
) -> Array:
    """Compute the loss of an autoencoder, one value per example.

    Latents are drawn from the normal distribution of the encoder, and decoded:

        loss = |x - x0| + edges (|∂ᵥ(x - x0)| + |∂ₕ(x - x0)|) + kl KL(N(m, e^l) ‖ N(0, 1))
        x = decode(m + e^(l/2) z),  (m, l) = encode(x0)

    The first three are means over an example; ∂ᵥ and ∂ₕ are the differences of pixels that are neighbours, below and
    beside one another. Without them (`edges=0`) edges are blurred: the mean of |x - x0| alone hardly sees them. The
    divergence is a sum over the latents of an example, in nats; its weight is small, since it only has to keep the
    latents from spreading without bound.

    Args:
      encode: pictures f[B, H, W, C] -> mean and logarithm of the variance of latents, f[B, h, w, c] each, such as
        `models.Autoencoder(...).encode`. For None in place of the latter the latents are the means, and nothing is
        asked of them.
      decode: latents f[B, h, w, c] -> pictures f[B, H, W, C].
      x0: f[B, H, W, C], pictures in [-1, 1].
      key: one key, for the noise.
      kl: the weight of the divergence.
      edges: the weight of the differences of neighbours.

    Returns:
      f32[B].

    Raises:
      TypeError: x0 is not of a float dtype.
      ValueError: x0 is not f[B, H, W, C], or what is decoded has another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encode = lambda x: (x, None)  # pictures are their own latents
      >>> autoencoding(encode, lambda z: 0.5 * z, jnp.ones((2, 4, 4, 3)), jax.random.key(0))
      Array([0.5, 0.5], dtype=float32)

    References:
      Rombach et al. 2022, section 3.1; Kingma & Welling 2014, appendix B (the divergence).

    Differs from the paper:
      The differences of neighbours stand in place of a perceptual distance and of an adversarial term, which need
      networks of their own.
    """
    x0 = f32(floating("x0", x0))
    if x0.ndim != 4:
        raise ValueError(f"x0 must be pictures f[B, H, W, C], got shape {x0.shape}.")
    mean, log_variance = encode(x0)
    if log_variance is None:
        return _distance(f32(decode(mean)), x0, edges)
    mean, log_variance = f32(mean), f32(log_variance)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, jnp.float32)
    return _distance(f32(decode(z)), x0, edges) + kl * _divergence(mean, log_variance)


def _distance(x: Array, x0: Array, edges: float) -> Array:
    distance = l1(x, x0)
    for axis in (1, 2):
        if x0.shape[axis] > 1:  # a single row has no neighbours
            distance = distance + edges * l1(jnp.diff(x, axis=axis), jnp.diff(x0, axis=axis))
    return distance


def _divergence(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, exp(log_variance)) ‖ N(0, 1)) of all latents of an example, in nats, f32[B]."""
    each = 0.5 * (jnp.square(mean) + jnp.expm1(log_variance) - log_variance)
    return each.reshape(each.shape[0], -1).sum(axis=1)
