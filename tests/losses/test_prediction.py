"""Plain training of variance-preserving models: each value replayed, the minimum in closed form, the weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay
import vp_gaussian
from gaussian import Gaussian

import cmjax
from cmjax import losses

TABLE = replay.alphas_cumprod()
ALPHA, SIGMA = np.sqrt(TABLE), np.sqrt(1 - TABLE)
TYPES = ("epsilon", "sample", "v_prediction")
DATA = Gaussian(mean=0.3, std=0.6)


def config(kind, **options):
    return cmjax.tcd.TCDConfig(prediction_type=kind, **options)


@pytest.mark.parametrize("kind", TYPES)
def test_each_value_is_the_formula(kind):
    seen = []

    def network(x, t, cond):
        seen.append((np.asarray(x, np.float64), np.asarray(t)))
        return jnp.sin(x)

    x0 = np.random.default_rng(0).normal(size=(50, 3, 2)).astype(np.float32)
    g, key = cmjax.tcd.trajectory_fn(network, config(kind)), jax.random.key(0)
    plain = losses.noise_prediction(g, x0, key)
    weighted = losses.noise_prediction(g, x0, key, weighting=losses.min_snr(2.0))
    x, t = seen[0]
    a, s = (v[t].reshape(-1, 1, 1) for v in (ALPHA, SIGMA))
    z = (x - a * x0) / s
    assert z.mean() == pytest.approx(0.0, abs=0.2) and z.std() == pytest.approx(1.0, abs=0.15)
    assert t.min() < 200 and t.max() > 800
    y = {"epsilon": z, "sample": x0, "v_prediction": a * z - s * x0}[kind]
    expected = np.mean((np.sin(x) - y) ** 2, axis=(1, 2))
    np.testing.assert_allclose(plain, expected, rtol=2e-3)
    snr = (ALPHA[t] / SIGMA[t]) ** 2  # Hang et al. 2023: min(SNR, γ) over 1, SNR and SNR + 1 for x0, ε and v
    weight = np.minimum(snr, 2.0) / {"epsilon": snr, "sample": 1.0, "v_prediction": snr + 1.0}[kind]
    np.testing.assert_allclose(weighted, weight * expected, rtol=2e-3)


@pytest.mark.parametrize("kind", TYPES)
def test_the_minimum_is_the_posterior_variance(kind):
    g = cmjax.tcd.trajectory_fn(vp_gaussian.network(DATA, config(kind)), config(kind))
    x0 = DATA.draw(jax.random.key(0), (4000, 8))
    for t in (99, 499, 899):
        value = losses.noise_prediction(g, x0, jax.random.key(1), timesteps=(t,)).mean()
        spread = ALPHA[t] ** 2 * 0.36 + SIGMA[t] ** 2
        least = {"epsilon": ALPHA[t] ** 2 * 0.36, "sample": SIGMA[t] ** 2 * 0.36, "v_prediction": 0.36}[kind] / spread
        assert float(value) == pytest.approx(least, rel=0.03)


@pytest.mark.parametrize("kind", TYPES)
def test_the_exact_network_is_a_minimum(kind):
    exact = vp_gaussian.network(DATA, config(kind))
    x0 = DATA.draw(jax.random.key(0), (20_000, 2))

    def loss(w):
        g = cmjax.tcd.trajectory_fn(lambda x, t, cond: exact(x, t) + w[0] * x + w[1], config(kind))
        return losses.noise_prediction(g, x0, jax.random.key(1)).mean()

    slope = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(slope(jnp.zeros(2)), 0.0, atol=0.03)
    assert float(jnp.abs(slope(jnp.full(2, 0.1))).min()) > 0.1


def test_a_weighting_means_the_same_whatever_the_network_says():
    x0 = DATA.draw(jax.random.key(0), (16, 3))
    crooked = Gaussian(mean=0.5, std=0.4)  # not the data's: some error to be weighed
    weightings = (losses.uniform, losses.snr, losses.truncated_snr, losses.min_snr())

    @functools.partial(jax.jit, static_argnums=0)
    def each_weighting(kind):
        g = cmjax.tcd.trajectory_fn(vp_gaussian.network(crooked, config(kind)), config(kind))
        return [losses.noise_prediction(g, x0, jax.random.key(1), weighting=weighting) for weighting in weightings]

    epsilon, sample, v = (each_weighting(kind) for kind in TYPES)
    for i, weighting in enumerate(weightings):
        np.testing.assert_allclose(sample[i], epsilon[i], rtol=3e-3, err_msg=str(weighting))
        np.testing.assert_allclose(v[i], epsilon[i], rtol=3e-3, err_msg=str(weighting))


@pytest.mark.parametrize(
    ("kind", "own"), [("epsilon", losses.snr), ("sample", losses.uniform), ("v_prediction", losses.snr_plus_one)]
)
def test_each_type_has_a_weighting_of_its_own(kind, own):
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: 0.3 * x, config(kind))
    x0 = DATA.draw(jax.random.key(0), (16, 3))
    plain, weighted = (losses.noise_prediction(g, x0, jax.random.key(1), weighting=w) for w in (None, own))
    np.testing.assert_allclose(weighted, plain, rtol=1e-5)


def test_a_timestep_without_signal_counts_what_it_should():
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: 0.3 * x, config("v_prediction", rescale_betas_zero_snr=True))
    for weighting, expected in (
        (None, 1.0),
        (losses.uniform, 1.0),
        (losses.snr_plus_one, 1.0),
        (losses.min_snr(), 0.0),
    ):
        value = losses.noise_prediction(
            g,
            jnp.ones((2, 3)),
            jax.random.key(0),
            timesteps=(999,),
            weighting=weighting,
            metric=lambda a, b: jnp.ones(2),
        )
        np.testing.assert_array_equal(value, expected)


def test_one_value_per_example_in_float32_and_dropout_on_demand():
    seen = []

    def network(x, t, cond, **options):
        seen.append((x.dtype, cond, options))
        return x

    g = cmjax.lcm.consistency_fn(network, cmjax.lcm.LCMConfig())
    value = losses.noise_prediction(g, jnp.ones((5, 2), jnp.bfloat16), jax.random.key(0), cond="c")
    assert value.shape == (5,) and value.dtype == jnp.float32 and seen[-1] == (jnp.float32, "c", {})
    losses.noise_prediction(g, jnp.ones((5, 2)), jax.random.key(0), dropout=True)
    assert set(seen[-1][2]) == {"key"}


@pytest.mark.parametrize(
    ("x0", "timesteps", "kind", "message"),
    [
        (np.zeros((2, 3), np.uint8), None, TypeError, "x0 must be a float array"),
        (np.zeros((2, 3), np.float32), (3, 2), ValueError, "strictly ascending"),
        (np.zeros((2, 3), np.float32), (1000,), ValueError, "must lie in"),
        (np.zeros((2, 3), np.float32), (0.5,), TypeError, "whole numbers"),
    ],
)
def test_bad_input_is_refused(x0, timesteps, kind, message):
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: x, config("epsilon"))
    with pytest.raises(kind, match=message):
        losses.noise_prediction(g, x0, jax.random.key(0), timesteps=timesteps)


def test_offset_noise_is_one_number_for_each_channel_of_an_example():
    """And it is noise: the network has to predict it too."""
    seen = []

    def network(x, t, cond=None, *, key=None):
        seen.append((x, t))
        return jnp.zeros_like(x)

    g = cmjax.tcd.trajectory_fn(network, cmjax.tcd.TCDConfig())
    x0 = jnp.zeros((300, 8, 8, 2))
    plain, moved = (losses.noise_prediction(g, x0, jax.random.key(0), noise_offset=o) for o in (0.0, 0.5))
    (x, t), (y, _) = seen
    sigma = g.rates(t)[1][:, None, None, None]
    offset = np.asarray((y - x) / sigma)
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=2e-3)
    assert offset[:, 0, 0].std() == pytest.approx(0.5, abs=0.05)
    assert np.corrcoef(offset[:, 0, 0].T)[0, 1] == pytest.approx(0.0, abs=0.15)
    np.testing.assert_allclose(moved, np.square(np.asarray(y / sigma)).mean((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(plain, np.square(np.asarray(x / sigma)).mean((1, 2, 3)), rtol=1e-4)
