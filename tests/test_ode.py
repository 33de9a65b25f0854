"""Teacher steps: this room holds them to the exact solution on Gaussian data, and to a float64 replay."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import ode
from cmjax._random import noise, split

KEY = jax.random.key(0)
S = 0.5  # the data's standard deviation
STEPS = (ode.euler, ode.heun, ode.dpm2)


def denoise(x: Any, sigma: Any, cond: Any) -> Any:
    """Estimate x0 of N(0, S²) data; cond shifts the data's mean."""
    sigma = sigma.reshape(sigma.shape + (1,) * (x.ndim - 1)) if getattr(sigma, "ndim", 0) else sigma
    mean = 0.0 if cond is None else cond[:, None]
    return mean + (x - mean) * S**2 / (S**2 + sigma**2)


def exact(x: Any, sigma: Any, sigma_next: Any) -> Any:
    return x * np.sqrt((S**2 + sigma_next**2) / (S**2 + sigma**2))


@partial(jax.jit, static_argnums=0)
def stepped(step: Any, x: Any, sigma: Any, sigma_next: Any) -> Any:
    return step(denoise, x, sigma, sigma_next)


@pytest.mark.parametrize(("step", "order"), [(ode.euler, 1), (ode.heun, 2), (ode.dpm2, 2)])
def test_the_order_of_convergence(step: Any, order: int) -> None:
    with jax.enable_x64(True):  # float32 rounding would hide what is left
        errors = []
        for n in (16, 32, 64, 128):
            levels, x = np.geomspace(5.0, 0.05, n + 1), np.ones((1, 1))
            for sigma, sigma_next in itertools.pairwise(levels):
                x = replay(step, x, sigma, sigma_next)
            errors.append(abs(x - exact(1.0, 5.0, 0.05)).item())
        measured = np.log2(np.array(errors[:-1]) / errors[1:])
        np.testing.assert_allclose(measured[-1], order, atol=0.15)


