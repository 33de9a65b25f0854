"""Teacher steps along the probability-flow ODE from one noise level to a lower one, and the walk down many levels.

A denoiser `denoise(x, sigma, cond) -> x0` estimates the clean image: `cmjax.denoiser_fn` makes it from a diffusion
model, `cmjax.consistency_fn` from a consistency model. The ODE is dx/dσ = (x - D(x, σ)) / σ (Karras et al. 2022,
equation 3). Each step here is a function of two levels, which may differ from image to image, so that losses can use
it. `solve` walks with any of them, and can add noise in two ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like, f32, is_traced, safe_sqrt
from cmjax._random import noise_if, split
from cmjax._struct import Struct

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from cmjax.types import Array, Cond, Key

__all__ = ["Churn", "Denoiser", "Step", "dpm2", "euler", "heun", "ladder", "solve"]


class Denoiser(Protocol):
    """(x, sigma, cond) -> x0: the clean estimate f[B, *S] of x, f[B, *S], at noise level sigma, f32[] or f32[B]."""

    def __call__(self, x: Array, sigma: Array, cond: Cond, /) -> Array:
        """Estimate x0."""
        ...


class Step(Protocol):
    """(denoise, x, sigma, sigma_next, cond) -> x at sigma_next: one step down, such as `euler`."""

    def __call__(self, denoise: Denoiser, x: Array, sigma: Array, sigma_next: Array, cond: Cond, /) -> Array:
        """Go from sigma to sigma_next."""
        ...


# ---- one step --------------------------------------------------------------------------------------------------------


def euler(denoise: Denoiser, x: Array, sigma: ArrayLike, sigma_next: ArrayLike, cond: Cond = None) -> Array:
    """Follow the slope at sigma: first order, one model call. In these variables it is DDIM.

    Args:
      denoise: (x, sigma, cond) -> x0.
      x: f[B, *S], at noise level sigma.
      sigma: f32[] or f32[B], above 0.
      sigma_next: f32[] or f32[B], 0 or more.
      cond: passed to the denoiser.

    Returns:
      f[B, *S], at noise level sigma_next, in x's dtype.

    Example:
      >>> euler(lambda x, sigma, cond: jnp.zeros_like(x), jnp.full((1, 2), 4.0), 2.0, 1.0)
      Array([[2., 2.]], dtype=float32)

    References:
      Karras et al. 2022, algorithm 1, line 5; Song, Meng & Ermon 2021 (DDIM).
    """
    sigma, sigma_next = f32(sigma), f32(sigma_next)
    return _moved(x, sigma_next - sigma, _slope(denoise, x, sigma, cond))


def heun(denoise: Denoiser, x: Array, sigma: ArrayLike, sigma_next: ArrayLike, cond: Cond = None) -> Array:
    """Follow the mean of the slopes at both ends: second order, two model calls (one to sigma_next = 0).

    Args:
      denoise: as for `euler`.
      x: as for `euler`.
      sigma: as for `euler`.
      sigma_next: as for `euler`.
      cond: as for `euler`.

    Returns:
      f[B, *S], at noise level sigma_next, in x's dtype.

    Example:
      >>> heun(lambda x, sigma, cond: jnp.zeros_like(x), jnp.full((1, 2), 4.0), 2.0, 1.0)
      Array([[2., 2.]], dtype=float32)

    References:
      Karras et al. 2022, algorithm 1.
    """
    sigma, sigma_next = f32(sigma), f32(sigma_next)
    slope = _slope(denoise, x, sigma, cond)
    guess = _moved(x, sigma_next - sigma, slope)
    has_slope = sigma_next > 0

    def corrected(guess: Array, slope: Array) -> Array:
        slope_next = _slope(denoise, guess, jnp.where(has_slope, sigma_next, sigma), cond)
        return _moved(x, sigma_next - sigma, (slope + slope_next) / 2)

    if has_slope.ndim == 0:
        return jax.lax.cond(has_slope, corrected, lambda guess, slope: guess, guess, slope)
    return jnp.where(expand_like(has_slope, x), corrected(guess, slope), guess)


def dpm2(denoise: Denoiser, x: Array, sigma: ArrayLike, sigma_next: ArrayLike, cond: Cond = None) -> Array:
    """Follow the slope at the midpoint in σ^(1/3): second order, two model calls.

    Args:
      denoise: as for `euler`.
      x: as for `euler`.
      sigma: as for `euler`.
      sigma_next: as for `euler`.
      cond: as for `euler`.

    Returns:
      f[B, *S], at noise level sigma_next, in x's dtype.

    Example:
      >>> dpm2(lambda x, sigma, cond: jnp.zeros_like(x), jnp.full((1, 2), 4.0), 2.0, 1.0)
      Array([[2., 2.]], dtype=float32)

    References:
      Lu et al. 2022 (DPM-Solver-2), with the midpoint of the published consistency-model code.
    """
    sigma, sigma_next = f32(sigma), f32(sigma_next)
    middle = ((jnp.cbrt(sigma) + jnp.cbrt(sigma_next)) / 2.0) ** 3
    halfway = _moved(x, middle - sigma, _slope(denoise, x, sigma, cond))
    return _moved(x, sigma_next - sigma, _slope(denoise, halfway, middle, cond))


def _slope(denoise: Denoiser, x: Array, sigma: Array, cond: Cond) -> Array:
    """dx/dσ = (x - D(x, σ)) / σ, f32[B, *S]."""
    x0 = denoise(x, sigma, cond)
    if x0.shape != x.shape:
        raise ValueError(f"denoise returned shape {x0.shape} for x of shape {x.shape}; it must keep the shape.")
    return (f32(x) - f32(x0)) / expand_like(sigma, x)


def _moved(x: Array, by: Array, slope: Array) -> Array:
    return (f32(x) + expand_like(by, x) * slope).astype(x.dtype)


# ---- the walk --------------------------------------------------------------------------------------------------------


class Churn(Struct):
    """Raise the noise before each step, so that the step corrects earlier errors. Four leaves, f32[].

    Attributes:
      amount: S_churn; each of n steps raises σ by the share min(S_churn / n, √2 - 1). 0 adds no noise.
      sigma_min: the lowest level that is raised.
      sigma_max: the highest level that is raised.
      noise_scale: S_noise, the standard deviation of the noise that is added.

    References:
      Karras et al. 2022, algorithm 2.
    """

    amount: ArrayLike = 0.0
    sigma_min: ArrayLike = 0.0
    sigma_max: ArrayLike = float("inf")
    noise_scale: ArrayLike = 1.0


_NO_CHURN = Churn()


def ladder(num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """Make levels to walk down: num_steps levels of the Karras grid, then 0.

    Args:
      num_steps: n, at least 1.
      sigma_min: the last level above 0.
      sigma_max: the first level.
      rho: how strongly the levels crowd towards sigma_min.

    Returns:
      f64[n + 1].

    Raises:
      ValueError: num_steps is less than 1, or 0 < sigma_min < sigma_max does not hold.

    Example:
      >>> ladder(3).round(4)
      array([8.0000e+01, 2.5152e+00, 2.0000e-03, 0.0000e+00])

    References:
      Karras et al. 2022, equation 5.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"0 < sigma_min < sigma_max must hold, got {sigma_min:g} and {sigma_max:g}.")
    return np.append(schedules.karras_sigmas(np.arange(num_steps), num_steps, sigma_min, sigma_max, rho), 0.0)


