"""Shared by the ordinary samplers: noise levels σ / α along a path, and fresh noise in DDIM's sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import f32, is_traced, safe_sqrt
from cmjax.samplers import _vp
from cmjax.samplers._checks import concrete, count_steps, exactly_one, steps_last, strictly_decreasing
from cmjax.samplers._spacing import by_hand, spaced, spaced_between

__all__ = ["end", "jump", "ladder", "refuse_growing", "respaced", "respacing", "table", "table_ladder", "told"]

_RESPACINGS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "lu": "use_lu_lambdas",
}


# ---- noise levels ----------------------------------------------------------------------------------------------------


def table(config: _vp.VPConfig) -> np.ndarray:
    """σ / α at every training timestep, f64[T]; 4096 in the place of pure noise (zero terminal SNR)."""
    alpha, sigma = _vp.rate_tables(config)
    if config.rescale_betas_zero_snr:
        alpha = np.append(alpha[:-1], 2.0**-12)
        sigma = np.append(sigma[:-1], np.sqrt(1 - 2.0**-24))
    return sigma / alpha


def told(levels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The timesteps of noise levels, f64[n], between those of the table in ln σ."""
    return np.interp(np.log(levels), np.log(np.maximum(known, 1e-10)), np.arange(len(known)))


def end(config: _vp.VPConfig, known: np.ndarray) -> float:
    """The level at which a path ends: 0, or the least of the table."""
    kind = getattr(config, "final_sigmas_type", "zero")
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type must be zero or sigma_min, got {kind!r}.")
    return 0.0 if kind == "zero" else float(known[0])


def respacing(config: Any) -> str | None:
    """How noise levels are spread between the first and the last, where timesteps do not say; None where they do.

    Raises:
      ValueError: more than one way is asked for.
    """
    asked = [kind for kind, name in _RESPACINGS.items() if getattr(config, name, False)]
    if len(asked) > 1:
        names = " and ".join(_RESPACINGS[kind] for kind in asked)
        raise ValueError(f"{names} exclude each other: keep one of them.")
    return asked[0] if asked else None


def respaced(kind: str, highest: float, lowest: float, n: int) -> np.ndarray:
    """Spread n levels from the highest to the lowest, f64[n]; see `schedules.respaced`."""
    if not 0 < lowest <= highest:
        raise ValueError(f"0 < sigma_min <= sigma_max must hold, got {lowest:g} and {highest:g}.")
    return schedules.respaced("exponential" if kind == "lu" else kind, highest, lowest, n)


