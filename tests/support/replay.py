"""The samplers once more, in plain NumPy: this room holds the formulas that the tests replay in float64.

Nothing here imports cmjax, JAX or torch. Each function reads like the algorithm box it restates, with tables in
float64 by default. Every step takes its dtype from what it is given: with float64 tables and arrays it is the
formula itself; with another implementation's float32 tables and arrays it shows how far float32 alone moves the
result, which tells a table's rounding from a mistake.

Notation: x = alpha x0 + sigma eps; `m` is the raw network output; `z` is the noise that is injected.

References:
    Song et al., "Consistency Models", 2023, Algorithm 1 and Appendix C.
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, Eq. 5.
    Zheng et al., "Trajectory Consistency Distillation", 2024, Algorithm 4.
    Luo et al., "Latent Consistency Models", 2023, Algorithm 3.
    Liu et al., "Flow Straight and Fast", 2023, Algorithm 1.
    Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", 2024, Section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "alphas_cumprod",
    "bounded",
    "cast",
    "cm_path",
    "cm_step",
    "distance",
    "flow_step",
    "karras_sigmas",
    "landing",
    "lcm_step",
    "scm_step",
    "tcd_step",
    "vp_timesteps",
    "x0_eps",
]

Array = np.ndarray[Any, Any]


def distance(a: Any, b: Any, floor: float = 0.0) -> float:
    """Measure how far two arrays are apart, as a share of the largest value of the second.

    Args:
        a: What is judged, any shape.
        b: What it is judged against, the same shape.
        floor: The share is taken of max(floor, max |b|).

    Returns:
        max |a - b| / max(floor, max |b|), inf when the shapes differ, NaN when either holds a NaN.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.max(np.abs(a - b)) / max(floor, np.max(np.abs(b))))


def cast(dtype: Any, m: Array, x: Array, z: Array) -> tuple[Array, Array, Array]:
    """Take network output, sample and noise to the dtype that a step is replayed in."""
    return m.astype(dtype), x.astype(dtype), z.astype(dtype)


# --- consistency models: noise levels -------------------------------------------------------------------------------