def solve(
    step: Step,
    denoise: Denoiser,
    sigmas: ArrayLike,
    x: Array,
    key: Key | None = None,
    cond: Cond = None,
    *,
    eta: ArrayLike = 0.0,
    churn: Churn = _NO_CHURN,
) -> Array:
    """Walk down a ladder of noise levels, in one `lax.scan`; under `jax.jit`, with `step` static.

    Without a key the walk is deterministic. With a key it can add noise in two ways: `churn` raises the noise before
    each step; eta steps below the next level and returns to it with fresh noise (`euler` with eta 1 is Euler
    ancestral).

    Args:
      step: `euler`, `heun`, `dpm2`, or a function like them.
      denoise: (x, sigma, cond) -> x0.
      sigmas: f32[n + 1], descending; ends at 0, or above it. May be traced.
      x: f[B, *S] at noise level sigmas[0].
      key: one key, or one for each image; None for no noise.
      cond: passed on to the denoiser.
      eta: f32[] in [0, 1]. A leaf.
      churn: how much noise is added before a step. Its numbers are leaves.

    Returns:
      f[B, *S] at noise level sigmas[-1], in x's dtype.

    Raises:
      ValueError: there are fewer than two levels, they do not descend, or noise is requested without a key.

    Example:
      >>> denoise = lambda x, sigma, cond: x / (1 + sigma**2)  # of data with standard deviation 1
      >>> x = solve(heun, denoise, ladder(80), 80.0 * jnp.ones((1, 2)))
      >>> x.round(2)
      Array([[1., 1.]], dtype=float32)

    References:
      Karras et al. 2022, algorithms 1 and 2; Song, Meng & Ermon 2021, equation 16 (eta).
    """
    levels = _checked(sigmas)
    if key is None and not (_is_zero(eta) and _is_zero(churn.amount)):
        raise ValueError("eta and churn add noise, which needs a key.")
    sigma, sigma_next = levels[:-1], levels[1:]
    raised = sigma * (1.0 + _shares(churn, sigma))
    added = f32(churn.noise_scale) * safe_sqrt((raised - sigma) * (raised + sigma))
    fresh = f32(eta) * sigma_next * safe_sqrt((raised - sigma_next) * (raised + sigma_next)) / raised
    landed = safe_sqrt((sigma_next - fresh) * (sigma_next + fresh))

    def noised(x: Array, key: Key | None, std: Array) -> Array:
        if key is None:
            return x
        return (f32(x) + std * noise_if(std > 0, key, x.shape)).astype(x.dtype)

    def body(x: Array, at: Any) -> tuple[Array, None]:
        raised, added, landed, fresh, keys = at
        before, after = (None, None) if keys is None else split(keys, 2)
        x = step(denoise, noised(x, before, added), raised, landed, cond)
        return noised(x, after, fresh), None

    keys = None if key is None else split(key, len(sigma))
    return jax.lax.scan(body, x, (raised, added, landed, fresh, keys))[0]


def _checked(sigmas: ArrayLike) -> Array:
    levels: Any = sigmas if is_traced(sigmas) else np.asarray(sigmas, np.float64)
    if np.ndim(levels) != 1 or len(levels) < 2:
        raise ValueError(f"sigmas must be two or more noise levels, got shape {np.shape(levels)}.")
    if not is_traced(levels) and not ((np.diff(levels) < 0).all() and levels[-1] >= 0):
        raise ValueError(f"sigmas must descend strictly, to 0 or above, got {levels}.")
    return f32(levels)


def _shares(churn: Churn, sigma: Array) -> Array:
    """Compute the share by which each level is raised, f32[n]."""
    most = jnp.minimum(f32(churn.amount) / len(sigma), np.float32(np.sqrt(2.0) - 1.0))
    return jnp.where((sigma >= churn.sigma_min) & (sigma <= churn.sigma_max), most, 0.0)


def _is_zero(value: ArrayLike) -> bool:
    return not is_traced(value) and not np.any(np.asarray(value))
