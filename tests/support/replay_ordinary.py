"""The ordinary samplers once more, in plain NumPy: DDIM, Euler, ancestral Euler, DPM-Solver++ and Heun.

As in `replay`, each step takes its dtype from what it is given: in float64 it is the formula, and with another
implementation's float32 levels it shows how far float32 alone moves the result. Levels may be torch's scalars: then
the coefficients are torch's to the last digit, which matters where 1 - exp(-h) or a root of a difference is small.

References:
    Song et al., "Denoising Diffusion Implicit Models", 2021, Eq. 12 and 16.
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, Algorithm 1.
    Lu et al., "DPM-Solver++", 2022, Algorithm 2 and Appendix A.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from replay import bounded, x0_eps

__all__ = ["ancestral_step", "ddim_step", "dpmpp_path", "dpmpp_step", "euler_step", "heun_step", "levels", "sigma_path"]

Array = np.ndarray[Any, Any]


def ops(number: Any) -> Any:
    """The functions for a scalar: NumPy's, or torch's for its own."""
    return np if isinstance(number, np.generic | np.ndarray) else sys.modules["torch"]


def plain(x: Array, *numbers: Any) -> tuple[Any, ...]:
    """Scalars in the dtype of x."""
    return tuple(x.dtype.type(float(number)) for number in numbers)


def levels(table: Array, *, zero_snr: bool = False) -> Array:
    """Noise levels f64[T] of squared signal rates; pure noise counts as 2**-24 of signal."""
    if zero_snr:
        table = np.append(table[:-1], 2.0**-24)
    return np.sqrt((1 - table) / table)


def spacing(kind: str, T: int, n: int, offset: int) -> Array:
    """Timesteps f64[n], decreasing."""
    if kind == "leading":
        return np.array([k * (T // n) + offset for k in reversed(range(n))], np.float64)
    if kind == "trailing":
        return np.round(np.arange(T, 0, -T / n)[:n]) - 1
    return np.linspace(0, T - 1, n)[::-1]


def respaced(kind: str, high: float, low: float, n: int) -> Array:
    """Levels f64[n] between two."""
    ramp = np.linspace(0, 1, n)
    if kind == "karras":
        return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if kind == "exponential":
        return np.exp(np.linspace(np.log(high), np.log(low), n))
    import scipy.stats  # only here, since it takes most of a second to import

    return low + scipy.stats.beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)


def timestep_of(level: Array, known: Array) -> Array:
    """Timesteps f64[n] of levels, between those of the table in their logarithms."""
    found = []
    for value in np.log(level):
        below = min(int(np.searchsorted(np.log(known), value, "right")) - 1, len(known) - 2)
        below = max(below, 0)
        low, high = np.log(known[below]), np.log(known[below + 1])
        found.append(below + np.clip((low - value) / (low - high), 0, 1))
    return np.array(found)


def sigma_path(known: Array, n: int, config: dict[str, Any], respace: str | None) -> tuple[Array, Array]:
    """Told timesteps f64[n] and levels f64[n + 1] of Euler's and Heun's paths."""
    times = spacing(config.get("timestep_spacing", "linspace"), len(known), n, config.get("steps_offset", 0))
    level = np.interp(times, np.arange(len(known)), known)
    if config.get("interpolation_type") == "log_linear":
        level = respaced("exponential", known[-1], known[0], n + 1)
        times = timestep_of(level[:n], known)
    if respace is not None:
        high, low = config.get("sigma_max") or level[0], config.get("sigma_min") or level[-1]
        level = respaced(respace, high, low, n)
        times = timestep_of(level, known)
    return times, np.append(level[:n], known[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0)


def dpmpp_path(known: Array, n: int, config: dict[str, Any], respace: str | None) -> tuple[Array, Array]:
    """Timesteps f64[n], before rounding where levels are spread anew, and levels f64[n + 1] of DPM-Solver++'s path."""
    T, kind, offset = len(known), config.get("timestep_spacing", "linspace"), config.get("steps_offset", 0)
    if respace is not None:
        level = respaced(respace, known[-1], known[0], n)
        times = timestep_of(level, known)
    else:
        if kind == "leading":
            times = np.array([k * (T // (n + 1)) + offset for k in range(n, 0, -1)], np.float64)
        elif kind == "trailing":
            times = spacing(kind, T, n, 0)
        else:
            times = np.round(np.linspace(0, T - 1, n + 1))[1:][::-1]
        level = known[times.astype(np.int64)]
    return times, np.append(level, known[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0)


def ddim_step(
    m: Array, x: Array, z: Array, bar: Any, bar_next: Any, eta: float, prediction_type: str, **bounds: Any
) -> tuple[Array, Array]:
    """Take one step of DDIM: returns (x at the next level, x0)."""
    sqrt, (here, there) = ops(bar).sqrt, plain(x, bar, bar_next)
    x0, eps = x0_eps(prediction_type, m, x, here)
    x0 = bounded(x0, **bounds)
    variance = (1 - bar_next) / (1 - bar) * (1 - bar / bar_next)
    std = eta * sqrt(variance)
    left = 1 - bar_next - std**2
    if x.dtype == np.float64:
        left = np.maximum(left, 0)  # which float32 may well miss, and is NaN then
    kept, std = plain(x, sqrt(left), std)
    return np.sqrt(there) * x0 + kept * eps + std * z, x0


def sigma_x0(m: Array, x: Array, sigma: Any, prediction_type: str) -> Array:
    """Read the output of a network that saw x / sqrt(sigma^2 + 1)."""
    if prediction_type == "epsilon":
        return x - sigma * m
    if prediction_type == "sample":
        return m
    return m * (-sigma / np.sqrt(sigma**2 + 1)) + x / (sigma**2 + 1)


def euler_step(m: Array, x: Array, sigma: Any, sigma_next: Any, prediction_type: str) -> tuple[Array, Array]:
    """Take one step of Euler's method: returns (x at the next level, x0)."""
    sigma, sigma_next = plain(x, sigma, sigma_next)
    x0 = sigma_x0(m, x, sigma, prediction_type)
    return x + (x - x0) / sigma * (sigma_next - sigma), x0


def ancestral_step(
    m: Array, x: Array, z: Array, sigma: Any, sigma_next: Any, prediction_type: str
) -> tuple[Array, Array]:
    """Take one ancestral step: returns (x at the next level, x0)."""
    sqrt = ops(sigma).sqrt
    up = sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
    up, down, sigma = plain(x, up, sqrt(sigma_next**2 - up**2), sigma)
    x0 = sigma_x0(m, x, sigma, prediction_type)
    return x + (x - x0) / sigma * (down - sigma) + z * up, x0


def dpmpp_step(
    m: Array,
    x: Array,
    z: Array,
    ratios: tuple[Any, Any, Any],
    before: Array | None,
    prediction_type: str,
    *,
    noisy: bool,
    solver: str,
    **bounds: Any,
) -> tuple[Array, Array]:
    """Take one step of DPM-Solver++.

    Args:
        m: The network's output.
        x: The sample.
        z: The noise.
        ratios: Sigma over alpha before, now and next.
        before: x0 of the step before; None for a step of order 1.
        prediction_type: What the network predicts.
        noisy: Whether noise is added.
        solver: "midpoint" or "heun".
        **bounds: Of x0.

    Returns:
        x at the next level, and x0.
    """
    of = ops(ratios[1])
    alphas = [1 / of.sqrt(r**2 + 1) for r in ratios]
    sigmas = [r * a for r, a in zip(ratios, alphas, strict=True)]
    with np.errstate(divide="ignore"):
        lambdas = [of.log(a) - of.log(s) for a, s in zip(alphas, sigmas, strict=True)]
    h, h_0 = lambdas[2] - lambdas[1], lambdas[1] - lambdas[0]
    power = 2 if noisy else 1
    rest, decay = 1 - of.exp(-power * h), of.exp(-h)
    line, fresh = 1 - rest / (power * h), of.sqrt(1 - of.exp(-2 * h))
    is_bent = before is not None and (h > 0 or of is not np)  # float32 is NaN where no step is left
    a, s, a_next, s_next = plain(x, alphas[1], sigmas[1], alphas[2], sigmas[2])
    h, h_0, rest, decay, line, fresh = plain(x, h, h_0, rest, decay, line, fresh)
    x0 = {"epsilon": lambda: (x - s * m) / a, "sample": lambda: m, "v_prediction": lambda: a * x - s * m}[
        prediction_type
    ]()
    x0 = bounded(x0, **bounds)
    out = s_next / s * (decay if noisy else x.dtype.type(1)) * x + a_next * rest * x0
    if is_bent:
        out = out + a_next * (rest / 2 if solver == "midpoint" else line) * ((x0 - before) / (h_0 / h))
    if noisy:
        out = out + s_next * fresh * z
    return out, x0


def heun_step(
    m: Array, x: Array, sigma: Any, sigma_next: Any, prediction_type: str, first: Any = None, **bounds: Any
) -> tuple[Array, Array, Array]:
    """Take half a step of Heun's method: returns (x, x0, slope). `first` is (x, slope) of the first half."""
    sigma, sigma_next = plain(x, sigma, sigma_next)
    here = sigma if first is None else sigma_next
    x0 = bounded(sigma_x0(m, x, here, prediction_type), **bounds)
    slope = (x - x0) / here
    if first is None:
        return x + slope * (sigma_next - sigma), x0, slope
    return first[0] + (first[1] + slope) / 2 * (sigma_next - sigma), x0, slope
