"""Consistency distillation in timesteps: f is the same at both ends of a variance-preserving teacher's step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from cmjax.losses._functions import X0Fn
from cmjax.losses._pairs import compare, dropout_option
from cmjax.losses._timesteps import Teacher, jump
from cmjax.losses.metrics import Metric, l2
from cmjax.losses.weightings import Weighting, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cmjax.types import Array, Cond, Key

__all__ = ["latent_consistency_distillation"]


def latent_consistency_distillation(
    f: X0Fn,
    f_target: X0Fn,
    teacher: Teacher,
    x0: Array,
    key: Key,
    *,
    timesteps: Sequence[int] | np.ndarray | None = None,
    skip: int = 1,
    cond: Cond = None,
    student_cond: Cond = None,
    dropout: bool = False,
    weighting: Weighting = uniform,
    metric: Metric = l2,
) -> Array:
    """Compute the loss of latent consistency distillation, one value per example.

    Data is noised to a timestep t of the grid, uniformly drawn, and the guided teacher takes it to the next lower one:

        loss = w(t, n) d(f(x_t, t), sg f⁻(x̂_n, n)),  x_t = α_t x0 + σ_t z,  x̂_n = teacher(x_t, t, n)

    The lowest step ends at timestep 0, where f⁻ is the identity. The paper's name speaks of latents, but the
    loss takes samples of any kind.

    Guidance belongs to the teacher. With a fixed scale it is part of the model, and the student learns that scale:

        teacher = cmjax.tcd.trajectory_fn(cmjax.guidance.classifier_free(net, 7.5, null_cond), config)

    A student of many scales is told the scale of each example, which the teacher follows:

        w = jax.random.uniform(w_key, x0.shape[:1], minval=5.0, maxval=15.0)
        teacher = cmjax.tcd.trajectory_fn(cmjax.guidance.classifier_free(net, 1.0 + w, null_cond), config)
        student_cond = {"prompt": cond, "guidance": cmjax.models.guidance_embedding(w)}

    There are two conventions. `classifier_free` takes the guidance scale of Imagen and of most samplers,
    uncond + scale (cond - uncond). The w of this paper, its scripts and its embedding is one less,
    cond + w (cond - uncond): hence the 1 + w.

    Args:
      f: the consistency function being trained, as `cmjax.lcm.consistency_fn` makes it.
      f_target: the function that computes the targets: f itself (θ⁻ = sg θ) or an average of it (published: decay
        0.95).
      teacher: the trajectory function of the guided diffusion model, as `cmjax.tcd.trajectory_fn` makes it from the
        same config: a DDIM step. It gets no key (dropout is off) and no gradient. Its rates noise the data.
      x0: f[B, *S], data.
      key: one key; student and target get the same dropout.
      timesteps: i64[N], the grid, strictly ascending and concrete; by default `teacher.grid`, every ⌊T / O⌋-th timestep
        by the config's original_inference_steps.
      skip: how many levels lower n lies than t, at most down to 0: more than 1 for a dense grid.
      cond: conditioning pytree of the teacher, or None.
      student_cond: conditioning of f and f_target, if it differs from the teacher's.
      dropout: whether to pass student and target a `key=` for dropout.
      weighting: (t, n) -> f32[B], given the pair's noise levels σ / α.
      metric: (a, b) -> f32[B]; the published scripts have `l2` and `elementwise_huber`.

    Returns:
      f32[B].

    Raises:
      ValueError: timesteps do not ascend, lie outside of the table or are all 0.
      TypeError: x0 is not of a float dtype, timesteps are traced or fractional, or the teacher has no rates.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> net, config = lambda x, t, cond: jnp.zeros_like(x), cmjax.lcm.LCMConfig()
      >>> f, teacher = cmjax.lcm.consistency_fn(net, config), cmjax.tcd.trajectory_fn(net, config)
      >>> latent_consistency_distillation(f, f, teacher, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).shape
      (4,)

    References:
      Luo et al. 2023, algorithm 1 and sections 4.2 (guidance) and 4.3 (skipping steps).

    Differs from diffusers:
      Student and target get the same dropout.
    """
    index_key, z_key, dropout_key = jax.random.split(key, 3)
    pair, _ = jump(teacher, x0, index_key, z_key, timesteps=timesteps, skip=skip, cond=cond)
    cond = cond if student_cond is None else student_cond
    options = dropout_option(dropout_key, dropout)
    return weighting(*pair.sigmas) * compare(f, pair.start, f_target, pair.end, cond, metric, **options)
