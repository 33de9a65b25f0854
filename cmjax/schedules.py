"""The tables of the papers: noise levels, betas and timesteps, in NumPy float64 on the host. Imports no JAX.

Tables are computed in double precision, and cast once to float32 by the sampler that uses them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import numpy as np

__all__ = [
    "BETA_SCHEDULES",
    "DEFAULT_ETA",
    "SPACINGS",
    "alphas_cumprod",
    "betas",
    "boundary_scalings",
    "flux2_mu",
    "karras_sigmas",
    "landing",
    "rates",
    "respaced",
    "sigma_to_timestep",
    "spread",
    "training_grid",
    "zero_terminal_snr",
]

Table = np.ndarray

_P = ParamSpec("_P")

MOST_TIMESTEPS = 10**6  # published models have 1,000; a table has to fit in memory

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def _cached(function: Callable[_P, Table]) -> Callable[_P, Table]:
    """Cache the tables of the last few configs. They are read-only, since callers share them."""

    @functools.lru_cache(maxsize=64)
    @functools.wraps(function)
    def cached(*args: _P.args, **kwargs: _P.kwargs) -> Table:
        table = function(*args, **kwargs)
        table.setflags(write=False)
        return table

    return cached  # pyright: ignore[reportReturnType] (lru_cache forgets the arguments)


# ---- consistency models: noise levels --------------------------------------------------------------------------------


def karras_sigmas(
    indices: Sequence[float] | Table,
    num_levels: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Table:
    """Compute noise levels of the Karras grid; index 0 is the noisiest.

    σ(i) = (σ_max^(1/ρ) + i / (N - 1) · (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ

    Args:
      indices: positions i on the grid, in [0, N - 1]; fractions lie between grid points.
      num_levels: N.
      sigma_min: the last level, at i = N - 1.
      sigma_max: the first level, at i = 0.
      rho: how strongly the grid crowds towards sigma_min.

    Returns:
      f64[len(indices)].

    Example:
      >>> karras_sigmas([0, 22, 39], 40).round(4)
      array([8.0000e+01, 1.3824e+00, 2.0000e-03])

    References:
      Karras et al. 2022, equation 5.
    """
    ramp = np.asarray(indices, np.float64) / max(num_levels - 1, 1)
    lowest, highest = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (highest + ramp * (lowest - highest)) ** rho


SPACINGS = ("karras", "exponential", "beta")


def respaced(spacing: str, highest: float, lowest: float, num_levels: int) -> Table:
    """Space noise levels anew between two ends, from the highest.

    Args:
      spacing: `"karras"`, even in σ^(1/7); `"exponential"`, even in ln σ; or `"beta"`, the quantiles of a beta
        distribution with both parameters 0.6, which is dense at both ends.
      highest: the first level.
      lowest: the last level, above 0.
      num_levels: n; one level is the highest.

    Returns:
      f64[n].

    Raises:
      ValueError: spacing is another one.

    Example:
      >>> respaced("exponential", 1.0, 0.01, 3)
      array([1.  , 0.1 , 0.01])

    References:
      Karras et al. 2022, equation 5; Lee et al. 2024, "Beta Sampling is All You Need".
    """
    ramp = np.linspace(0.0, 1.0, num_levels)
    match spacing:
        case "karras":
            first, last = highest ** (1 / 7.0), lowest ** (1 / 7.0)
            return (first + ramp * (last - first)) ** 7.0
        case "exponential":
            return np.exp(np.linspace(math.log(highest), math.log(lowest), num_levels))
        case "beta":
            from scipy.special import betaincinv  # only here, since it takes a second to import

            return lowest + betaincinv(0.6, 0.6, 1.0 - ramp) * (highest - lowest)
    raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}.")


def flux2_mu(image_seq_len: int, num_steps: int) -> float:
    """Compute the mu of FLUX.2's pipelines, which fits the shift of a flow to the size of the picture and the steps.

    It is linear in the steps, between a line in the tokens at 10 steps and one at 200. Above 4300 tokens it is the
    latter, whatever the steps. Other models have `image_seq_len` of `flow.init`.

    Args:
      image_seq_len: the number of tokens that the network makes of a picture.
      num_steps: of the path.

    Returns:
      mu, for `flow.init(config, num_steps, spacing="trailing", mu=mu)`.

    Example:
      >>> round(flux2_mu(4096, 4), 4), round(flux2_mu(4096, 200), 4)
      (2.2912, 1.15)
    """
    at_200 = 1.6927e-4 * image_seq_len + 0.45666666
    if image_seq_len > 4300:
        return at_200
    at_10 = 8.73809524e-5 * image_seq_len + 1.89833333
    return at_200 + (200 - num_steps) / 190 * (at_10 - at_200)


def sigma_to_timestep(sigma: float | Table) -> Table:
    """Convert a noise level to the timestep that a consistency model is told: 1000 · ¼ ln σ.

    Example:
      >>> sigma_to_timestep(80.0).round(3)
      np.float64(1095.507)
    """
    return 250.0 * np.log(np.asarray(sigma, np.float64))


# ---- variance-preserving models: betas -------------------------------------------------------------------------------


def betas(schedule: str, beta_start: float, beta_end: float, num_train_timesteps: int) -> Table:
    """Compute β, the noise added at each training timestep, f64[T].

    Args:
      schedule: `"linear"`; `"scaled_linear"`, Stable Diffusion's, which is linear in √β; or `"squaredcos_cap_v2"`.
      beta_start: the first β; the cosine schedule has its own.
      beta_end: the last β; the cosine schedule has its own.
      num_train_timesteps: T.

    Returns:
      f64[T].

    Raises:
      ValueError: schedule is another one.

    Example:
      >>> betas("linear", 0.1, 0.3, 3)
      array([0.1, 0.2, 0.3])

    References:
      Ho et al. 2020, section 4 (linear); Nichol & Dhariwal 2021, equation 17 (cosine, capped at 0.999).
    """
    match schedule:
        case "linear":
            return np.linspace(beta_start, beta_end, num_train_timesteps)
        case "scaled_linear":
            return np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        case "squaredcos_cap_v2":
            time = np.arange(num_train_timesteps + 1) / num_train_timesteps
            signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    raise ValueError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {schedule!r}.")


def zero_terminal_snr(alphas_cumprod: Table) -> Table:
    """Shift and scale √ᾱ so that the last timestep is pure noise and the first is unchanged.

    Args:
      alphas_cumprod: f64[T], ᾱ.

    Returns:
      f64[T], whose last entry is exactly 0.

    Example:
      >>> zero_terminal_snr(np.array([0.81, 0.49, 0.25])).round(4)
      array([0.81  , 0.2025, 0.    ])

    References:
      Lin et al. 2023, algorithm 1.
    """
    alpha = np.sqrt(alphas_cumprod)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


@_cached
def alphas_cumprod(
    schedule: str = "scaled_linear",
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    num_train_timesteps: int = 1000,
    trained_betas: tuple[float, ...] | None = None,
    rescale_betas_zero_snr: bool = False,
) -> Table:
    """Compute ᾱ = ∏ (1 - β), the share of the image's variance that is left at each training timestep.

    Args:
      schedule: as for `betas`.
      beta_start: as for `betas`.
      beta_end: as for `betas`.
      num_train_timesteps: as for `betas`.
      trained_betas: f64[T], in place of the schedule.
      rescale_betas_zero_snr: whether to make the last timestep pure noise, see `zero_terminal_snr`.

    Returns:
      f64[T], decreasing, read-only.

    Raises:
      ValueError: a β is outside [0, 1], or there are not T trained betas.

    Example:
      >>> alphas_cumprod()[[0, 499, 999]].round(6)
      array([0.99915, 0.27767, 0.00466])
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}.")
    if num_train_timesteps > MOST_TIMESTEPS:
        raise ValueError(f"num_train_timesteps must be at most {MOST_TIMESTEPS}, got {num_train_timesteps}.")
    if trained_betas is None:
        beta = betas(schedule, beta_start, beta_end, num_train_timesteps)
    else:
        beta = np.asarray(trained_betas, np.float64)
    if beta.shape != (num_train_timesteps,):
        raise ValueError(
            f"trained_betas must have num_train_timesteps = {num_train_timesteps} values, got {beta.size}: "
            "change num_train_timesteps with them."
        )
    if not ((beta >= 0) & (beta <= 1)).all():
        bad = int(np.flatnonzero(~((beta >= 0) & (beta <= 1)))[0])
        raise ValueError(f"betas must lie in [0, 1], but the beta of timestep {bad} is {beta[bad]:g}.")
    table = np.cumprod(1 - beta)
    if not rescale_betas_zero_snr:
        return table
    if table[0] == table[-1]:
        raise ValueError("rescale_betas_zero_snr needs betas that add noise between the first and the last timestep.")
    return zero_terminal_snr(table)


def rates(alphas_cumprod: Table) -> tuple[Table, Table]:
    """Compute the pair (alpha, sigma) = (√ᾱ, √(1 - ᾱ)), with x = alpha x0 + sigma eps.

    Example:
      >>> rates(np.array([0.64]))
      (array([0.8]), array([0.6]))
    """
    return np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)


