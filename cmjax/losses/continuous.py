"""Consistency in the limit of neighbouring noise levels: f is constant along a trajectory, df/dt = 0.

There is no grid and no gap to choose. The derivative along the trajectory is one `jax.jvp` of the network, in the
trajectory's direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, floating, is_traced, safe_sqrt
from cmjax.losses._functions import X0Fn
from cmjax.losses._pairs import dropout_option
from cmjax.losses.metrics import l2
from cmjax.losses.proposals import Proposal, lognormal
from cmjax.losses.weightings import Weighting, uniform

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["continuous_consistency", "infinitesimal_consistency"]

_TRIGFLOW = lognormal(-1.0, 1.4)
_IMPROVED = lognormal()


def continuous_consistency(
    net: Callable[..., Array],
    x0: Array,
    key: Key,
    *,
    teacher: Callable[..., Array] | None = None,
    cond: Cond = None,
    dropout: bool = False,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    proposal: Proposal = _TRIGFLOW,
    warmup: float | Array = 1.0,
    tangent_constant: float | None = 0.1,
    log_weight: Callable[[Array], Array] | None = None,
) -> Array:
    """Compute the loss of simplified, stabilized and scaled consistency models (sCM), one value per example.

    In TrigFlow a sample is x_t = cos t x0 + sin t z, with z of standard deviation σ_d, and the network F makes the
    consistency function f(x_t, t) = cos t x_t - sin t σ_d F(x_t / σ_d, t). With F⁻ = sg F, the tangent is

        g = -cos² t (σ_d F⁻ - dx_t/dt) - r cos t sin t (x_t + σ_d dF⁻/dt),

    cos t df/dt when r = 1; the trajectory's velocity is dx_t/dt = σ_d F_teacher(x_t / σ_d, t), or, from data alone,
    cos t z - sin t x0. The tangent is normalized, g / (‖g‖ + c), and the network follows it:

        loss = e^w(t) / D ‖F - F⁻ - g‖² - w(t),

    with D values in an example. The loss thus measures the length of the tangent, and its gradient is -2 e^w / D g ·
    ∂F. The factor cos t is the paper's prior weighting 1 / (σ_d tan t). The direction is multiplied by cos t sin t
    before the `jax.jvp`, so that no part of the derivative is infinite at either end of t.

    Args:
      net: F(x_t / σ_d, t, cond), an ordinary network of the angle t (f32[B], from 0 to π/2), a sigma-space model by
        `parameterization.trigflow_fn`, or one of timesteps by `models.trigflow_of_vp`, with σ_d = 1. It must have a
        forward derivative, as all networks of `cmjax.models` have, with LoRAs or without.
      x0: f[B, *S], data.
      key: one key, for noise levels, noise and dropout.
      teacher: the diffusion model to distil, of the same form as net; None trains from data alone. It gets no dropout
        key and no gradient. For guidance, guide the model first and then make it a TrigFlow network.
      cond: conditioning pytree, or None.
      dropout: whether to pass net a `key=` for dropout: one mask, in F and in its derivative.
      sigma_data: σ_d, the standard deviation of the data.
      sigma_min: the smallest noise level that is proposed.
      sigma_max: the largest.
      proposal: how noise levels σ = σ_d tan t are drawn; the paper's is ln σ ~ N(-1, 1.4²).
      warmup: r in [0, 1], f32[]; may be traced, see `curricula.tangent_warmup`. 0 leaves denoising.
      tangent_constant: c; None leaves g as it is.
      log_weight: t, f32[B] -> w, f32[B], learned along with the network; None for w = 0. Its optimum e^-w(t) is the
        average of ‖g‖² / D at t, so that every noise level counts the same.

    Returns:
      f32[B].

    Raises:
      ValueError: warmup is concrete and outside [0, 1], or the network does not keep the shape.
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> model = lambda x, t, cond: jnp.zeros_like(x)
      >>> net = cmjax.parameterization.trigflow_fn(model, cmjax.cm.CMConfig())
      >>> continuous_consistency(net, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), warmup=0.5).shape
      (4,)

    References:
      Lu & Song 2024, algorithm 1 and section 4.

    Differs from the paper:
      Noise levels beyond sigma_min and sigma_max are not drawn (with the defaults, one in 6,000 would be). Published
      code (rCM) warms up x_t alone, and sums over the values rather than averaging; here r is on both, as in the paper.
    """
    x0 = floating("x0", x0)
    if not (is_traced(warmup) or 0.0 <= warmup <= 1.0):
        raise ValueError(f"warmup must lie in [0, 1], got {warmup}.")
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    t = jnp.arctan(proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max) / sigma_data)
    cos, sin = expand_like(jnp.cos(t), x0), expand_like(jnp.sin(t), x0)
    z = sigma_data * jax.random.normal(z_key, x0.shape, jnp.float32)
    x = cos * f32(x0) + sin * z
    if teacher is None:
        dx = cos * z - sin * f32(x0)
    else:
        dx = sigma_data * jax.lax.stop_gradient(f32(teacher(x / sigma_data, t, cond)))

    options = dropout_option(dropout_key, dropout)
    towards = cos * sin * dx / sigma_data, jnp.cos(t) * jnp.sin(t)
    out, slope = _along(lambda x, t: net(x, t, cond, **options), (x / sigma_data, t), towards)
    g = -(cos**2) * (sigma_data * out - dx) - f32(warmup) * (cos * sin * x + sigma_data * slope)
    if tangent_constant is not None:
        g = g / (_norm(g) + tangent_constant)
    loss = l2(out, jax.lax.stop_gradient(out + g))
    if log_weight is None:
        return loss
    w = log_weight(t)
    return jnp.exp(w) * loss - w


def infinitesimal_consistency(
    f: X0Fn,
    x0: Array,
    key: Key,
    *,
    denoise: Callable[..., Array] | None = None,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    proposal: Proposal = _IMPROVED,
    weighting: Weighting = uniform,
) -> Array:
    """Compute the continuous-time consistency loss of noise levels, one value per example.

    Along the trajectory dx/dσ = (x - D(x, σ)) / σ of a teacher's denoiser D, or of data alone (D = x0),

        loss = w(σ) / D ‖f - sg(f - df/dσ)‖²,

    for D values in an example. Its gradient, 2 w / D df/dσ · ∂f, is the limit, as the number of levels grows, of the
    gradient of `consistency_training` and `consistency_distillation` with `l2` and `inverse_gap`.
    `continuous_consistency` is more stable.

    Args:
      f: the consistency function being trained, as `cmjax.consistency_fn` makes it.
      x0: f[B, *S], data.
      key: one key, for noise levels, noise and dropout.
      denoise: the teacher, (x, sigma, cond) -> x0, as `cmjax.denoiser_fn` makes it; None trains from data alone. It
        gets no dropout key and no gradient.
      cond: conditioning pytree, or None.
      dropout: whether to pass f a `key=` for dropout: one mask, in f and in its derivative.
      sigma_min: the smallest noise, as in `cm.CMConfig`.
      sigma_max: the largest.
      proposal: how noise levels are drawn.
      weighting: (t, r) -> f32[B], given σ twice.

    Returns:
      f32[B].

    Raises:
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> f = cmjax.consistency_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> infinitesimal_consistency(f, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Song et al. 2023, appendix B, theorems 5 and 6 with ‖·‖² and θ⁻ = sg θ.

    Differs from the paper:
      The paper has the pseudo-objective 2 w f · sg(df/dσ), which has this gradient but no meaningful value. Levels come
      from a proposal; the paper draws them evenly in σ^(1/ρ) (`proposal=karras()`).
    """
    x0 = floating("x0", x0)
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    sigma = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)
    z = jax.random.normal(z_key, x0.shape, jnp.float32)
    x = f32(x0) + expand_like(sigma, x0) * z
    dx = z if denoise is None else jax.lax.stop_gradient((x - f32(denoise(x, sigma, cond))) / expand_like(sigma, x))

    options = dropout_option(dropout_key, dropout)
    out, slope = _along(lambda x, sigma: f(x, sigma, cond, **options), (x, sigma), (dx, jnp.ones_like(sigma)))
    return weighting(sigma, sigma) * l2(out, jax.lax.stop_gradient(out - slope))


def _along(
    function: Callable[..., Array], at: tuple[Array, Array], towards: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Evaluate a function of (x, t) and its derivative in a direction, without gradient: f32[B, *S] each."""
    out, slope = jax.jvp(function, at, towards)
    if out.shape != at[0].shape:
        raise ValueError(f"net returned shape {out.shape} for x of shape {at[0].shape}; it must keep the shape.")
    return f32(out), jax.lax.stop_gradient(f32(slope))


def _norm(g: Array) -> Array:
    """‖g‖ of each example, f32[B, 1, …]."""
    return safe_sqrt(jnp.square(g).sum(tuple(range(1, g.ndim)), keepdims=True))
