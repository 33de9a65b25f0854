"""Consistency trajectory models: jumps from any noise level to any lower one that agree where they land."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp

from cmjax._numerics import f32, floating, whole
from cmjax.losses._functions import JumpFn, TeacherStep
from cmjax.losses._pairs import dropout_option, grid_level, grid_size, noised
from cmjax.losses.metrics import Metric, l2
from cmjax.losses.weightings import Weighting, uniform

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["balance", "consistency_trajectory"]

T = TypeVar("T")


def consistency_trajectory(
    g: JumpFn,
    g_target: JumpFn,
    teacher: TeacherStep,
    x0: Array,
    key: Key,
    *,
    num_scales: int | Array = 18,
    max_steps: int = 17,
    cond: Cond = None,
    dropout: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    weighting: Weighting = uniform,
    metric: Metric = l2,
) -> Array:
    """Compute the loss of consistency trajectory models without its adversarial term, one value per example.

    Take t > u >= s >= sigma_min on the Karras grid of N points. The teacher walks from t down to u, k points further,
    and the jump from t to s must land where the jump from u to s does. The frozen G⁻ maps both to clean samples,
    which are compared:

        loss = w(t, s) d(G⁻(G(x_t, t, s), s, sigma_min), sg G⁻(G⁻(x_u, u, s), s, sigma_min)),  x_u = teacher^k(x_t).

    One k is drawn for the batch, with P(k) ∝ k up to max_steps; t and s are drawn for each example, uniformly over the
    rest of the grid. Steps beyond k are not computed, and another k does not recompile.

    Add the other term of the paper, `losses.denoising(g.denoise, x0, key)`, which teaches g(x, t, t), and weigh it with
    `balance` or by a number.

    Args:
      g: the jump being trained, as `parameterization.ctm_fn` makes it.
      g_target: the frozen function, usually an average of g. Its leaves get no gradient; if it is not a pytree, it must
        not hold what is being differentiated.
      teacher: the teacher's step, (x, t, u, cond) -> x at u, such as `functools.partial(cmjax.ode.heun, denoise)` with
        the denoiser of `cmjax.denoiser_fn`. It gets no dropout key and no gradient.
      x0: f[B, *S], data.
      key: one key, for levels, noise and dropout.
      num_scales: i32[], N >= 2; may be traced.
      max_steps: the largest number of teacher steps, k; static. A grid with fewer points limits it further.
      cond: conditioning pytree, or None.
      dropout: whether to pass g and g_target a `key=` for dropout, the same to all.
      sigma_min: the smallest noise, as in `cm.CMConfig`.
      sigma_max: the largest.
      rho: how strongly the grid crowds towards sigma_min.
      weighting: (t, s) -> f32[B].
      metric: (a, b) -> f32[B], of clean samples; the paper's is LPIPS.

    Returns:
      f32[B].

    Raises:
      ValueError: num_scales is concrete and below 2, or max_steps is below 1.
      TypeError: x0 is not of a float dtype, or max_steps is not a Python int.

    Example:
      >>> import cmjax, functools, jax, jax.numpy as jnp
      >>> config = cmjax.cm.CMConfig()
      >>> g = cmjax.parameterization.ctm_fn(lambda x, t, cond, s: jnp.zeros_like(x), config)
      >>> step = functools.partial(cmjax.ode.heun, cmjax.denoiser_fn(lambda x, t, cond: jnp.zeros_like(x), config))
      >>> consistency_trajectory(g, g, step, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Kim et al. 2023, equations 9 to 11, algorithm 1 and appendix C.

    Differs from the paper:
      Published code jumps from u to s with g itself, frozen, and uses g_target for the last jump only; here, as the
      paper writes it, g_target makes both.
    """
    x0 = floating("x0", x0)
    max_steps = whole("max_steps", max_steps, 1)
    k_key, t_key, s_key, z_key, dropout_key = jax.random.split(key, 5)
    batch, last = x0.shape[:1], jnp.asarray(grid_size(num_scales), jnp.int32) - 1

    k = _steps(k_key, jnp.minimum(max_steps, last))
    i_t = jax.random.randint(t_key, batch, 0, last - k + 1)  # grid index 0 is the noisiest
    i_s = jax.random.randint(s_key, batch, i_t + k, last + 1)

    def level(i: Array) -> Array:
        return grid_level(last - i, f32(last), sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

    def walk(x: Array, j: Array) -> tuple[Array, None]:
        def onwards(x: Array) -> Array:
            return f32(teacher(x, level(i_t + j), level(i_t + j + 1), cond))

        return jax.lax.cond(j < k, onwards, lambda x: x, x), None

    t, u, s, end = level(i_t), level(i_t + k), level(i_s), jnp.full(batch, sigma_min, jnp.float32)
    (x_t,) = noised(x0, (t,), z_key)
    x_u = jax.lax.stop_gradient(jax.lax.scan(walk, jax.lax.stop_gradient(x_t), jnp.arange(max_steps))[0])

    options, frozen = dropout_option(dropout_key, dropout), _frozen(g_target)
    landed = g(x_t, t, s, cond, **options)
    target = frozen(x_u, u, s, cond, **options)
    clean, clean_target = (frozen(x, s, end, cond, **options) for x in (landed, target))
    return weighting(t, s) * metric(clean, jax.lax.stop_gradient(clean_target))


def balance(main: Callable[[Any], Array], other: Callable[[Any], Array], params: Any) -> Array:
    """Compute the weight of another loss that gives it a gradient as large as the main one's: ‖∇main‖ / ‖∇other‖.

    Args:
      main: params -> f32[], a loss.
      other: params -> f32[], the loss to weight.
      params: a pytree of arrays. The paper takes only those of the network's last layer, so that only that layer is
        differentiated twice.

    Returns:
      f32[], min(‖∇main‖ / (‖∇other‖ + 1e-4), 1e4); it gets no gradient.

    Example:
      >>> round(float(balance(lambda w: 6.0 * w, lambda w: 2.0 * w, jnp.ones(()))), 2)
      3.0

    References:
      Kim et al. 2023, section 3.3 (adaptive weights); Esser et al. 2021, equation 7.
    """
    top, bottom = (_global_norm(jax.grad(loss)(params)) for loss in (main, other))
    return jax.lax.stop_gradient(jnp.minimum(top / (bottom + 1e-4), 1e4))


def _steps(key: Key, most: Array) -> Array:
    """Draw k in 1 … most with P(k) ∝ k, i32[]: the inverse of its distribution function."""
    area = jax.random.uniform(key) * f32(most * (most + 1))  # P(k <= i) = i (i + 1) / (most (most + 1))
    return jnp.clip(jnp.ceil((jnp.sqrt(1.0 + 4.0 * area) - 1.0) / 2.0).astype(jnp.int32), 1, most)


def _frozen(tree: T) -> T:
    """Return the same function, with no gradient to its leaves."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def _global_norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.square(f32(leaf)).sum() for leaf in jax.tree.leaves(tree)))
