"""The search for timesteps: this room holds it to trying every path."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import parameterization as p
from cmjax.search import _ternary

KEY = jax.random.key(0)
CONFIG = cmjax.cm.CMConfig(num_train_timesteps=12, clip_denoised=False)
SHAPE = (6, 3)


def network(gain: Any, x_in: Any, t: Any, cond: Any) -> Any:
    """Make images that are gain · ln σ (+ cond), from which the last level that was visited can be told."""
    sigma = jnp.exp(t / 250.0)
    x = x_in * jnp.sqrt(sigma**2 + 0.25)
    skip, out = p.c_skip(sigma, 0.5, 0.002), p.c_out(sigma, 0.5, 0.002)
    wanted = gain * jnp.log(sigma) + (0.0 if cond is None else cond[:, None])
    return (wanted - skip * x) / jnp.maximum(out, 1e-6)


MODEL = jax.tree_util.Partial(network, jnp.float32(1.0))
generate = jax.jit(cmjax.generate, static_argnames="shape")


def by_hand(timesteps: Any, cond: Any = None) -> Any:
    state = cmjax.cm.init(CONFIG, timesteps=timesteps)
    return np.asarray(generate(MODEL, state, jax.random.split(KEY, SHAPE[0]), SHAPE, cond))


@pytest.fixture(scope="module")
def means() -> dict[tuple[int, int], float]:
    """Every path of two levels, and the mean of its images."""
    return {(i, 0): float(by_hand([i, 0]).mean()) for i in range(1, 12)}


@pytest.mark.parametrize("target", range(1, 11))
def test_it_finds_the_best_second_level(target: int, means: dict[tuple[int, int], float]) -> None:
    wanted = means[target, 0]

    def score(images: Any) -> float:
        return abs(float(np.asarray(images).mean()) - wanted)

    found = cmjax.search_timesteps(MODEL, CONFIG, 2, score, KEY, shape=SHAPE)
    every = {path: abs(mean - wanted) for path, mean in means.items()}
    assert found.timesteps == min(every, key=every.__getitem__) == (target, 0)
    assert found.score == min(found.scores.values())
    for path, value in found.scores.items():  # a shorter path is the same path
        assert value == pytest.approx(every[path], abs=1e-5)


def test_further_levels_are_chosen_one_after_another_with_one_trace() -> None:
    traces = []

    def counted(x: Any, t: Any, cond: Any) -> Any:
        traces.append(x.shape)
        return network(1.0, x, t, cond)

    scored: list[Any] = []

    def score(images: Any) -> float:
        scored.append(images.shape)
        return abs(float(images.mean()) + 0.1)

    cond = jnp.linspace(-0.1, 0.1, 6)
    model = jax.tree_util.Partial(counted)
    found = cmjax.search_timesteps(model, CONFIG, 4, score, KEY, shape=SHAPE, cond=cond, batch_size=2)
    assert len(found.timesteps) == 4
    assert found.timesteps[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(found.timesteps))
    assert {len(path) for path in found.scores} == {2, 3, 4}
    assert set(traces) == {(2, 3)}
    assert len(traces) == 1
    assert scored == [SHAPE] * len(found.scores)
    images = by_hand(found.timesteps, cond)
    assert found.score == pytest.approx(abs(float(images.mean()) + 0.1), abs=1e-5)


def test_as_many_steps_as_levels_leave_no_choice() -> None:
    config = cmjax.cm.CMConfig(num_train_timesteps=4)
    found = cmjax.search_timesteps(MODEL, config, 4, lambda images: 0.0, KEY, shape=SHAPE)
    assert found.timesteps == (3, 2, 1, 0)


@pytest.mark.parametrize("low", [0, 5])
def test_a_ternary_search_of_values_that_fall_and_rise(low: int) -> None:
    for high in range(low, low + 40):
        for best in range(low, high + 1):
            assert _ternary(lambda i, best=best: abs(i - best), low, high) == best


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 1}, "num_steps must be at least 2, got 1"),
        ({"num_steps": 13}, "num_steps must be between 1 and num_train_timesteps = 12, got 13"),
        ({"batch_size": 4}, "batch_size must divide the 6 images, got 4"),
        ({"score": lambda images: np.nan}, r"score must return a finite number, got nan for timesteps \["),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    options = {"num_steps": 2, "score": lambda images: 0.0, **changes}
    with pytest.raises(ValueError, match=message):
        cmjax.search_timesteps(MODEL, CONFIG, key=KEY, shape=SHAPE, **options)
