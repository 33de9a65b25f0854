"""Protocols of the functions that losses train and follow, in noise levels, timesteps or times of a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["JumpFn", "TeacherStep", "VelocityFn", "X0Fn"]


class X0Fn(Protocol):
    """f(x, t, cond, key=) -> x0, at noise level or timestep t of f32[B] or i32[B]; a denoiser has this form too.

    Made by `cmjax.consistency_fn`, `cmjax.denoiser_fn` and `cmjax.lcm.consistency_fn`. A key is passed only with
    dropout.
    """

    def __call__(self, x: Array, t: Array, /, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Map x at t to clean data."""
        ...


class JumpFn(Protocol):
    """g(x, t, s, cond, key=) -> x at s, from noise level or timestep t to s, of f32[B] or i32[B] each.

    Made by `cmjax.parameterization.ctm_fn` and `cmjax.tcd.trajectory_fn`. A key is passed only with dropout.
    """

    def __call__(self, x: Array, t: Array, s: Array, /, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Jump from t to s <= t."""
        ...


class TeacherStep(Protocol):
    """(x, t, r, cond) -> x at r: a teacher's step from noise level t, f32[B], down to r, f32[B].

    For a diffusion model: `functools.partial(cmjax.ode.heun, cmjax.denoiser_fn(model, config))`. It gets no
    dropout key and no gradient.
    """

    def __call__(self, x: Array, t: Array, r: Array, cond: Cond, /) -> Array:
        """Take x from t to r."""
        ...


class VelocityFn(Protocol):
    """u(x, t, r, cond, key=): the average velocity from t to r <= t, f32[B] each.

    Made by `cmjax.parameterization.mean_flow_fn(model, config).velocity`. A key is passed only with dropout.
    """

    def __call__(self, x: Array, t: Array, r: Array, /, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Predict it from x at t."""
        ...