def replay(step: Any, x: Any, sigma: float, sigma_next: float) -> Any:
    """The formulas of Karras et al. 2022 and Lu et al. 2022, in float64."""

    def slope(x: Any, sigma: float) -> Any:
        return (x - x * S**2 / (S**2 + sigma**2)) / sigma

    d = slope(x, sigma)
    if step is ode.dpm2:
        middle = ((np.cbrt(sigma) + np.cbrt(sigma_next)) / 2) ** 3
        return x + (sigma_next - sigma) * slope(x + (middle - sigma) * d, middle)
    guess = x + (sigma_next - sigma) * d
    if step is ode.euler or sigma_next == 0:
        return guess
    return x + (sigma_next - sigma) * (d + slope(guess, sigma_next)) / 2


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("sigma", "sigma_next"), [(80.0, 40.0), (2.0, 1.9), (0.5, 0.002), (0.002, 0.0)])
def test_a_step_is_its_formula(step: Any, sigma: float, sigma_next: float) -> None:
    x = sigma * np.random.default_rng(0).standard_normal((3, 4))
    expected = replay(step, x, sigma, sigma_next)
    np.testing.assert_allclose(
        stepped(step, jnp.asarray(x, jnp.float32), sigma, sigma_next), expected, rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("step", STEPS)
def test_levels_may_differ_from_image_to_image(step: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    sigma, sigma_next = np.array([[2.0, 1.0, 0.5], [1.0, 0.7, 0.0]], np.float32)
    many = np.asarray(stepped(step, x, sigma, sigma_next))
    for i in range(3):
        np.testing.assert_allclose(many[i : i + 1], stepped(step, x[i : i + 1], sigma[i], sigma_next[i]), rtol=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_the_walk_is_the_steps_and_ends_at_the_data(step: Any) -> None:
    x, levels = 80.0 * jnp.ones((2, 3)), ode.ladder(64)
    walked = jax.jit(ode.solve, static_argnums=(0, 1))(step, denoise, levels, x)
    by_hand = np.asarray(x, np.float64)
    for sigma, sigma_next in itertools.pairwise(levels):
        by_hand = replay(step, by_hand, sigma, sigma_next)
    np.testing.assert_allclose(walked, by_hand, rtol=2e-5)
    tolerance = 0.15 if step is ode.euler else 5e-3
    np.testing.assert_allclose(walked, exact(80.0, 80.0, 0.0), rtol=tolerance)


def test_heun_calls_twice_but_for_the_last_step() -> None:
    calls = []

    def counted(x: Any, sigma: Any, cond: Any) -> Any:
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma)
        return denoise(x, sigma, cond)

    jax.block_until_ready(ode.solve(ode.heun, counted, ode.ladder(5), jnp.ones((1, 1))))
    jax.effects_barrier()
    assert len(calls) == 9  # 2 n - 1


@partial(jax.jit, static_argnums=0)
def walk(step: Any, x: Any, key: Any, eta: Any, amount: Any) -> Any:
    return ode.solve(step, denoise, ode.ladder(240), x, key, eta=eta, churn=ode.Churn(amount))


@pytest.mark.parametrize(("eta", "amount"), [(1.0, 0.0), (0.5, 0.0), (0.0, 20.0), (0.7, 10.0)])
@pytest.mark.parametrize("step", STEPS)
def test_noise_keeps_the_marginals_of_gaussian_data(step: Any, eta: float, amount: float) -> None:
    """Both ways of adding noise leave N(0, S² + σ²) as it is, so the samples have the data's standard deviation."""
    x = 80.0 * noise(KEY, (20_000, 1))
    drawn = np.asarray(walk(step, x, jax.random.key(1), eta, amount))
    tolerance = 0.04 if step is ode.euler else 0.02
    assert drawn.std() == pytest.approx(S, rel=tolerance)
    assert drawn.mean() == pytest.approx(0.0, abs=0.02)


def test_stochastic_walks_are_their_formulas() -> None:
    levels, x = np.array([5.0, 2.0, 0.0]), jnp.ones((2, 3))
    churn = ode.Churn(amount=0.5, sigma_min=1.0, sigma_max=4.0, noise_scale=1.1)
    walked = jax.jit(partial(ode.solve, ode.euler, denoise, levels, eta=0.6, churn=churn))(x, KEY)
    keys = split(KEY, 2)
    by_hand = np.ones((2, 3))
    for k, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        before, after = (np.asarray(noise(key, (2, 3)), np.float64) for key in split(keys[k], 2))
        raised = sigma * (1 + (0.25 if 1.0 <= sigma <= 4.0 else 0.0))
        by_hand = by_hand + 1.1 * np.sqrt(raised**2 - sigma**2) * before
        up = 0.6 * np.sqrt(sigma_next**2 * (raised**2 - sigma_next**2) / raised**2)
        by_hand = replay(ode.euler, by_hand, raised, np.sqrt(sigma_next**2 - up**2)) + up * after
    np.testing.assert_allclose(walked, by_hand, rtol=2e-5)


def test_noise_is_float32_under_x64() -> None:
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
        walk = partial(ode.solve, ode.heun, denoise, ode.ladder(4), eta=0.5)
        assert jax.eval_shape(walk, x, KEY).dtype == jnp.float32


def test_knobs_are_leaves() -> None:
    @jax.jit
    @chex.assert_max_traces(1)
    def walk(levels: Any, eta: Any, churn: Any) -> Any:
        return ode.solve(ode.heun, denoise, levels, jnp.ones((2, 3)), KEY, eta=eta, churn=churn)

    chex.clear_trace_counter()
    for i in range(1, 4):
        walk(ode.ladder(4, rho=float(i)), jnp.float32(i / 4), ode.Churn(*map(jnp.float32, (i, 0.1, 50.0, 1.0))))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_condition_keys_and_gradients(step: Any, dtype: str) -> None:
    keys, mean, x = split(KEY, 3), jnp.array([-1.0, 0.0, 1.0], dtype), jnp.ones((3, 4), dtype)

    @jax.jit
    def walk(x: Any, mean: Any, keys: Any) -> Any:
        return ode.solve(step, denoise, ode.ladder(12), x, keys, mean, eta=0.5)

    def total(x: Any, mean: Any) -> Any:
        ends = walk(x, mean, keys)
        return ends.astype(jnp.float32).sum(), ends

    slopes, ends = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, mean)
    assert ends.dtype == dtype
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in slopes)
    one = walk(x[1:2], mean[1:2], keys[1:2])
    np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(ends, np.float32)[1:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ode.solve(ode.euler, denoise, [1.0], x), "two or more noise levels"),
        (lambda x: ode.solve(ode.euler, denoise, [1.0, 2.0], x), "must descend strictly"),
        (lambda x: ode.solve(ode.euler, denoise, [1.0, -0.1], x), "to 0 or above"),
        (lambda x: ode.solve(ode.euler, denoise, [1.0, 0.5], x, eta=0.3), "needs a key"),
        (lambda x: ode.solve(ode.euler, denoise, [1.0, 0.5], x, churn=ode.Churn(3.0)), "needs a key"),
        (lambda x: ode.euler(lambda x, sigma, cond: x[:1], x, 1.0, 0.5), "it must keep the shape"),
        (lambda x: ode.ladder(0), "num_steps must be at least 1, got 0"),
        (lambda x: ode.ladder(4, sigma_min=3.0, sigma_max=2.0), "0 < sigma_min < sigma_max must hold"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)))
