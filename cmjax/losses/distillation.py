"""Distillation that follows a diffusion model's steps: consistency distillation and progressive distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from cmjax._numerics import expand_like, f32, floating, is_traced
from cmjax.losses._functions import TeacherStep, X0Fn
from cmjax.losses._pairs import compare, dropout_option, neighbours, noised
from cmjax.losses.metrics import Metric, l2
from cmjax.losses.proposals import Proposal, karras
from cmjax.losses.weightings import Weighting, truncated_snr, uniform

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["consistency_distillation", "progressive_distillation"]

_EVERY_INTERVAL_AS_OFTEN = karras()


def consistency_distillation(
    f: X0Fn,
    f_target: X0Fn,
    teacher: TeacherStep,
    x0: Array,
    key: Key,
    *,
    num_scales: int | Array,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    proposal: Proposal = _EVERY_INTERVAL_AS_OFTEN,
    weighting: Weighting = uniform,
    metric: Metric = l2,
) -> Array:
    """Compute the consistency-distillation loss, one value per example.

    A level σ is proposed; its neighbours r ≤ σ < t on the Karras grid of N points make the pair. Where
    `consistency_training` goes from t to r with the help of the data, here a teacher φ steps along its own ODE:

        loss = w(t, r) d(f(x_t, t), sg f⁻(φ(x_t, t, r), r)),  x_t = x0 + t z.

    Args:
      f: the consistency function being trained, as `cmjax.consistency_fn` makes it; its network usually starts as a
        copy of the teacher's.
      f_target: the function that computes the targets: f itself, or an average of it.
      teacher: the teacher's step, (x, t, r, cond) -> x at r. For guidance, wrap the teacher's model.
      x0: f[B, *S], data.
      key: one key; student and target get the same dropout.
      num_scales: i32[], N ≥ 2, the number of levels; may be traced. Published models have 18 with Heun on CIFAR-10, and
        40 on the larger data sets.
      cond: conditioning pytree, or None; the teacher gets it too.
      dropout: whether to pass student and target a `key=` for dropout.
      sigma_min: the smallest noise of the Karras grid, as in `cm.CMConfig`.
      sigma_max: the largest.
      rho: how strongly the grid crowds towards sigma_min.
      proposal: how noise levels are drawn; by default, all intervals equally often. (A proposal with another rho than
        the grid's draws its intervals unevenly.)
      weighting: (t, r) -> f32[B].
      metric: (a, b) -> f32[B]. The best published models use a perceptual distance (LPIPS), which you can pass.

    Returns:
      f32[B].

    Raises:
      ValueError: num_scales is concrete and below 2.
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, functools, jax, jax.numpy as jnp
      >>> model, config = lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig()
      >>> f, denoise = cmjax.consistency_fn(model, config), cmjax.denoiser_fn(model, config)
      >>> teacher = functools.partial(cmjax.ode.heun, denoise)
      >>> consistency_distillation(f, f, teacher, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), num_scales=18).shape
      (4,)

    References:
      Song et al. 2023, algorithm 2 and equation 7.

    Differs from the reference implementation:
      The requested metric is the one that is computed (the PyTorch code ignores the choice and always uses LPIPS).
      Student and target drop the same units on any device (there, only on a CPU).
    """
    x0 = floating("x0", x0)
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    sigma = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)
    t, r = neighbours(sigma, num_scales, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    (x_t,) = noised(x0, (t,), z_key)
    x_r = teacher(x_t, t, r, cond)
    distance = compare(f, (x_t, t), f_target, (x_r, r), cond, metric, **dropout_option(dropout_key, dropout))
    return weighting(t, r) * distance


def progressive_distillation(
    denoise: X0Fn,
    teacher: TeacherStep,
    x0: Array,
    key: Key,
    *,
    num_steps: int | Array,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    proposal: Proposal = _EVERY_INTERVAL_AS_OFTEN,
    weighting: Weighting = truncated_snr,
    metric: Metric = l2,
) -> Array:
    """Compute the progressive-distillation loss, one value per example: one step of the student is two of the teacher.

    The student takes M Euler steps (in these variables, DDIM) down the Karras grid of M + 1 points, from sigma_max to
    sigma_min. For one of them, t -> r, the teacher φ takes two steps, by way of the level m between them on a grid
    twice as fine. The target is the x̂0 with which a single Euler step lands where the teacher did:

        x_t = x0 + t z,  x_r = φ(φ(x_t, t, m), m, r),  m^(1/ρ) = (t^(1/ρ) + r^(1/ρ)) / 2,
        loss = w(t) d(D(x_t, t), sg x̂0),  x̂0 = x_t + t / (t - r) (x_r - x_t).

    A student trained with M steps is sampled with them, `ode.solve(ode.euler, denoise, sigmas, x)` on the same levels,
    `schedules.karras_sigmas(np.arange(M + 1), M + 1)`. Then it becomes the teacher of a
    student with M / 2 steps, `functools.partial(ode.euler, denoise)`, and it has been trained at all of their levels.
    `curricula.progressive_steps` halves M.

    Args:
      denoise: the denoiser D being trained, as `cmjax.denoiser_fn` makes it; it usually starts as a copy of the
        teacher's.
      teacher: the teacher's step, (x, t, r, cond) -> x at r, as for `consistency_distillation`.
      x0: f[B, *S], data.
      key: one key, for the levels, the noise and the dropout.
      num_steps: i32[], M ≥ 1, the student's steps; may be traced.
      cond: conditioning pytree, or None; the teacher gets it too.
      dropout: whether to pass the student a `key=` for dropout.
      sigma_min: where the last step ends, as in `cm.CMConfig`. With 0 its target is the teacher's own end point.
      sigma_max: where the first step begins.
      rho: how strongly the grid crowds towards sigma_min.
      proposal: how noise levels are drawn; by default, all intervals equally often.
      weighting: (t, r) -> f32[B].
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: num_steps is concrete and below 1.
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, functools, jax, jax.numpy as jnp
      >>> denoise = cmjax.denoiser_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> teacher = functools.partial(cmjax.ode.euler, denoise)
      >>> progressive_distillation(denoise, teacher, jnp.zeros((4, 8, 8, 1)), jax.random.key(0), num_steps=8).shape
      (4,)

    References:
      Salimans & Ho 2022, algorithm 2; in noise levels as by Song et al. 2023, section 6.

    Differs from the reference implementation:
      The PyTorch code of 2023 cannot run (its training loop passes this loss arguments that it does not take).
    """
    x0 = floating("x0", x0)
    if not is_traced(num_steps) and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    sigma = proposal(sigma_key, x0.shape[:1], sigma_min, sigma_max)
    t, r = neighbours(sigma, num_steps + 1, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    m = ((t ** (1 / rho) + r ** (1 / rho)) / 2) ** rho
    (x_t,) = noised(x0, (t,), z_key)
    x_r = teacher(teacher(x_t, t, m, cond), m, r, cond)
    target = jax.lax.stop_gradient(x_t + expand_like(t / (t - r), x_t) * (f32(x_r) - x_t))
    return weighting(t, r) * metric(denoise(x_t, t, cond, **dropout_option(dropout_key, dropout)), target)
