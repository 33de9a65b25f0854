"""Curricula: functions of the training step for noise levels N(k), gaps, student steps M(k) and decays of averages.

Each is a small function of the step k, clamped past its end. The step may be traced, so following a curriculum never
recompiles the training step. Values that change in jumps come from a table made on the host, so that rounding on a
device cannot move a jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, whole

if TYPE_CHECKING:
    from cmjax.types import Array

__all__ = [
    "ema_decay",
    "gap",
    "num_scales",
    "power_ema_decay",
    "power_ema_exponent",
    "power_ema_std",
    "progressive_scales",
    "progressive_steps",
    "tangent_warmup",
    "target_decay",
]


# ---- noise levels ----------------------------------------------------------------------------------------------------


def num_scales(step: int | Array, *, total_steps: int, initial: int = 10, final: int = 1280) -> Array:
    """Count the noise levels N(k) of improved consistency training: it doubles at equal intervals, then stays constant.

    N(k) = min(s0 · 2^⌊k / K'⌋, s1) + 1,  K' = ⌊K / (log2 ⌊s1 / s0⌋ + 1)⌋

    Args:
      step: i32[], the training step k; may be traced.
      total_steps: K.
      initial: s0.
      final: s1.

    Returns:
      i32[], from s0 + 1 to s1 + 1.

    Raises:
      ValueError: 1 <= initial <= final does not hold, or total_steps is too small for that many doublings.

    Example:
      >>> [int(num_scales(k, total_steps=800)) for k in (0, 99, 100, 799, 10_000)]
      [11, 11, 21, 1281, 1281]

    References:
      Song & Dhariwal 2023, section 3.4.
    """
    _check_ends(initial, final)
    doublings = math.log2(final // initial)
    interval = int(total_steps / (doublings + 1))
    if interval < 1:
        raise ValueError(
            f"total_steps must be at least {math.ceil(doublings + 1)} to go from {initial} to {final}, "
            f"got {total_steps}."
        )
    scales = [initial]
    while scales[-1] < final:
        scales.append(min(2 * scales[-1], final))
    return _at(step, interval * np.arange(1, len(scales)), np.array(scales, np.int32) + 1)


def progressive_scales(step: int | Array, *, total_steps: int, initial: int = 2, final: int = 150) -> Array:
    """Count the noise levels N(k) of the first consistency training: N² grows evenly, then stays constant.

    N(k) = s(k) + 1,  s(k) = max(⌈√(k/K ((s1 + 1)² - s0²) + s0²) - 1⌉, 1)

    Args:
      step: i32[], the training step k; may be traced.
      total_steps: K.
      initial: s0; the very first step has s0 levels, the second s0 + 1.
      final: s1; 150 for CIFAR-10 and LSUN, 200 on ImageNet.

    Returns:
      i32[], from max(s0, 2) to s1 + 1.

    Raises:
      ValueError: 1 <= initial <= final or total_steps >= 1 does not hold.

    Example:
      >>> [int(progressive_scales(k, total_steps=800_000)) for k in (0, 1, 400_000, 800_000, 10**9)]
      [2, 3, 107, 151, 151]

    References:
      Song et al. 2023, appendix C.

    Differs from the reference implementation:
      It stays at s1 + 1 past K, where the reference keeps growing. Rounding moves no jump (in float32 arithmetic, 4 of
      these 800 thousand steps would be off by one level).
    """
    return _at(step, *_intervals(total_steps, initial, final)) + 1


def target_decay(
    step: int | Array, *, total_steps: int, decay: float = 0.9, initial: int = 2, final: int = 150
) -> Array:
    """Compute the decay of the target's average, which is slower the more noise levels there are.

    μ(k) = exp(s0 ln μ0 / s(k)),  with s(k) = N(k) - 1 of `progressive_scales`

    Args:
      step: i32[], the training step k; may be traced.
      total_steps: K.
      decay: μ0, the decay at N = s0 + 1 levels; 0.9 for CIFAR-10, 0.95 for ImageNet and LSUN.
      initial: s0.
      final: s1.

    Returns:
      f32[], from exp(s0 ln μ0 / max(s0 - 1, 1)) to exp(s0 ln μ0 / s1).

    Raises:
      ValueError: as for `progressive_scales`, or decay is not above 0 and below 1.

    Example:
      >>> [round(float(target_decay(k, total_steps=800_000)), 6) for k in (0, 1, 100_000, 800_000, 10**9)]
      [0.81, 0.9, 0.996032, 0.998596, 0.998596]

    References:
      Song et al. 2023, appendix C.

    Differs from the paper:
      It divides by s(k), as the reference implementation does; the paper divides by N(k).
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"decay must be above 0 and below 1, got {decay}.")
    changes, intervals = _intervals(total_steps, initial, final)
    return _at(step, changes, np.exp(initial * math.log(decay) / intervals).astype(np.float32))


