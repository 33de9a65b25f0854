"""How training changes as it goes: discretizations N(k), consistency gaps, EMA warm-up.

Each is a small clamped function of the step k, which may be traced: following a curriculum never recompiles the
training step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

from cmjax._numerics import f32

if TYPE_CHECKING:
    from cmjax.types import Array

__all__ = ["ema_decay", "gap", "num_scales"]


def num_scales(step: int | Array, *, total_steps: int, initial: int = 10, final: int = 1280) -> Array:
    """Count the noise levels N(k) of improved consistency training: it doubles at equal intervals, then stays.

    N(k) = min(s0 · 2^⌊k / K'⌋, s1) + 1,  K' = ⌊K / (log2 ⌊s1 / s0⌋ + 1)⌋

    Args:
      step: i32[], the training step k; may be traced.
      total_steps: K.
      initial: s0.
      final: s1.

    Returns:
      i32[], from s0 + 1 to s1 + 1.

    Raises:
      ValueError: unless 1 <= initial <= final, or if `total_steps` is too few to double that often.

    Example:
      >>> [int(num_scales(k, total_steps=800)) for k in (0, 99, 100, 799, 10_000)]
      [11, 11, 21, 1281, 1281]

    References:
      Song & Dhariwal 2023, section 3.4.
    """
    if not 1 <= initial <= final:
        raise ValueError(f"1 <= initial <= final must hold, got {initial} and {final}.")
    doublings = math.log2(final // initial)
    interval = int(total_steps / (doublings + 1))
    if interval < 1:
        raise ValueError(
            f"total_steps must be at least {math.ceil(doublings + 1)} to go from {initial} to {final}, "
            f"got {total_steps}."
        )
    last = math.ceil(math.log2(final / initial))
    stage = jnp.clip(jnp.asarray(step, jnp.int32) // interval, 0, last)
    return (jnp.minimum(initial * 2**stage, final) + 1).astype(jnp.int32)


def gap(step: int | Array, stage_steps: tuple[int, ...], *, initial: float = 1.0, q: float = 2.0) -> Array:
    """Shrink the gap between the two noise levels of a pair by q at each stage: 1, 1/q, 1/q², ...

    A gap of 1 is plain denoising; the last stage's stays. See `losses.easy_consistency_tuning`.

    Args:
      step: i32[], the training step k; may be traced.
      stage_steps: how many steps each stage lasts.
      initial: the first stage's gap; less than 1 for a model that has learned to denoise.
      q: the factor between stages.

    Returns:
      f32[] in (0, 1].

    Example:
      >>> [float(gap(k, (100, 50, 50))) for k in (0, 99, 100, 150, 1000)]
      [1.0, 1.0, 0.5, 0.25, 0.25]

    References:
      Geng et al. 2024, section 3.
    """
    ends = [sum(stage_steps[: i + 1]) for i in range(len(stage_steps) - 1)]
    stage = sum((jnp.asarray(step, jnp.int32) >= end).astype(jnp.float32) for end in ends)
    return initial * f32(q) ** -f32(stage)


def ema_decay(step: int | Array, *, final: float = 0.999, span: float = 0.1) -> Array:
    """Warm an exponential moving average up: 1 - 1 / (10 + span · k), at most `final`.

    Early on the average spans the last 1 / span-th part of training, so it does not remember the initial weights.

    Example:
      >>> [round(float(ema_decay(k)), 4) for k in (0, 1000, 10**6)]
      [0.9, 0.9909, 0.999]
    """
    return jnp.minimum(1.0 - 1.0 / (10.0 + span * f32(step)), final)
