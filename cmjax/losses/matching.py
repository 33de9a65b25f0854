"""Distribution matching: samples move to where a diffusion model finds them likely and their own model does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, floating
from cmjax.losses._timesteps import Rates, noised_at

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["distribution_matching"]


class _Estimates(Protocol):
    @property
    def x0(self) -> Array: ...


class Scored(Rates, Protocol):
    """A diffusion model at any timestep, as `cmjax.tcd.trajectory_fn` makes it."""

    def predict(self, x: Array, t: Array, cond: Cond = None) -> _Estimates:
        """x0 and ε of x at timestep t."""
        ...


def distribution_matching(
    x: Array,
    real: Scored,
    fake: Scored,
    key: Key,
    *,
    cond: Cond = None,
    ends: tuple[float, float] = (0.02, 0.98),
) -> Array:
    """Compute the distribution-matching loss of samples, one value per example; its gradient is what counts.

    Samples are noised to a timestep t, and two diffusion models estimate what they were: that of the data, and that of
    the samples themselves, which is trained beside (`noise_prediction` on the samples):

        loss = d(x, sg(x - g)) / 2,  g = (x̂0_fake - x̂0_real) / mean |x - x̂0_real|,  x_t = α_t x + σ_t z

    with d the mean squared difference, so that the gradient of d x is g. Where both models agree it is 0.

    Args:
      x: f[B, *S], samples of the model in training, with their gradients.
      real: the diffusion model of the data, guided as you like. No gradient reaches it.
      fake: the diffusion model of the samples. No gradient reaches it.
      key: one key.
      cond: conditioning pytree that the samples were drawn for, or None.
      ends: the lowest and the highest t, as shares of T; t is drawn uniformly between them.

    Returns:
      f32[B].

    Raises:
      ValueError: ends do not lie in [0, 1], the lower one first.
      TypeError: x is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> g = cmjax.tcd.trajectory_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.tcd.TCDConfig())
      >>> distribution_matching(jnp.ones((2, 3)), g, g, jax.random.key(0))
      Array([0., 0.], dtype=float32)

    References:
      Yin et al. 2024 (One-step diffusion with distribution matching distillation), equations 7 and 8.
    """
    x = floating("x", x)
    low, high = ends
    if not 0 <= low < high <= 1:
        raise ValueError(f"ends must be two shares of the timesteps in [0, 1], the lower one first, got {ends}.")
    t_key, z_key = jax.random.split(key)
    most = real.num_train_timesteps
    first, last = round(low * most), max(round(high * most), round(low * most) + 1)
    t = jax.random.randint(t_key, x.shape[:1], first, last)
    still = jax.lax.stop_gradient(f32(x))
    x_t = noised_at(real, t, still, jax.random.normal(z_key, x.shape, jnp.float32))
    x0_real, x0_fake = (jax.lax.stop_gradient(one.predict(x_t, t, cond).x0) for one in (real, fake))
    scale = jnp.abs(still - x0_real).reshape(x.shape[0], -1).mean(axis=1)
    push = (x0_fake - x0_real) / expand_like(jnp.maximum(scale, 1e-8), x)
    return 0.5 * jnp.square(f32(x) - (still - push)).reshape(x.shape[0], -1).mean(axis=1)