def ladder(
    config: Any, num_steps: Any, timesteps: Sequence[float] | None, sigmas: Sequence[float] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Plan a path in noise levels: what the network is told, f64[n], and σ with the end, f64[n + 1]."""
    exactly_one(num_steps=num_steps, timesteps=timesteps, sigmas=sigmas)
    known, kind = table(config), respacing(config)
    last = end(config, known)
    if sigmas is not None:
        levels = strictly_decreasing("sigmas", concrete("sigmas", sigmas))
        if not (np.isfinite(levels).all() and levels[-1] > last):
            raise ValueError(f"sigmas must be finite and above the end of the path, {last:g}, got {list(levels)}.")
        return told(levels, known), np.append(levels, last)
    if timesteps is not None and kind is not None:
        raise ValueError(f"timesteps say the noise levels, and so does {_RESPACINGS[kind]}: give num_steps.")
    times = spaced(config, num_steps) if timesteps is None else by_hand(config, timesteps)
    n, levels = len(times), np.interp(times, np.arange(len(known)), known)
    interpolation = getattr(config, "interpolation_type", "linear")
    if interpolation not in ("linear", "log_linear"):
        raise ValueError(f"interpolation_type must be linear or log_linear, got {interpolation!r}.")
    if interpolation == "log_linear":
        if timesteps is not None:
            raise ValueError("interpolation_type log_linear says the noise levels: give num_steps, not timesteps.")
        levels = respaced("exponential", float(known[-1]), float(known[0]), n + 1)
    if kind is not None:
        lowest, highest = (getattr(config, f"sigma_{which}", None) for which in ("min", "max"))
        highest = float(levels[0]) if highest is None else highest
        levels = respaced(kind, highest, float(levels[-1]) if lowest is None else lowest, n)
    levels = levels[:n]
    if kind is not None or interpolation == "log_linear":
        times = told(levels, known)
    refuse_growing(levels, last)
    return times, np.append(levels, last)


def table_ladder(config: Any, num_steps: Any, timesteps: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Plan a path in whole timesteps, i64[n], above one that is not visited, and σ / α with the end, f64[n + 1]."""
    exactly_one(num_steps=num_steps, timesteps=timesteps)
    known, kind = table(config), respacing(config)
    if timesteps is not None and kind is not None:
        raise ValueError(f"timesteps say the noise levels, and so does {_RESPACINGS[kind]}: give num_steps.")
    if kind is not None:
        n = count_steps(num_steps, len(known), f"num_train_timesteps = {len(known)}")
        levels = respaced(kind, float(known[-1]), float(known[0]), n)
        path = np.round(told(levels, known)).astype(np.int64)
    else:
        least = dict(config.extra).get("lambda_min_clipped", -np.inf)
        room = int(np.sum(-np.log(known) >= least))
        path = spaced_between(config, num_steps, room) if timesteps is None else _vp.custom_path(config, timesteps)
        levels = known[path]
    last = end(config, known)
    refuse_growing(levels, last)
    return path, np.append(levels, last)


def refuse_growing(levels: np.ndarray, last: float) -> None:
    """Refuse a path that has no noise to take away, or that ends above its last level."""
    if np.float32(levels[-1]) == 0:
        raise ValueError(f"the last of {len(levels)} timesteps has no noise (sigma = 0): end the path before it.")
    if (grown := np.flatnonzero(np.diff(levels) > 0)).size:
        k = int(grown[0])
        raise ValueError(
            f"sigmas must not grow, but {levels[k + 1]:g} follows {levels[k]:g}: the betas of the config do not make "
            "more noise at each timestep."
        )
    if last > levels[-1] * (1 + 1e-12):
        raise ValueError(
            f"sigmas must not grow, but the path ends at {last:g} (final_sigmas_type = sigma_min), above its last "
            f"level {levels[-1]:g}: set final_sigmas_type to zero, or a larger sigma_min."
        )


# ---- fresh noise -----------------------------------------------------------------------------------------------------


def jump(alpha: np.ndarray, sigma: np.ndarray, eta: Any) -> tuple[Any, Any]:
    """How much of ε is kept at each next level, and how much noise there is fresh: f[n] each, of rates f64[n + 1].

    Of one eta per image, f[B, n] each.

    x' = α' x0 + kept ε + fresh z with fresh = η σ' √(1 - r²), kept = √(σ'² - fresh²) and r = (σ' / α') / (σ / α): the
    posterior's noise at η = 1 (DDPM's), none at η = 0. The last step adds none, whatever η is.

    References:
      Song, Meng & Ermon 2021, equations 12 and 16.
    """
    eta = f32(eta) if is_traced(eta) else concrete("eta", eta)
    n = len(alpha) - 1
    eta = steps_last(eta, n)
    in_range = (eta >= 0) & (eta <= 1)
    if not is_traced(eta) and not in_range.all():
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    ratio = sigma[1:] * alpha[:-1] / (alpha[1:] * sigma[:-1])
    gone = np.maximum((1 - ratio) * (1 + ratio), 0.0)
    gone[-1] = 0.0
    gone, after = (table.reshape((1,) * (eta.ndim - 1) + (n,)) for table in (gone, sigma[1:]))
    if is_traced(eta):
        eta = jnp.where(in_range, eta, jnp.nan)
        return f32(after) * safe_sqrt(1 - eta**2 * f32(gone)), f32(after * np.sqrt(gone)) * eta
    return after * np.sqrt(np.maximum(1 - eta**2 * gone, 0.0)), after * np.sqrt(gone) * eta
