"""Consistency training without a teacher: which pairs it draws, what they teach, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import affine, affine_params, fit

import cmjax
from cmjax import losses

CONFIG = cmjax.cm.CMConfig()


def linear(w):
    """The consistency function of a one-parameter network, F(x) = w x."""
    return cmjax.consistency_fn(jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.float32(w)), CONFIG)


def test_the_pair_sits_on_neighbouring_points_of_the_grid():
    seen = []

    def f(x, sigma, cond=None, *, key=None):
        seen.append(np.asarray(sigma))
        return x

    n = 12
    losses.consistency_training(f, f, jnp.zeros((5000, 1)), jax.random.key(0), num_scales=n)
    grid = np.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), n) ** 7
    r, t = sorted(seen, key=np.mean)
    i = np.argmin(np.abs(grid - r[:, None]), axis=1)
    np.testing.assert_allclose(r, grid[i], rtol=2e-5)
    np.testing.assert_allclose(t, grid[i + 1], rtol=2e-5)
    # and interval i is drawn with the normal mass between its ends (Song & Dhariwal 2023, equation 10)
    cdf = np.array([0.5 * (1 + float(jax.scipy.special.erf((np.log(s) + 1.1) / (2.0 * np.sqrt(2))))) for s in grid])
    expected = np.diff(cdf) / (cdf[-1] - cdf[0])
    np.testing.assert_allclose(np.bincount(i, minlength=n - 1) / 5000, expected, atol=0.02)


def test_gap_one_is_denoising_and_never_calls_the_target():
    def poisoned(x, sigma, cond=None, *, key=None):
        return jnp.full_like(x, jnp.nan)

    x0 = jax.random.normal(jax.random.key(0), (4, 3))
    value = losses.easy_consistency_tuning(linear(0.3), poisoned, x0, jax.random.key(1), gap=1.0)
    assert bool(jnp.isfinite(value).all())


def test_a_traced_gap_equals_a_concrete_one():
    f, x0 = linear(0.3), jax.random.normal(jax.random.key(0), (4, 3))
    loss = functools.partial(losses.easy_consistency_tuning, f, f, x0, jax.random.key(1))
    traced = jax.jit(lambda gap: loss(gap=gap))
    for gap in (1.0, 0.5, 0.125):
        np.testing.assert_allclose(traced(gap), loss(gap=gap), rtol=1e-5)


@pytest.mark.parametrize("gap", [0.0, -1.0, 1.5])
def test_a_gap_outside_its_range_is_refused(gap):
    with pytest.raises(ValueError, match=r"gap must lie in \(0, 1\]"):
        losses.easy_consistency_tuning(linear(0.3), linear(0.3), jnp.ones((1, 1)), jax.random.key(0), gap=gap)


def test_one_noise_level_is_refused():
    with pytest.raises(ValueError, match="num_scales must be at least 2"):
        losses.consistency_training(linear(0.3), linear(0.3), jnp.ones((1, 1)), jax.random.key(0), num_scales=1)


def gaussian_discretization(s, t, nearer):
    """The consistency function w(t) x that pairs (t, nearer(t)) of a Gaussian N(0, s^2) teach under squared loss.

    Minimizing E (w(t) x_t - w(r) x_r)^2 over w(t), with x_t = x0 + t z and x_r = x0 + r z, gives
    w(t) = w(r) (s^2 + r t) / (s^2 + t^2).
    """
    r = nearer(t)
    return 1.0 if r >= t else gaussian_discretization(s, r, nearer) * (s**2 + r * t) / (s**2 + t**2)


def karras_neighbour(t, n=12, low=0.002 ** (1 / 7), high=80.0 ** (1 / 7)):
    i = round((t ** (1 / 7) - low) / (high - low) * (n - 1))
    return (low + max(i - 1, 0) / (n - 1) * (high - low)) ** 7


def eased_neighbour(t, gap=0.25):
    return max(t * (1 - gap * (1 + 8 / (1 + np.exp(t)))), 0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "nearer"),
    [
        (functools.partial(losses.consistency_training, num_scales=12), karras_neighbour),
        (functools.partial(losses.easy_consistency_tuning, gap=0.25), eased_neighbour),
    ],
    ids=("consistency_training", "easy_consistency_tuning"),
)
def test_training_learns_what_its_pairs_say_on_gaussian_data(loss, nearer):
    s = 0.8

    def function(params):
        return cmjax.consistency_fn(jax.tree_util.Partial(affine, params), CONFIG)

    def value(params, key):
        x_key, loss_key = jax.random.split(key)
        f = function(params)
        return loss(f, f, s * jax.random.normal(x_key, (256, 1)), loss_key, metric=losses.l2).mean()

    params = affine_params(jax.random.key(0), 1)
    f = function(jax.jit(functools.partial(fit, value))(params, jax.random.key(1)))
    grid = [(0.002 ** (1 / 7) + i / 11 * (80.0 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in (4, 5, 6, 7, 8)]
    taught = [gaussian_discretization(s, t, nearer) for t in grid]  # from sigma 0.1 to 7
    learned = jax.jit(f)(jnp.ones((5, 1)), jnp.array(grid, jnp.float32))
    np.testing.assert_allclose(np.asarray(learned)[:, 0], taught, atol=0.04)


@pytest.mark.parametrize("one", [1, np.int64(1), jnp.int32(1)])
def test_any_kind_of_number_is_checked(one):
    def f(x, sigma, cond=None, *, key=None):
        return x

    x0, key = jnp.zeros((2, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="num_scales must be at least 2"):
        losses.consistency_training(f, f, x0, key, num_scales=one)
    with pytest.raises(ValueError, match=r"gap must lie in \(0, 1\]"):
        losses.easy_consistency_tuning(f, f, x0, key, gap=one - 1)
