"""Flows that are told where they go: MeanFlow, by one derivative, and shortcut models, by two short steps for one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import expand_like, f32, floating
from cmjax.losses._functions import VelocityFn
from cmjax.losses._pairs import dropout_option
from cmjax.losses.metrics import Metric, l2
from cmjax.losses.proposals import TimeProposal, logit_normal

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["mean_flow", "shortcut"]

_TIMES = logit_normal()


def mean_flow(
    u: VelocityFn,
    x0: Array,
    key: Key,
    *,
    cond: Cond = None,
    improved: bool = False,
    instant: float = 0.75,
    proposal: TimeProposal = _TIMES,
    power: float = 1.0,
    dropout: bool = False,
) -> Array:
    """Compute the loss of MeanFlow, one value per example.

    Two times are drawn, t >= r, and x_t = (1 - t) x0 + t z moves with v = z - x0. The average velocity u from t to r
    has, by its definition, the derivative (t - r) du/dt = v - u along the trajectory, so

        loss = w ‖u - sg(v - (t - r) du/dt)‖² / D,  du/dt = v ∂u/∂x + ∂u/∂t,

    with D values in an example and one `jax.jvp`. The improved form takes in the derivative the velocity that the
    network itself predicts, u(x_t, t, t), in place of the noisy z - x0, and so its target is that of plain flow
    matching:

        loss = w ‖u + (t - r) sg(du/dt) - v‖² / D,  du/dt = u(x_t, t, t) ∂u/∂x + ∂u/∂t.

    The weight w = 1 / (‖·‖² + 0.001)^power has no gradient.

    Args:
      u: the velocity being trained, `parameterization.mean_flow_fn(model, config).velocity`. It must have a forward
        derivative, as all networks of `cmjax.models` have.
      x0: f[B, *S], data.
      key: one key, for times, noise and dropout.
      cond: conditioning pytree, or None.
      improved: whether to compute the improved form.
      instant: the share of examples with r = t, which are plain flow matching.
      proposal: how the two times are drawn; the larger is t.
      power: of the weight; 0 is the squared distance itself.
      dropout: whether to pass u a `key=` for dropout: one mask in all calls.

    Returns:
      f32[B].

    Raises:
      ValueError: instant is outside of [0, 1], or the network does not keep the shape.
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> g = cmjax.parameterization.mean_flow_fn(
      ...     lambda x, t, cond, s: jnp.zeros_like(x), cmjax.meanflow.MeanFlowConfig())
      >>> mean_flow(g.velocity, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Geng et al. 2025 (Mean Flows), algorithm 1 and equation 22; Geng et al. 2025 (Improved Mean Flows), algorithm 1.
    """
    x0 = floating("x0", x0)
    if not 0.0 <= instant <= 1.0:
        raise ValueError(f"instant must lie in [0, 1], got {instant}.")
    times_key, instant_key, z_key, dropout_key = jax.random.split(key, 4)
    times = proposal(times_key, (2, *x0.shape[:1]))
    t = times.max(0)
    r = jnp.where(jax.random.bernoulli(instant_key, instant, t.shape), t, times.min(0))
    z = jax.random.normal(z_key, x0.shape, jnp.float32)
    x, v = _between(f32(x0), z, t), z - f32(x0)

    options = dropout_option(dropout_key, dropout)
    towards = v if not improved else jax.lax.stop_gradient(f32(u(x, t, t, cond, **options)))
    along = towards, jnp.ones_like(t), jnp.zeros_like(r)
    out, slope = jax.jvp(lambda x, t, r: u(x, t, r, cond, **options), (x, t, r), along)
    if out.shape != x.shape:
        raise ValueError(f"u returned shape {out.shape} for x of shape {x.shape}; it must keep the shape.")
    moved = f32(out) + expand_like(t - r, x) * jax.lax.stop_gradient(f32(slope))
    error = jnp.square(moved - v).mean(tuple(range(1, x.ndim)))
    size = error * np.prod(x.shape[1:])
    return error * jax.lax.stop_gradient((size + 1e-3) ** -power)


def shortcut(
    u: VelocityFn,
    u_target: VelocityFn,
    x0: Array,
    key: Key,
    *,
    finest: int = 128,
    share: float = 0.25,
    cond: Cond = None,
    dropout: bool = False,
    metric: Metric = l2,
) -> Array:
    """Compute the loss of shortcut models, one value per example.

    The steps of a shortcut model are 1, 1/2, 1/4, ... 1/finest long. The last examples of the batch, a share of it,
    learn one step of length 2 d from two steps of length d, for a d and a time t of the grid drawn for each:

        loss = d(u(x_t, t, t - 2d), sg (u⁻(x_t, t, t - d) + u⁻(x', t - d, t - 2d)) / 2),  x' = x_t - d u⁻(x_t, t, t - d)

    All other examples are plain flow matching, the finest step: d(u(x_t, t, t - 1/finest), z - x0), with
    x_t = (1 - t) x0 + t z and t of the finest grid.

    Args:
      u: the velocity being trained, `parameterization.mean_flow_fn(model, config).velocity`.
      u_target: the frozen function of the two short steps, usually an average of u.
      x0: f[B, *S], data.
      key: one key, for times, noise and dropout.
      finest: the steps of the finest path, a power of two, at least 2.
      share: of the examples that learn a step from two, in (0, 1); rounded up, but to less than all.
      cond: conditioning pytree with the batch first, or None.
      dropout: whether to pass u and u_target a `key=` for dropout.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: finest is not a power of two, share is out of range, or x0 holds fewer than two examples.
      TypeError: x0 is not of a float dtype.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> g = cmjax.parameterization.mean_flow_fn(
      ...     lambda x, t, cond, s: jnp.zeros_like(x), cmjax.meanflow.ShortcutConfig())
      >>> shortcut(g.velocity, g.velocity, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Frans et al. 2025 (shortcut models), algorithm 1 and equation 5.

    Differs from the paper:
      Time runs from data at 0 to noise at 1, as everywhere here.
    """
    x0 = floating("x0", x0)
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest must be a power of two, at least 2, got {finest}.")
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must lie in (0, 1), got {share}.")
    if len(x0) < 2:
        raise ValueError("x0 must hold at least two examples: one for the flow, one for a step from two.")
    level_key, t_key, z_key, dropout_key = jax.random.split(key, 4)
    size = len(x0)
    plain = size - min(math.ceil(share * size), size - 1)
    options = dropout_option(dropout_key, dropout)

    # A step of 1 / steps, at a whole number of such steps from data.
    most = finest.bit_length() - 1
    level = jax.random.randint(level_key, (size,), 0, most)
    steps = f32(2 ** jnp.where(jnp.arange(size) < plain, most, level))
    t = (1.0 + jnp.floor(jax.random.uniform(t_key, (size,)) * steps)) / steps
    z = jax.random.normal(z_key, x0.shape, jnp.float32)
    x, v = _between(f32(x0), z, t), z - f32(x0)

    def two_steps(x: Array, t: Array, d: Array, cond: Cond) -> Array:
        first = f32(u_target(x, t, t - d, cond, **options))
        x = x - expand_like(d, x) * first
        return (first + f32(u_target(x, t - d, t - 2.0 * d, cond, **options))) / 2.0

    last = jax.tree.map(lambda leaf: leaf[plain:], (x, t, 0.5 / steps, cond))
    target = jax.lax.stop_gradient(jnp.concatenate([v[:plain], two_steps(*last)]))
    return metric(f32(u(x, t, t - 1.0 / steps, cond, **options)), target)


def _between(x0: Array, z: Array, t: Array) -> Array:
    """(1 - t) x0 + t z, f32[B, *S]."""
    t = expand_like(t, x0)
    return (1.0 - t) * x0 + t * z