# ---- variance-preserving models: timesteps ---------------------------------------------------------------------------


def training_grid(num_train_timesteps: int, original_inference_steps: int, strength: float = 1.0) -> Table:
    """List the timesteps that a distilled model was trained on, from clean to noisy.

    {j k - 1 : j = 1 … ⌊O · strength⌋} with k = ⌊T / O⌋: every k-th of the T timesteps.

    Args:
      num_train_timesteps: T.
      original_inference_steps: O, in [1, T]; O = T gives every timestep.
      strength: the fraction of the grid to keep, from the clean end.

    Returns:
      i64[⌊O · strength⌋], increasing.

    Example:
      >>> training_grid(1000, 50)[[0, 1, -1]]
      array([ 19,  39, 999])

    References:
      Luo et al. 2023, section 4.3 (the skipping step k).
    """
    k = num_train_timesteps // original_inference_steps
    return np.arange(1, int(original_inference_steps * strength) + 1) * k - 1


def spread(grid: Table, num_steps: int) -> Table:
    """Pick num_steps points of a grid, evenly spaced from its noisy end.

    Args:
      grid: i64[m], increasing.
      num_steps: n <= m.

    Returns:
      i64[n], decreasing; the first is the grid's last.

    Example:
      >>> spread(training_grid(1000, 50), 4)
      array([999, 759, 499, 259])
    """
    picks = np.floor(np.linspace(0, len(grid), num_steps, endpoint=False)).astype(np.int64)
    return grid[::-1][picks]


