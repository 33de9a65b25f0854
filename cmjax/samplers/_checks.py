"""Checks of the arguments of `init`, on the host and never inside a compiled step."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, is_traced

__all__ = [
    "concrete",
    "count_steps",
    "etas",
    "exactly_one",
    "fraction",
    "last_part",
    "least_strength",
    "right_config",
    "steps_last",
    "strictly_decreasing",
]


def exactly_one(**options: Any) -> None:
    """Raise ValueError unless one option, and only one, is given."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = list(options)
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(f"Give exactly one of {listed}, got {' and '.join(given) or 'none'}.")


def right_config(config: Any, wanted: type) -> None:
    """Refuse what is not a config of this sampler's family."""
    if not isinstance(config, wanted):
        got = f"the class {config.__name__}: call it" if isinstance(config, type) else f"a {type(config).__name__}"
        raise TypeError(f"config must be a {wanted.__name__}, as cmjax.io.read_config makes it, got {got}.")


def count_steps(num_steps: Any, limit: int, why: str, name: str = "num_steps") -> int:
    """Check a number of steps against the size of the grid; `why` says where the limit comes from."""
    try:
        count = operator.index(num_steps)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {num_steps!r}.") from error
    if not 1 <= count <= limit:
        raise ValueError(f"{name} must be between 1 and {why}, got {count}.")
    return count


def concrete(name: str, values: Any) -> np.ndarray:
    """Convert values to float64 on the host, or raise an error that says why they must be concrete."""
    if is_traced(values):
        raise TypeError(f"{name} decides the shape of the path, so it must be concrete under jit, got {values}.")
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} must be numbers, got {values!r:.60}.") from error


def etas(eta: Any, n: int, *, per_image: bool = False) -> Any:
    """Check one eta for each step, f32[n], or per image too, f32[B, n]; NaN where a traced one is out of range."""
    eta = f32(jnp.asarray(eta)) if is_traced(eta) else concrete("eta", eta)
    if per_image:
        eta = steps_last(eta, n)
    elif eta.shape not in ((), (n,)):
        raise ValueError(f"eta must be a scalar or have one value per step, ({n},), got shape {eta.shape}.")
    in_range, shape = (eta >= 0) & (eta <= 1), (*eta.shape[:-1], n)
    if is_traced(eta):
        return jnp.broadcast_to(jnp.where(in_range, eta, jnp.nan), shape)
    if not in_range.all():
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    return np.broadcast_to(eta, shape)


def steps_last(eta: Any, n: int) -> Any:
    """Check η, and make steps the last axis, as states' tables have them: f[], f[n], f[B, 1] or f[B, n]."""
    if eta.shape not in ((), (n,)) and not (eta.ndim == 2 and eta.shape[0] in (1, n) and eta.shape[1]):
        raise ValueError(
            f"eta must be a scalar or have one value per step, ({n},), or one per image of a batch, (1, B) or "
            f"({n}, B), got shape {eta.shape}."
        )
    return eta.T


def fraction(name: str, value: Any) -> float:
    """Check a share of a path, in (0, 1]."""
    if isinstance(value, bool) or is_traced(value):
        raise TypeError(f"{name} must be a number, since it decides the shape of the path, got {value}.")
    try:
        share = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {value!r:.60}.") from error
    if not 0 < share <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {value}.")
    return share


def last_part(values: Any, strength: float, what: str) -> Any:
    """Keep the clean end of a path or a grid: its last ⌊n · strength⌋ entries, in binary floats as in diffusers."""
    count = len(values)
    if not (keep := int(count * strength)):
        least = least_strength(count)
        raise ValueError(f"strength = {strength} leaves none of {count} {what}; it must be at least {least}.")
    return values[count - keep :]


def least_strength(count: int) -> str:
    """The least strength that keeps one of `count` entries, rounded up to a few digits."""
    digits = 4
    while digits < 10 and count > 10 ** (digits - 2):
        digits += 1
    return f"{math.ceil(10**digits / count) / 10**digits:.{digits}f}".rstrip("0").rstrip(".")


def strictly_decreasing(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Check a path: at least one value, each below the one before. Returns f64[n]."""
    path = np.asarray(values, np.float64)
    if path.ndim != 1 or path.size == 0:
        raise ValueError(f"{name} must be a list of at least one value, got shape {path.shape}.")
    for i in range(1, path.size):
        if not path[i] < path[i - 1]:
            raise ValueError(
                f"{name} must be strictly decreasing, but {name}[{i}] = {path[i]:.12g} follows {path[i - 1]:.12g}."
            )
    return path
