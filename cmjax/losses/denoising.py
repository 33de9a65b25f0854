"""Denoising score matching: trains a diffusion model of noise levels, such as a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from cmjax._numerics import floating
from cmjax.losses._functions import X0Fn
from cmjax.losses._pairs import dropout_option, noised
from cmjax.losses.metrics import Metric, l2
from cmjax.losses.proposals import Proposal, lognormal
from cmjax.losses.weightings import Weighting, edm

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["denoising"]

_TEACHERS = lognormal(-1.2, 1.2)
_EDM = edm()


def denoising(
    denoise: X0Fn,
    x0: Array,
    key: Key,
    *,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    proposal: Proposal = _TEACHERS,
    weighting: Weighting = _EDM,
    metric: Metric = l2,
) -> Array:
    """Compute the denoising loss of a sigma-space diffusion model, one value per example.

        loss = w(t) d(D(x0 + t z, t), x0)

    With the squared metric, its minimum is at D(x, t) = E[x0 | x]. The minimum is not 0 but w(t) times the mean
    variance of x0 given x. For Gaussian data of standard deviation sigma_data and the weight `edm(sigma_data)`, it is 1
    at every level.

    Args:
      denoise: the denoiser D being trained, as `cmjax.denoiser_fn` makes it.
      x0: f[B, *S], data.
      key: one key, for the levels, the noise and the dropout.
      cond: conditioning pytree, or None.
      dropout: whether to pass the network a `key=` for dropout.
      sigma_min: the smallest noise, as in `cm.CMConfig`.
      sigma_max: the largest.
      proposal: how noise levels are drawn.
      weighting: (t, r) -> f32[B], given t twice; give `edm` the sigma_data of the preconditioning.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> denoise = cmjax.denoiser_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> denoising(denoise, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Karras et al. 2022, equations 2 and 8 and table 1.

    Differs from the paper:
      Only values of ln t ~ N(-1.2, 1.2²) within [sigma_min, sigma_max] are drawn (all but 1 in 60 thousand).
    """
    x0 = floating("x0", x0)
    t_key, z_key, dropout_key = jax.random.split(key, 3)
    t = proposal(t_key, x0.shape[:1], sigma_min, sigma_max)
    (x_t,) = noised(x0, (t,), z_key)
    return weighting(t, t) * metric(denoise(x_t, t, cond, **dropout_option(dropout_key, dropout)), x0)
