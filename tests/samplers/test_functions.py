"""The functions that are trained, g(x, t, s) and f(x, t): against a replay, on Gaussian data, at their edges."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay
import vp_gaussian
from gaussian import Gaussian

import cmjax
from cmjax.parameterization import model_out, x0_eps

TYPES = ("epsilon", "sample", "v_prediction")
TABLE = replay.alphas_cumprod()
ALPHA, SIGMA = np.sqrt(TABLE), np.sqrt(1 - TABLE)
CONFIGS = {kind: cmjax.tcd.TCDConfig(prediction_type=kind) for kind in TYPES}
DATA = Gaussian(mean=0.3, std=0.6)


def network(x, t, cond=None, *, key=None):
    """Something smooth that tells timesteps apart; NumPy or JAX."""
    xp = np if isinstance(x, np.ndarray) else jnp
    t = xp.asarray(t).astype(x.dtype)
    t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
    return xp.sin(x + t * x.dtype.type(0.01))


def replayed(kind, x, t, s, order):
    """g(x, t, s) of one example, in float64, written as Zheng et al. 2024 write it."""
    lam = np.log(ALPHA / SIGMA)
    x0, eps = replay.x0_eps(kind, network(x, t), x, TABLE[t])
    h = lam[s] - lam[t]
    if order == 2 and s != t:
        middle = np.abs(lam - (lam[s] + lam[t]) / 2)
        u = int(np.argmin(middle))
        u = s if u == t else u
        r = (lam[u] - lam[t]) / h
        x_u = ALPHA[u] * x0 + SIGMA[u] * eps
        x0_u, _ = replay.x0_eps(kind, network(x_u, u), x_u, TABLE[u])
        x0 = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * x0_u
    return SIGMA[s] / SIGMA[t] * x - ALPHA[s] * np.expm1(-h) * x0


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", TYPES)
def test_each_jump_is_the_formula(kind, order):
    x = np.random.default_rng(0).normal(size=(10, 3, 2))
    t = np.array([999, 999, 519, 500, 19, 1, 259, 40, 40, 500])
    s = np.array([0, 759, 19, 499, 0, 0, 259, 700, 41, 501])
    g = cmjax.tcd.trajectory_fn(network, CONFIGS[kind], order=order)
    g, x32 = jax.jit(g), x.astype(np.float32)
    landed = np.asarray(g(x32, t, s))
    for i in range(10):
        expected = replayed(kind, x[i : i + 1], t[i], s[i], order)
        assert replay.distance(landed[i : i + 1], expected, floor=1.0) < 2e-4
        alone = g(x32[i : i + 1], t[i], s[i])
        np.testing.assert_allclose(alone[0], landed[i], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("t", "s"), [(3, 2), (2, 3), (1, 0), (0, 1)])
def test_order_two_between_neighbours_takes_the_mean_of_both_ends(t, s):
    betas = (0.1, 0.3, 0.5, 0.7)
    config = cmjax.tcd.TCDConfig(
        num_train_timesteps=4, trained_betas=betas, original_inference_steps=4, prediction_type="sample"
    )
    x, bars = np.random.default_rng(0).normal(size=(2, 3)), np.cumprod(1 - np.array(betas))
    alpha, sigma = np.sqrt(bars), np.sqrt(1 - bars)
    x0 = network(x, 100 * t)
    x_s = alpha[s] * x0 + sigma[s] * (x - alpha[t] * x0) / sigma[t]
    x0 = (x0 + network(x_s, 100 * s)) / 2
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: network(x, 100 * t), config, order=2)
    expected = alpha[s] * x0 + sigma[s] * (x - alpha[t] * x0) / sigma[t]
    np.testing.assert_allclose(g(jnp.asarray(x, jnp.float32), t, s), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", TYPES)
def test_to_stay_is_the_identity_even_in_its_gradient(kind, order):
    g = cmjax.tcd.trajectory_fn(jax.tree_util.Partial(network), CONFIGS[kind], order=order)
    x, t = np.random.default_rng(0).standard_normal((4, 3), np.float32), np.array([0, 19, 500, 999])

    @jax.jit
    def stay_and_go(g, x):
        there, slope = g(x, t, t), jax.grad(lambda x: g(x, t, t).sum())(x)
        return there, slope, jax.grad(lambda g: g(x, t, np.array([0, 0, 500, 998])).sum())(g)

    there, slope, slopes = stay_and_go(g, x)
    np.testing.assert_array_equal(there, x)
    np.testing.assert_array_equal(slope, np.ones_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("kind", TYPES)
def test_order_one_is_where_the_sampler_lands(kind):
    state = cmjax.tcd.init(CONFIGS[kind], num_steps=4, eta=0.3)
    x = jax.random.normal(jax.random.key(0), (2, 5))
    out = network(x, state.timesteps[0])
    g = cmjax.tcd.trajectory_fn(network, CONFIGS[kind])
    np.testing.assert_allclose(g(x, 999, state.landings[0]), state.land(state.predict(out, x)), rtol=1e-5, atol=1e-5)


def test_order_two_is_of_second_order_on_gaussian_data():
    x = jnp.linspace(-2.0, 2.0, 5)[:, None]

    def error(order, n):
        g = cmjax.tcd.trajectory_fn(
            vp_gaussian.network(DATA, CONFIGS["v_prediction"]), CONFIGS["v_prediction"], order=order
        )
        path, end, g = np.linspace(999, 199, n + 1).round().astype(int), x, jax.jit(g)
        for t, s in itertools.pairwise(path):
            end = g(end, t, s)
        right = DATA.flow(x, (ALPHA[999], SIGMA[999]), (ALPHA[199], SIGMA[199]))
        return float(jnp.abs(end - right).max())

    assert error(1, 8) / error(1, 16) == pytest.approx(2.0, abs=0.5)
    assert error(2, 8) / error(2, 16) > 3.3
    assert error(2, 8) < 0.2 * error(1, 8)


@pytest.mark.parametrize("kind", TYPES)
def test_the_consistency_function_has_the_boundary_of_lcm(kind):
    config = cmjax.lcm.LCMConfig(prediction_type=kind, timestep_scaling=0.02)
    f, x = cmjax.lcm.consistency_fn(network, config), np.random.default_rng(1).normal(size=(4, 3))
    t = np.array([0, 19, 259, 999])
    out = f(jnp.asarray(x, jnp.float32), jnp.asarray(t))
    np.testing.assert_array_equal(out[0], x[0].astype(np.float32))
    for i in range(4):
        given = network(x[i : i + 1], t[i]), x[i : i + 1], np.zeros((1, 3))
        _, expected = replay.lcm_step(*given, TABLE, t[i], None, prediction_type=kind, timestep_scaling=0.02)
        assert replay.distance(out[i : i + 1], expected) < 1e-4


def test_bfloat16_keeps_tables_and_arithmetic_in_float32():
    seen = []

    def model(x, t, cond):
        seen.append((x.dtype, t.dtype))
        return x

    x, t = jnp.ones((2, 3), jnp.bfloat16), jnp.array([999, 998])
    g, f = cmjax.tcd.trajectory_fn(model, CONFIGS["sample"]), cmjax.lcm.consistency_fn(model, CONFIGS["sample"])
    assert g(x, t, 499).dtype == f(x, t).dtype == jnp.bfloat16
    assert seen == [(jnp.bfloat16, jnp.int32)] * 2
    for table, exact in ((g.alphas, ALPHA), (g.sigmas, SIGMA), (f.alphas, ALPHA), (f.sigmas, SIGMA)):
        assert table.dtype == jnp.float32
        np.testing.assert_allclose(table, exact, rtol=1e-7)


def test_out_of_the_table_is_nan():
    g, f = cmjax.tcd.trajectory_fn(network, CONFIGS["epsilon"]), cmjax.lcm.consistency_fn(network, CONFIGS["epsilon"])
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(jnp.isnan(g(x, jnp.array([1000, 999, -1]), jnp.array([0, 1000, -1])))[:, 0], True)
    np.testing.assert_array_equal(jnp.isnan(f(x, jnp.array([1000, -1, 0])))[:, 0], [True, True, False])


def test_the_models_arrays_come_first_and_cross_jit():
    g = cmjax.tcd.trajectory_fn(
        jax.tree_util.Partial(lambda w, x, t, cond, key=None: w * x, jnp.float32(0.5)), CONFIGS["epsilon"]
    )
    assert [leaf.shape for leaf in jax.tree.leaves(g)] == [(), (1000,), (1000,)]
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(jax.jit(lambda g: g(x, 999, 19))(g), g(x, 999, 19), rtol=1e-5)
    assert g.num_train_timesteps == 1000 and g.grid.tolist() == list(range(19, 1000, 20))


def test_keys_and_conditions_are_passed_on():
    seen = []

    def model(x, t, cond, **options):
        seen.append((cond, options))
        return x

    key = jax.random.key(0)
    cmjax.tcd.trajectory_fn(model, CONFIGS["epsilon"], order=2)(jnp.ones((1, 2)), 999, 19, "c", key=key)
    cmjax.lcm.consistency_fn(model, CONFIGS["epsilon"])(jnp.ones((1, 2)), 999, "c")
    assert seen == [("c", {"key": key})] * 2 + [("c", {})]


ZERO_SNR = cmjax.tcd.TCDConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
NO_GRID = cmjax.tcd.TCDConfig(original_inference_steps=1001)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: cmjax.tcd.trajectory_fn(network, cmjax.cm.CMConfig()),
            TypeError,
            "config must be a VPConfig.*got a CMC",
        ),
        (
            lambda: cmjax.lcm.consistency_fn(network, cmjax.cm.CMConfig()),
            TypeError,
            "config must be a VPConfig.*got a CM",
        ),
        (lambda: cmjax.tcd.trajectory_fn(network, CONFIGS["sample"], order=3), ValueError, "order must be 1 .* got 3"),
        (lambda: cmjax.tcd.trajectory_fn(network, ZERO_SNR, order=2), ValueError, "order = 2 needs signal and noise"),
        (lambda: cmjax.tcd.trajectory_fn(network, NO_GRID), ValueError, "original_inference_steps must be between 1"),
    ],
)
def test_what_makes_no_function_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "t", "kind", "message"),
    [
        (np.zeros((2, 3), np.uint8), 0, TypeError, "x must be a float array"),
        (np.zeros((2, 3), np.float32), 80.0, TypeError, "t must be timesteps, whole numbers of the table, got float32"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int32), ValueError, "one for each of 2 images, got shape"),
    ],
)
def test_what_is_no_sample_or_timestep_is_refused(x, t, kind, message):
    for function in (
        functools.partial(cmjax.tcd.trajectory_fn(network, CONFIGS["sample"]), s=0),
        cmjax.lcm.consistency_fn(network, CONFIGS["sample"]),
    ):
        with pytest.raises(kind, match=message):
            function(x, t)


def test_a_network_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the model returned shape \(2, 6\) for x of shape \(2, 3\)"):
        cmjax.tcd.trajectory_fn(lambda x, t, cond: jnp.zeros((2, 6)), CONFIGS["sample"])(jnp.zeros((2, 3)), 9, 0)


@pytest.mark.parametrize("kind", TYPES)
def test_what_a_network_should_say_is_what_is_read_off_it(kind):
    x0, eps = np.random.default_rng(0).normal(size=(2, 4, 3))
    said = model_out(kind, x0, eps, 0.8, 0.6)
    for read, wanted in zip(x0_eps(kind, said, 0.8 * x0 + 0.6 * eps, 0.8, 0.6), (x0, eps), strict=True):
        np.testing.assert_allclose(read, wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="prediction_type must be 'epsilon'"):
        model_out("flow", x0, eps, 0.8, 0.6)