def karras_sigmas(ramp: Any, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Array:
    """Interpolate noise levels: f64[n], from sigma_max at ramp 0 to sigma_min at ramp 1."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + np.asarray(ramp, np.float64) * (low - high)) ** rho


def cm_path(
    num_scales: int, num_steps: int | None = None, timesteps: Sequence[float] | None = None, **karras: float
) -> tuple[Array, Array]:
    """Lay out a consistency model's path.

    Args:
        num_scales: N, the points of the grid the model was trained on.
        num_steps: Number of equally spaced grid points, counted down to grid index 0, or
        timesteps: the grid indices themselves, decreasing. Grid index 0 is the largest noise level.
        **karras: sigma_min, sigma_max and rho.

    Returns:
        Noise levels f64[n + 1], the last one sigma_min; network times f64[n] = 250 ln sigma.
    """
    if timesteps is None:
        assert num_steps is not None
        timesteps = [float(k * (num_scales // num_steps)) for k in reversed(range(num_steps))]
    sigmas = karras_sigmas(np.asarray(timesteps, np.float64)[::-1] / (num_scales - 1), **karras)
    return np.append(sigmas, karras.get("sigma_min", 0.002)), 250 * np.log(sigmas)


def cm_step(
    m: Array,
    x: Array,
    z: Array,
    sigma: Any,
    sigma_next: Any,
    *,
    sigma_min: float = 0.002,
    sigma_data: float = 0.5,
    s_noise: float = 1.0,
    clip: bool = True,
    **_: Any,
) -> tuple[Array, Array]:
    """Take one step of multistep consistency sampling: returns (x at sigma_next, x0)."""
    c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    c_out = (sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    x0 = c_out * m + c_skip * x
    if clip:
        x0 = np.clip(x0, -1, 1)
    return x0 + s_noise * np.sqrt(np.maximum(sigma_next**2 - sigma_min**2, 0)) * z, x0


# --- flows and angles -------------------------------------------------------------------------------------------------


def flow_step(m: Array, x: Array, z: Array, s: Any, s_next: Any, eta: float) -> tuple[Array, Array]:
    """Take one step of a flow from level s, m = eps - x0: returns (x at s_next, x0)."""
    x0, eps = x - s * m, x + (1 - s) * m
    r = (1 - eta) * s_next
    kept = (1 - s_next) / (1 - r)
    return kept * ((1 - r) * x0 + r * eps) + np.sqrt(np.maximum(s_next**2 - (kept * r) ** 2, 0)) * z, x0


def scm_step(m: Array, x: Array, z: Array, angle: Any, angle_next: Any, sigma_data: float) -> tuple[Array, Array]:
    """Take one step of a consistency model in angles: returns (x at the next angle, x0)."""
    x0 = np.cos(angle) * x - np.sin(angle) * sigma_data * m
    return np.cos(angle_next) * x0 + np.sin(angle_next) * sigma_data * z, x0


# --- variance preserving: tables ------------------------------------------------------------------------------------


def alphas_cumprod(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
    trained_betas: Sequence[float] | None = None,
    rescale_betas_zero_snr: bool = False,
    **_: Any,
) -> Array:
    """Tabulate the squared signal rate: f64[T]."""
    T = num_train_timesteps
    if trained_betas is not None:
        betas = np.asarray(trained_betas, np.float64)
    elif beta_schedule == "linear":
        betas = np.linspace(beta_start, beta_end, T)
    elif beta_schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2
    else:
        assert beta_schedule == "squaredcos_cap_v2"
        bar = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    table = np.cumprod(1 - betas)
    if rescale_betas_zero_snr:
        root = np.sqrt(table)
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return table


def vp_timesteps(
    num_train_timesteps: int = 1000,
    original_steps: int = 50,
    num_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    strength: float = 1.0,
) -> Array:
    """Choose the timesteps of a TCD or LCM path: i64[n], decreasing.

    Args:
        num_train_timesteps: T.
        original_steps: Points of the distillation grid {k j - 1}, with k = T // original_steps; T is the dense grid.
        num_steps: How many of them to visit, or
        timesteps: the path itself.
        strength: Share of the grid (or of the given path) that is kept, counted from its clean end.
    """
    if timesteps is not None:
        kept = min(int(len(timesteps) * strength), len(timesteps))
        return np.asarray(timesteps, np.int64)[len(timesteps) - kept :]
    assert num_steps is not None
    grid = np.arange(1, int(original_steps * strength) + 1) * (num_train_timesteps // original_steps) - 1
    chosen = np.floor(np.linspace(0, len(grid), num_steps, endpoint=False)).astype(np.int64)
    return grid[::-1][chosen]


def landing(eta: float, timestep: Any) -> Array:
    """Find TCD's landing time floor((1 - eta) t): 1 - eta in double, rounded to float32, times t in float32."""
    return np.floor(np.float32(1 - eta) * np.asarray(timestep, np.float32)).astype(np.int64)


# --- variance preserving: steps -------------------------------------------------------------------------------------


def x0_eps(prediction_type: str, m: Array, x: Array, alpha_bar: Any) -> tuple[Array, Array]:
    """Read the network output: returns (x0, eps) at squared signal rate alpha_bar."""
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return (x - sigma * m) / alpha, m
    if prediction_type == "sample":
        return m, (x - alpha * m) / sigma
    assert prediction_type == "v_prediction"
    return alpha * x - sigma * m, alpha * m + sigma * x


def bounded(
    x0: Array,
    *,
    clip_sample: bool = False,
    clip_sample_range: float = 1.0,
    thresholding: bool = False,
    dynamic_thresholding_ratio: float = 0.995,
    sample_max_value: float = 1.0,
) -> Array:
    """Keep x0 in range: by a quantile of each image's absolute values, or else by clipping, or not at all."""
    if thresholding:
        size = np.quantile(np.abs(x0.reshape(len(x0), -1)), dynamic_thresholding_ratio, axis=1).astype(x0.dtype)
        # A largest value below the floor of 1 wins, as torch.clamp has it.
        size = np.minimum(np.maximum(size, 1), sample_max_value).reshape(-1, *[1] * (x0.ndim - 1))
        return np.clip(x0, -size, size) / size
    return np.clip(x0, -clip_sample_range, clip_sample_range) if clip_sample else x0


def tcd_step(
    m: Array,
    x: Array,
    z: Array,
    table: Array,
    t: int,
    t_next: int,
    eta: float,
    prediction_type: str = "epsilon",
    **bounds: Any,
) -> tuple[Array, Array]:
    """Take one step of TCD: returns (x at t_next, x at the landing time s). The last step has t_next = 0."""
    x0, eps = x0_eps(prediction_type, m, x, table[t])
    x0 = bounded(x0, **bounds)
    bar_next, bar_s = table[t_next], table[landing(eta, t_next)]
    x_s = np.sqrt(bar_s) * x0 + np.sqrt(1 - bar_s) * eps
    return np.sqrt(bar_next / bar_s) * x_s + np.sqrt(np.maximum(1 - bar_next / bar_s, 0)) * z, x_s


def lcm_step(
    m: Array,
    x: Array,
    z: Array,
    table: Array,
    t: int,
    t_next: int | None,
    *,
    prediction_type: str = "epsilon",
    timestep_scaling: float = 10.0,
    **bounds: Any,
) -> tuple[Array, Array]:
    """Take one step of LCM: returns (x at t_next, x0). The last step has t_next = None and adds no noise."""
    x0, _eps = x0_eps(prediction_type, m, x, table[t])
    scaled = x.dtype.type(t * timestep_scaling)
    c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    x0 = c_out * bounded(x0, **bounds) + c_skip * x
    if t_next is None:
        return x0, x0
    return np.sqrt(table[t_next]) * x0 + np.sqrt(1 - table[t_next]) * z, x0
