"""Choose the noise levels of a multistep path: the paper's greedy ternary search, on any score."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._random import split
from cmjax.samplers import cm
from cmjax.samplers._checks import count_steps
from cmjax.sampling import generate
from cmjax.types import Array, Cond, Key, ModelFn

__all__ = ["Found", "search_timesteps"]


class Found(NamedTuple):
    """What a search found.

    Attributes:
      timesteps: the path, as `cm.init(config, timesteps=...)` takes it.
      score: its score, the lowest that was found.
      scores: the score of every path that was tried.
    """

    timesteps: tuple[int, ...]
    score: float
    scores: dict[tuple[int, ...], float]


def search_timesteps(
    model: ModelFn,
    config: cm.CMConfig,
    num_steps: int,
    score: Callable[[Array], Any],
    key: Key,
    *,
    shape: tuple[int, ...],
    cond: Cond = None,
    batch_size: int | None = None,
) -> Found:
    """Choose the levels of a multistep path one after another, each by a ternary search over the grid.

    The first level is the noisiest of the grid. Each further level is searched between the previous one and the
    cleanest, with all earlier levels fixed. This finds the best level if the score first falls and then rises with it.
    All paths start from the same noise, so that only the paths differ. There is one compilation for any number of
    steps: a shorter path ends in levels at sigma_min, where a consistency function is the identity.

    Args:
      model: the raw network of a consistency model, a callable pytree `model(x_in, t, cond)`.
      config: its config, whose grid is searched.
      num_steps: model calls of the path, from 2 to the size of the grid.
      score: images f32[N, *S] -> a number, the lower the better: a Fréchet distance, say, or minus a reward.
      key: one key, which is split into one for each image.
      shape: (N, *S), the shape of all images that one score is computed from.
      cond: the conditioning of the N images, a pytree of arrays with N first, or None.
      batch_size: images per call, which must divide N; None for all at once.

    Returns:
      The path and its score, and every path that was tried.

    Raises:
      ValueError: num_steps is out of range, batch_size does not divide N, or a score is not a finite number.
      TypeError: num_steps is not an integer.

    Example:
      >>> model = jax.tree_util.Partial(lambda x, t, cond: jnp.zeros_like(x))  # f = c_skip x spreads most at σ = σ_data
      >>> narrow = lambda images: -images.std()
      >>> found = search_timesteps(model, cm.CMConfig(), 2, narrow, jax.random.key(0), shape=(256, 4))
      >>> found.timesteps, round(float(cm.init(cm.CMConfig(), timesteps=found.timesteps).sigmas[1]), 2)
      ((26, 0), 0.47)

    References:
      Song et al. 2023, section 3 (the greedy choice of time points by ternary search).
    """
    size = config.num_train_timesteps
    count = count_steps(num_steps, size, f"num_train_timesteps = {size}")
    if count < 2:
        raise ValueError("num_steps must be at least 2, got 1: a path of one step starts at the noisiest level.")
    chunks = _chunks(shape[0], batch_size)
    keys = split(key, shape[0])
    levels = schedules.karras_sigmas(np.arange(size), size, config.sigma_min, config.sigma_max, config.rho)
    draw = partial(_draw, config=config, sample_shape=tuple(shape[1:]))
    scores: dict[tuple[int, ...], float] = {}

    def tried(indices: tuple[int, ...]) -> float:
        timesteps = indices[::-1]
        if timesteps not in scores:
            sigmas = np.full(count, config.sigma_min)
            sigmas[: len(indices)] = levels[list(indices)]
            path = jnp.asarray(sigmas, jnp.float32)
            parts = [draw(model, path, *jax.tree.map(lambda leaf, at=at: leaf[at], (keys, cond))) for at in chunks]
            scores[timesteps] = _number(score(jnp.concatenate(parts)), timesteps)
        return scores[timesteps]

    found: tuple[int, ...] = (0,)
    for k in range(1, count):  # leave a level for each step that is still to come
        found = (*found, _ternary(lambda i, found=found: tried((*found, i)), found[-1] + 1, size - (count - k)))
    return Found(found[::-1], tried(found), scores)


@partial(jax.jit, static_argnames=("config", "sample_shape"))
def _draw(
    model: ModelFn, sigmas: Array, keys: Key, cond: Cond, *, config: cm.CMConfig, sample_shape: tuple[int, ...]
) -> Array:
    """One batch of images along a path of traced levels."""
    return generate(model, cm.init(config, sigmas=sigmas), keys, (keys.shape[0], *sample_shape), cond)


def _ternary(value: Callable[[int], float], low: int, high: int) -> int:
    """Find the integer in [low, high] of the smallest value, if values fall and then rise."""
    while high - low > 2:
        third = (high - low) // 3
        left, right = low + third, high - third
        if value(left) < value(right):
            high = right
        else:
            low = left
    return min(range(low, high + 1), key=value)


def _chunks(count: int, batch_size: int | None) -> list[slice]:
    size = count if batch_size is None else batch_size
    if size < 1 or count % size:
        raise ValueError(f"batch_size must divide the {count} images, got {batch_size}.")
    return [slice(first, first + size) for first in range(0, count, size)]


def _number(value: Any, timesteps: tuple[int, ...]) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"score must return a finite number, got {number} for timesteps {list(timesteps)}.")
    return number