def gap(step: int | Array, stage_steps: Sequence[int], *, initial: float = 1.0, q: float = 2.0) -> Array:
    """Shrink the gap between the two noise levels of a pair by q at each stage: 1, 1/q, 1/q², ...

    A gap of 1 is plain denoising. The last stage's gap stays. See `losses.easy_consistency_tuning`.

    Args:
      step: i32[], the training step k; may be traced.
      stage_steps: how many steps each stage lasts.
      initial: the first stage's gap; less than 1 for a model that has learned to denoise.
      q: the factor between stages, 1 or more.

    Returns:
      f32[] in (0, 1].

    Raises:
      ValueError: there is no stage, `initial` is outside (0, 1] or `q` is less than 1.

    Example:
      >>> [float(gap(k, (100, 50, 50))) for k in (0, 99, 100, 150, 1000)]
      [1.0, 1.0, 0.5, 0.25, 0.25]

    References:
      Geng et al. 2024, section 3.
    """
    if not 0.0 < initial <= 1.0:
        raise ValueError(f"initial must lie in (0, 1], got {initial}. (1 is plain denoising.)")
    if not q >= 1.0:
        raise ValueError(f"q must be at least 1, since gaps shrink, got {q}.")
    gaps = initial / q ** np.arange(len(stage_steps), dtype=np.float64)
    return _at(step, _stage_starts(stage_steps), gaps.astype(np.float32))


# ---- student steps ---------------------------------------------------------------------------------------------------


def progressive_steps(step: int | Array, stage_steps: Sequence[int], *, final: int = 1) -> Array:
    """Count the student's steps M(k) of progressive distillation: they halve at each stage, down to `final`.

    Where M(k) halves, the student (or its average) becomes the teacher. See `losses.progressive_distillation`.

    Args:
      step: i32[], the training step k; may be traced.
      stage_steps: how many training steps each stage lasts; the last stage stays. Published values are 50 thousand
        each, and 100 thousand for the stages of 2 steps and of 1.
      final: M of the last stage. The first stage has final · 2^(stages - 1), and its teacher twice as many.

    Returns:
      i32[].

    Raises:
      ValueError: there is no stage, or `final` is less than 1.

    Example:
      >>> [int(progressive_steps(k, (50, 50, 100, 100))) for k in (0, 49, 50, 100, 199, 200, 1000)]
      [8, 8, 4, 2, 2, 1, 1]

    References:
      Salimans & Ho 2022, algorithm 2 and section 5.
    """
    whole("final", final, 1)
    steps = [final * 2**stage for stage in reversed(range(len(stage_steps)))]
    return _at(step, _stage_starts(stage_steps), np.array(steps, np.int32))


# ---- tangents --------------------------------------------------------------------------------------------------------


