"""A part of the distillation losses of variance-preserving models: a teacher's jump between two of its timesteps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import expand_like, f32, floating, is_traced, whole
from cmjax.losses._functions import JumpFn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax.typing import ArrayLike

    from cmjax.types import Array, Cond, Key

__all__ = ["Jump", "Teacher", "ascending", "jump", "noise_level", "noised_at"]


class Rates(Protocol):
    """Anything that has the rates of timesteps 0 ... T - 1, and returns NaN for others."""

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps, T."""
        ...

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        """(α_t, σ_t), f32[B] each, for t of i32[B]."""
        ...


class Teacher(JumpFn, Rates, Protocol):
    """A trajectory function that also has the rates, and the grid that students are distilled on."""

    @property
    def grid(self) -> np.ndarray:
        """The timesteps that the student is trained at, i64[O], ascending."""
        ...


class Jump(NamedTuple):
    """Two points of the teacher's trajectories, one pair for each image.

    Attributes:
      start: (x_t, t), f32[B, *S] and i32[B].
      end: (x̂_n, n), where the teacher's step ends; it gets no gradient.
      level: i32[B], the position of n among the levels.
      start_level: i32[B], the position where the segment of t begins; 0 with one segment.
      sigmas: σ / α at t and at n, f32[B] each, for a `Weighting`.
    """

    start: tuple[Array, Array]
    end: tuple[Array, Array]
    level: Array
    start_level: Array | int
    sigmas: tuple[Array, Array]


def ascending(timesteps: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Check timesteps of a table of some size, i64[N]: whole numbers, strictly ascending, on the host."""
    if is_traced(timesteps):
        raise TypeError(
            f"timesteps must be concrete under jit: what is drawn depends on their number; got {timesteps}."
        )
    values = np.asarray(timesteps)
    if values.ndim != 1 or not values.size or not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"timesteps must be a list of whole numbers, got {timesteps!r:.60}.")
    for i in range(1, values.size):
        if values[i] <= values[i - 1]:
            raise ValueError(
                f"timesteps must be strictly ascending, but timesteps[{i}] = {values[i]} follows {values[i - 1]}."
            )
    if values[0] < 0 or values[-1] >= size:
        outside = values[0] if values[0] < 0 else values[-1]
        raise ValueError(f"timesteps must lie in [0, {size - 1}] (num_train_timesteps = {size}), got {outside}.")
    return values.astype(np.int64)


def noised_at(on: Rates, t: Array, x0: Array, z: Array) -> Array:
    """x_t = α_t x0 + σ_t z, f32[B, *S]; no gradient reaches the tables."""
    alpha, sigma = (expand_like(rate, x0) for rate in jax.lax.stop_gradient(on.rates(t)))
    return alpha * f32(x0) + sigma * z


def noise_level(on: Rates, t: Array) -> Array:
    """σ_t / α_t, f32[B], for a `Weighting`; infinite where there is no signal."""
    alpha, sigma = jax.lax.stop_gradient(on.rates(t))
    return sigma / alpha


def jump(
    teacher: Teacher,
    x0: Array,
    index_key: Key,
    z_key: Key,
    *,
    timesteps: Sequence[int] | np.ndarray | None,
    skip: int,
    cond: Cond,
    segments: int | Array = 1,
) -> tuple[Jump, Array]:
    """Noise data to timesteps of the grid, and let the teacher take it `skip` of them lower; and the levels, i32[N+1].

    The levels are the grid, preceded by timestep 0, where the lowest jumps end. No jump leaves its segment.
    """
    x0 = floating("x0", x0)
    _know_rates(teacher)
    skip = whole("skip", skip, 1)
    grid = ascending(teacher.grid if timesteps is None else timesteps, teacher.num_train_timesteps)
    if grid[-1] == 0:
        raise ValueError("timesteps must hold one above 0: at 0 there is nothing to distil.")
    levels = jnp.asarray(np.union1d([0], grid).astype(np.int32))
    i = jax.random.randint(index_key, x0.shape[:1], 1, len(levels))
    first = _first_level(i, segments, len(levels) - 1)
    below = jnp.maximum(i - skip, first)
    t, n = levels[i], levels[below]
    x_t = noised_at(teacher, t, x0, jax.random.normal(z_key, x0.shape, jnp.float32))
    x_n = jax.lax.stop_gradient(teacher(x_t, t, n, cond))
    return Jump((x_t, t), (x_n, n), below, first, (noise_level(teacher, t), noise_level(teacher, n))), levels


def _first_level(i: Array, segments: int | Array, intervals: int) -> Array | int:
    """Where the segment of level i ≥ 1 begins, of so many equal ones: the k of a sampler's k steps on this grid."""
    if not is_traced(segments):
        if not 1 <= segments <= intervals:
            raise ValueError(f"segments must lie in [1, {intervals}], the size of the grid, got {segments}.")
        if segments == 1:
            return 0
    segments = jnp.asarray(segments, jnp.int32)
    before = (i - 1) * segments // intervals
    return (before * intervals + segments - 1) // segments


def _know_rates(teacher: Any) -> None:
    if not hasattr(teacher, "rates"):
        got = type(teacher).__name__
        raise TypeError(f"teacher must be a trajectory function, as cmjax.tcd.trajectory_fn makes it, got a {got}.")
