"""Denoising: its least value on Gaussian data is a closed form, and there it has no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import affine, affine_params, fit
from gaussian import Gaussian

import cmjax
from cmjax import losses

DATA = Gaussian(mean=0.3, std=0.6)
X0 = DATA.draw(jax.random.key(0), (20_000, 8))
KEY = jax.random.key(1)


def at(level):
    """A proposal of one level."""
    return lambda key, shape, sigma_min, sigma_max: jnp.full(shape, level, jnp.float32)


def altered(by):
    """The exact denoiser, scaled and shifted."""
    return lambda x, sigma, cond=None, *, key=None: (1.0 + by[0]) * DATA.denoise(x, sigma) + by[1]


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 50.0])
def test_the_least_value_is_the_variance_that_the_noise_leaves(sigma):
    loss = functools.partial(losses.denoising, DATA.denoise, proposal=at(sigma), weighting=losses.uniform)
    value = jax.jit(loss)(X0, KEY)
    left = DATA.std**2 * sigma**2 / (DATA.std**2 + sigma**2)  # Var(x0 | x)
    assert float(value.mean()) == pytest.approx(left, rel=0.01)  # 160,000 squares: 0.35 % at one standard error


def test_weighted_as_by_karras_it_is_one_on_every_level():
    for proposal in (losses.lognormal(-1.2, 1.2), losses.karras()):
        loss = functools.partial(losses.denoising, DATA.denoise, proposal=proposal, weighting=losses.edm(DATA.std))
        value = jax.jit(loss)(X0, KEY)
        assert float(value.mean()) == pytest.approx(1.0, rel=0.01)


def test_the_exact_denoiser_has_no_gradient_and_any_other_has_more_loss():
    @jax.jit
    def mean(by):
        return losses.denoising(altered(by), X0, KEY, weighting=losses.edm(DATA.std)).mean()

    h = 0.05 * np.eye(2, dtype=np.float32)
    least, above, below = mean(0 * h[0]), np.array([mean(by) for by in h]), np.array([mean(-by) for by in h])
    assert (above > least).all() and (below > least).all()
    # it is quadratic: so far from zero is the least of this sample
    np.testing.assert_allclose(0.05 / 2 * (above - below) / (above - 2 * least + below), 0.0, atol=0.005)
    np.testing.assert_allclose(jax.grad(mean)(0 * h[0]), (above - below) / 0.1, atol=1e-3)


def test_the_levels_are_those_of_published_teachers():
    seen = []

    def spy(x, sigma, cond=None, *, key=None):
        seen.append(np.log(np.asarray(sigma)))
        return x

    losses.denoising(spy, X0, KEY)
    assert seen[0].mean() == pytest.approx(-1.2, abs=0.03) and seen[0].std() == pytest.approx(1.2, abs=0.03)


def test_a_small_network_learns_the_exact_denoiser():
    def function(params):
        return cmjax.denoiser_fn(jax.tree_util.Partial(affine, params), cmjax.cm.CMConfig())

    def value(params, key):
        x_key, loss_key = jax.random.split(key)
        return losses.denoising(function(params), DATA.draw(x_key, (256, 1)), loss_key).mean()

    params = jax.jit(functools.partial(fit, value, steps=1500))(affine_params(KEY, 1), jax.random.key(2))
    both = jax.jit(lambda x, sigma: (function(params)(x, sigma), DATA.denoise(x, sigma)))
    for sigma in (0.05, 0.2, 0.6, 2.0, 6.0):
        learned, exact = jax.device_get(both(X0[:200, :1] + sigma * X0[200:400, :1], sigma))
        np.testing.assert_allclose(learned, exact, atol=0.1)
        assert np.abs(learned - exact).mean() < 0.03