DEFAULT_ETA = 0.3  # of TCD, as in its paper and in diffusers


def landing(eta: Any, arrivals: Table, xp: Any = np) -> Any:
    """Compute the timestep where TCD lands before it adds fresh noise: s = ⌊(1 - η) p⌋.

    1 - η is computed in η's own precision, rounded to float32, and multiplied in float32, as torch does. A Python η
    thus gives the reference's index for every p.

    Args:
      eta: η in [0, 1], a scalar, or what broadcasts against arrivals: f[n] for one per step, f[B, 1] or f[B, n].
      arrivals: i64[n], the timesteps p to arrive at.
      xp: `numpy`, or `jax.numpy` for a traced η.

    Returns:
      i32[n], or i32[B, n].

    Example:
      >>> landing(0.3, np.array([759, 499, 259, 0]))
      array([531, 349, 181,   0], dtype=int32)

    References:
      Zheng et al. 2024, algorithm 4 (where η is called γ).
    """
    kept = (1.0 - eta).astype(np.float32) if hasattr(eta, "astype") else np.float32(1.0 - eta)
    return xp.floor(kept * arrivals.astype(np.float32)).astype(np.int32)


def boundary_scalings(timesteps: Table, timestep_scaling: float, sigma_data: float = 0.5) -> tuple[Table, Table]:
    """Compute the scalings of LCM's boundary condition: x at timestep 0 is already clean.

    c_skip = σ_d² / (τ² + σ_d²), c_out = τ / √(τ² + σ_d²) with τ = timestep_scaling · t

    Args:
      timesteps: i64[n].
      timestep_scaling: how quickly the network takes over from the identity.
      sigma_data: σ_d.

    Returns:
      The pair (c_skip, c_out), each f64[n].

    Example:
      >>> [c.round(6) for c in boundary_scalings(np.array([0, 1]), 10.0)]
      [array([1.      , 0.002494]), array([0.      , 0.998752])]

    References:
      Luo et al. 2023, equation 8; the values are those of the published code.
    """
    tau = timestep_scaling * np.asarray(timesteps, np.float64)
    return sigma_data**2 / (tau**2 + sigma_data**2), tau / np.sqrt(tau**2 + sigma_data**2)
