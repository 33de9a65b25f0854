"""Noise levels to train at, and their weights: laws, bounds, values made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import losses


def test_lognormal_keeps_its_law_and_its_bounds():
    sigma = losses.lognormal(-0.5, 1.0)(jax.random.key(0), (200_000,), 1e-4, 1e4)
    assert float(jnp.log(sigma).mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(jnp.log(sigma).std()) == pytest.approx(1.0, abs=0.01)
    narrow = losses.lognormal()(jax.random.key(0), (10_000,), 0.1, 0.2)
    assert float(narrow.min()) >= 0.1 and float(narrow.max()) <= 0.2


def test_lognormal_needs_two_levels_above_zero():
    with pytest.raises(ValueError, match=r"0 < sigma_min < sigma_max must hold, got 0 and 80"):
        losses.lognormal()(jax.random.key(0), (4,), 0.0, 80.0)


def test_karras_draws_every_interval_of_its_grid_as_often():
    sigma = losses.karras()(jax.random.key(0), (100_000,), 0.002, 80.0)
    grid = np.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), 18) ** 7
    counts = np.histogram(sigma, grid)[0] / 100_000
    np.testing.assert_allclose(counts, 1 / 17, atol=0.003)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (losses.uniform, [1, 1]),
        (losses.inverse_gap, [4, 0]),  # the second pair is one level
        (losses.snr, [4, 0.25]),
        (losses.snr_plus_one, [5, 1.25]),
        (losses.truncated_snr, [4, 1]),
        (losses.min_snr(3.0), [3, 0.25]),
        (losses.edm(0.5), [8, 4.25]),
        (losses.edm(0.5, power=0.5), [8**0.5, 4.25**0.5]),
    ],
)
def test_weights_by_hand(weighting, expected):
    np.testing.assert_allclose(weighting(jnp.array([0.5, 2.0]), jnp.array([0.25, 2.0])), expected, rtol=1e-6)


def test_the_weight_of_a_single_level_has_a_finite_gradient():
    slope = jax.grad(lambda t: losses.inverse_gap(t, jnp.ones(1)).sum())(jnp.ones(1))
    assert bool(jnp.isfinite(slope).all())