def tangent_warmup(step: int | Array, *, warmup_steps: int = 10_000) -> Array:
    """Warm up the unstable part of the tangent, min(1, k / H): the `warmup` of `losses.continuous_consistency`.

    Args:
      step: i32[], the training step k; may be traced.
      warmup_steps: H; 0 for no warm-up.

    Returns:
      f32[] in [0, 1].

    Raises:
      ValueError: warmup_steps is less than 0.

    Example:
      >>> [float(tangent_warmup(k, warmup_steps=100)) for k in (0, 25, 100, 1000)]
      [0.0, 0.25, 1.0, 1.0]

    References:
      Lu & Song 2024, algorithm 1.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}.")
    if warmup_steps == 0:
        return jnp.ones((), jnp.float32)
    return jnp.minimum(f32(step) / warmup_steps, 1.0)


# ---- averages of the weights -----------------------------------------------------------------------------------------


def ema_decay(step: int | Array, *, final: float = 0.999, span: float = 0.1) -> Array:
    """Warm up an exponential moving average: decay 1 - 1 / (10 + span · k), at most `final`.

    Early in training the average covers the last 1 / span-th part of it, so it forgets the initial weights.

    Example:
      >>> [round(float(ema_decay(k)), 4) for k in (0, 1000, 10**6)]
      [0.9, 0.9909, 0.999]
    """
    return jnp.minimum(1.0 - 1.0 / (10.0 + span * f32(step)), final)


def power_ema_decay(step: int | Array, *, std: float = 0.1) -> Array:
    """Compute the decay of an average over a fixed share of the training so far: β(k) = (1 - 1 / (k + 1))^(γ + 1).

    At any time, the weights of step t have weight t^γ. The first update (k = 0) forgets the initial weights.

    Args:
      step: i32[], how many updates the average has had, k; may be traced.
      std: the standard deviation of t^γ over training, as a share of its length; it determines γ, see
        `power_ema_exponent`.

    Returns:
      f32[] in [0, 1).

    Raises:
      ValueError: 0 < std <= 1 / √12 does not hold.

    Example:
      >>> [round(float(power_ema_decay(k)), 5) for k in (0, 1, 100, 100_000)]
      [0.0, 0.00408, 0.92406, 0.99992]

    References:
      Karras et al. 2024, section 3.1 and algorithm 2.
    """
    share = -1.0 / (f32(step) + 1.0)
    return jnp.exp((power_ema_exponent(std) + 1.0) * jnp.log1p(share))  # 1 - 1/n alone loses 1/n to rounding


def power_ema_exponent(std: float) -> float:
    """Find the γ at which t^γ on [0, 1] has this standard deviation.

    The root γ >= 0 of std² = (γ + 1) / ((γ + 2)² (γ + 3)), a cubic equation.

    Args:
      std: above 0, at most 1 / √12 = 0.2886..., which is the flat average, γ = 0.

    Returns:
      γ.

    Raises:
      ValueError: std is outside that range.

    Example:
      >>> [round(power_ema_exponent(std), 3) for std in (0.05, 0.1)]
      [16.972, 6.937]

    References:
      Karras et al. 2024, section 3.1 and algorithm 2.
    """
    if not 0.0 < std <= 12**-0.5:
        raise ValueError(f"std must be above 0 and at most 1 / √12 = {12**-0.5:.4f}, got {std}.")
    inverse = std**-2.0
    return float(max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max(), 0.0))


def power_ema_std(exponent: float) -> float:
    """Measure the standard deviation of t^γ on [0, 1]: √((γ + 1) / ((γ + 2)² (γ + 3))).

    Args:
      exponent: γ >= 0.

    Returns:
      The standard deviation.

    Raises:
      ValueError: exponent is below 0.

    Example:
      >>> round(power_ema_std(6.937), 4)
      0.1

    References:
      Karras et al. 2024, section 3.1.
    """
    if not exponent >= 0.0:
        raise ValueError(f"exponent must be at least 0, got {exponent}.")
    return math.sqrt((exponent + 1.0) / ((exponent + 2.0) ** 2 * (exponent + 3.0)))


# ---- tables ----------------------------------------------------------------------------------------------------------


def _at(step: int | Array, changes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Array:
    """Read a table: values[0] before step changes[0], then values[1], ..., and the last from changes[-1] on."""
    k, starts = jnp.asarray(step, jnp.int32), np.asarray(changes, np.int32)
    return jnp.asarray(values)[jnp.searchsorted(starts, k, side="right", method="compare_all")]


def _stage_starts(stage_steps: Sequence[int]) -> np.ndarray[Any, Any]:
    """Where the second stage starts, and the third, ..."""
    if not len(stage_steps):
        raise ValueError("stage_steps must have at least one stage.")
    return np.cumsum(stage_steps[:-1])


def _intervals(total_steps: int, initial: int, final: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Tabulate s(k) of `progressive_scales`: the steps at which it grows, and its values.

    It reaches m where k ((s1 + 1)² - s0²) > K (m² - s0²), which integer arithmetic decides exactly.
    """
    _check_ends(initial, final)
    whole("total_steps", total_steps, 1)
    intervals = range(max(initial - 1, 1), final + 1)
    growth = (final + 1) ** 2 - initial**2
    changes = [total_steps * (m**2 - initial**2) // growth + 1 for m in intervals[1:]]
    return np.array(changes), np.array(intervals)


def _check_ends(initial: int, final: int) -> None:
    if not 1 <= initial <= final:
        raise ValueError(f"1 <= initial <= final must hold, got {initial} and {final}.")
