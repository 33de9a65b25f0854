"""Trajectory consistency distillation: jumps from both ends of a teacher's step must land at the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cmjax.losses._functions import JumpFn
from cmjax.losses._pairs import compare, dropout_option
from cmjax.losses._timesteps import Teacher, jump
from cmjax.losses.metrics import Metric, l2
from cmjax.losses.weightings import Weighting, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cmjax.types import Array, Cond, Key

__all__ = ["trajectory_distillation"]


def trajectory_distillation(
    g: JumpFn,
    g_target: JumpFn,
    teacher: Teacher,
    x0: Array,
    key: Key,
    *,
    timesteps: Sequence[int] | np.ndarray | None = None,
    skip: int = 1,
    segments: int | Array = 1,
    to_start: bool = False,
    cond: Cond = None,
    student_cond: Cond = None,
    dropout: bool = False,
    weighting: Weighting = uniform,
    metric: Metric = l2,
) -> Array:
    """Compute the trajectory-consistency loss of a variance-preserving model, one value per example.

    Data is noised to a timestep t of the grid, and the teacher takes it to the next lower one, n. The jumps from both
    ends to m, any level at or below n, must agree:

        loss = w(t, n) d(g(x_t, t, m), sg g⁻(x̂_n, n, m)),  x_t = α_t x0 + σ_t z,  x̂_n = teacher(x_t, t, n)

    t is uniform over the grid, and m over the levels up to n, each drawn example by example. The levels are the grid
    and timestep 0, where the lowest step and every sampled path end. Where m is n, the target is the teacher's own
    point. This is the loss of TCD, and, with a network that is told m (any g will do), of its TCF(S+).

    With k segments, the grid is divided into k equal parts, which no jump leaves: m and n are at or above the timestep
    where the part of t begins. These timesteps are those of a path of k steps on the grid, so that k steps of
    eta 0 are what is trained. With k falling from 8 to 1 in stages, it is Hyper-SD's trajectory-segmented loss; with m
    always where the part begins (`to_start`), it is the loss of phased consistency models.

    Args:
      g: the trajectory function being trained, as `cmjax.tcd.trajectory_fn` makes it, of order 1 or 2.
      g_target: the function that computes the targets: g itself (θ⁻ = sg θ) or an average of it.
      teacher: the trajectory function of the diffusion model that is distilled, guided as you like: a DDIM step of
        `cmjax.tcd.trajectory_fn(cmjax.guidance.classifier_free(net, 7.5, null_cond), config)`. It gets no key
        (dropout is off) and no gradient. Its rates noise the data.
      x0: f[B, *S], data.
      key: one key; student and target get the same dropout.
      timesteps: i64[N], the grid, strictly ascending and concrete; by default `teacher.grid`, every ⌊T / O⌋-th timestep
        by the config's original_inference_steps.
      skip: how many levels lower n lies than t, at most down to 0: more than 1 for a dense grid.
      segments: k, from 1 to N; may be traced, i32[], where the stages of a run have one program.
      to_start: whether m is always where the segment begins, and not any level between it and n.
      cond: conditioning pytree of the teacher, or None.
      student_cond: conditioning of g and g_target, if it differs from the teacher's, for instance by a guidance scale.
      dropout: whether to pass student and target a `key=` for dropout.
      weighting: (t, n) -> f32[B], given the pair's noise levels σ / α.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: timesteps do not ascend, lie outside of the table or are all 0, or there are more segments than these.
      TypeError: x0 is not of a float dtype, timesteps are traced or fractional, or the teacher has no rates.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> g = cmjax.tcd.trajectory_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.tcd.TCDConfig())
      >>> trajectory_distillation(g, g, g, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Zheng et al. 2024, section 4.1; Kim et al. 2023 (consistency trajectory models), the idea in noise levels; Ren et
      al. 2024 (Hyper-SD), section 3.1 (segments); Wang et al. 2024 (phased consistency models), section 3.2.

    Differs from the paper:
      m starts at timestep 0, not at the first point of the grid, so that jumps to where sampling ends are trained.
      Guidance belongs to the teacher: fixed, or drawn for each example as `latent_consistency_distillation` shows.
    """
    index_key, m_key, z_key, dropout_key = jax.random.split(key, 4)
    pair, levels = jump(teacher, x0, index_key, z_key, timesteps=timesteps, skip=skip, cond=cond, segments=segments)
    first = pair.start_level
    if to_start:
        m = levels[jnp.broadcast_to(jnp.asarray(first), x0.shape[:1])]
    else:
        m = levels[jax.random.randint(m_key, x0.shape[:1], first, pair.level + 1)]
    cond = cond if student_cond is None else student_cond
    options = dropout_option(dropout_key, dropout)
    return weighting(*pair.sigmas) * compare(g, (*pair.start, m), g_target, (*pair.end, m), cond, metric, **options)
