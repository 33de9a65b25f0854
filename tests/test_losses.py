"""Metrics and consistency losses: hand-made values, the laws they obey, and what they teach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cmjax
from cmjax import losses

CONFIG = cmjax.cm.CMConfig()
LOSSES = {
    "consistency_training": functools.partial(losses.consistency_training, num_scales=20),
    "easy_consistency_tuning": functools.partial(losses.easy_consistency_tuning, gap=0.25),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def linear(w):
    """The consistency function of a one-parameter network, F(x) = w x."""
    return cmjax.consistency_fn(jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.float32(w)), CONFIG)


def test_metrics_by_hand():
    a, b = jnp.zeros((2, 2, 2)), jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(losses.l1(a, b), [7 / 4, 0])
    np.testing.assert_allclose(losses.l2(a, b), [25 / 4, 0])
    np.testing.assert_allclose(losses.pseudo_huber(a, b, c=12.0), [1, 0])
    np.testing.assert_allclose(losses.pseudo_huber(a, b), [np.sqrt(25 + 0.00108**2) - 0.00108, 0], rtol=1e-6)


def test_pseudo_huber_has_a_finite_gradient_where_equal():
    a = jnp.ones((1, 9))
    assert bool((jax.grad(lambda a: losses.pseudo_huber(a, jnp.ones((1, 9))).sum())(a) == 0).all())


def test_lognormal_keeps_its_law_and_its_bounds():
    sigma = losses.lognormal(-0.5, 1.0)(jax.random.key(0), (200_000,), 1e-4, 1e4)
    assert float(jnp.log(sigma).mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(jnp.log(sigma).std()) == pytest.approx(1.0, abs=0.01)
    narrow = losses.lognormal()(jax.random.key(0), (10_000,), 0.1, 0.2)
    assert float(narrow.min()) >= 0.1 and float(narrow.max()) <= 0.2


@each_loss
def test_one_value_per_example_and_finite_gradients(loss):
    x0 = jax.random.normal(jax.random.key(0), (7, 4, 4, 1))
    f = linear(0.3)
    assert loss(f, f, x0, jax.random.key(1)).shape == (7,)
    grads = jax.grad(lambda f, x0: loss(f, f, x0, jax.random.key(1)).mean(), argnums=(0, 1))(f, x0)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@each_loss
def test_no_gradient_reaches_the_target(loss):
    x0 = jax.random.normal(jax.random.key(0), (8, 6))
    slope = jax.grad(lambda target: loss(linear(0.3), target, x0, jax.random.key(1)).sum())(linear(0.3))
    assert float(jax.tree.leaves(slope)[0]) == 0.0


@each_loss
def test_the_true_consistency_function_has_no_loss(loss):
    # One data point, at a: the trajectory through x at sigma ends (at sigma_min) at a + (x - a) sigma_min / sigma.
    a = 0.7

    def f(x, sigma, cond=None, *, key=None):
        return a + (x - a) * (CONFIG.sigma_min / sigma).reshape(-1, 1)

    x0 = jnp.full((64, 3), a)
    right = loss(f, f, x0, jax.random.key(0))
    wrong = loss(linear(0.3), linear(0.3), x0, jax.random.key(0))
    assert float(right.max()) < 1e-3 and float(wrong.mean()) > 0.1


@each_loss
def test_student_and_target_get_one_dropout_key(loss):
    keys = []

    def f(x, sigma, cond=None, *, key=None):
        keys.append(key)
        return x

    loss(f, f, jnp.ones((2, 3)), jax.random.key(0))
    assert keys == [None, None]
    keys.clear()
    loss(f, f, jnp.ones((2, 3)), jax.random.key(0), dropout=True)
    assert len(keys) == 2 and (jax.random.key_data(keys[0]) == jax.random.key_data(keys[1])).all()


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
    for gap in (1.0, 0.5, 0.125):
        np.testing.assert_allclose(jax.jit(lambda gap: loss(gap=gap))(gap), loss(gap=gap), rtol=1e-5)


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


@pytest.mark.parametrize(
    ("loss", "nearer"),
    [
        (functools.partial(losses.consistency_training, num_scales=12), karras_neighbour),
        (functools.partial(losses.easy_consistency_tuning, gap=0.25), eased_neighbour),
    ],
    ids=LOSSES,
)
def test_training_learns_what_its_pairs_say_on_gaussian_data(loss, nearer):
    s = 0.8

    def network(params, x, t, cond):  # w(log sigma) x: it can say the answer
        hidden = jnp.tanh(t[:, None] / 250.0 * params["a"] + params["b"])
        return (hidden @ params["c"])[:, None] * x

    k = jax.random.split(jax.random.key(0), 3)
    params = {name: jax.random.normal(key, (32,)) for name, key in zip("abc", k, strict=True)}
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 2500))

    @jax.jit
    def fit(params, key):
        def step(carry, key):
            params, opt_state = carry
            x_key, loss_key = jax.random.split(key)
            x0 = s * jax.random.normal(x_key, (256, 1))

            def objective(params):
                f = cmjax.consistency_fn(jax.tree_util.Partial(network, params), CONFIG)
                return loss(f, f, x0, loss_key, metric=losses.l2).mean()

            updates, opt_state = optimizer.update(jax.grad(objective)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 2500))[0][0]

    f = cmjax.consistency_fn(jax.tree_util.Partial(network, fit(params, jax.random.key(1))), CONFIG)
    grid = [(0.002 ** (1 / 7) + i / 11 * (80.0 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in (4, 5, 6, 7, 8)]
    taught = [gaussian_discretization(s, t, nearer) for t in grid]  # from sigma 0.1 to 7
    np.testing.assert_allclose(f(jnp.ones((5, 1)), jnp.array(grid, jnp.float32))[:, 0], taught, atol=0.04)


@pytest.mark.parametrize("one", [1, np.int64(1), jnp.int32(1)])
def test_any_kind_of_number_is_checked(one):
    def f(x, sigma, cond=None, *, key=None):
        return x

    x0, key = jnp.zeros((2, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="num_scales must be at least 2"):
        losses.consistency_training(f, f, x0, key, num_scales=one)
    with pytest.raises(ValueError, match=r"gap must lie in \(0, 1\]"):
        losses.easy_consistency_tuning(f, f, x0, key, gap=one - 1)


def test_pseudo_huber_without_its_length_is_the_distance():
    grad = jax.grad(lambda a: losses.pseudo_huber(a, jnp.zeros((1, 2)), c=0.0).sum())
    np.testing.assert_allclose(grad(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(grad(jnp.zeros((1, 2))), 0.0)


@pytest.mark.parametrize("metric", [losses.l1, losses.l2, losses.pseudo_huber])
def test_what_has_not_one_shape_is_no_pair(metric):
    with pytest.raises(ValueError, match=r"a and b must have one shape, got \(4, 8\) and \(4, 1\)"):
        metric(jnp.zeros((4, 8)), jnp.zeros((4, 1)))
