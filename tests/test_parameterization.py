"""Preconditioning, prediction types and the consistency function, in numbers one can redo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import parameterization as p


def test_preconditioning_by_hand():
    # sigma_data = 0.5: at sigma = 80, 0.25 / (79.998^2 + 0.25) and 79.998 * 0.5 / sqrt(6400.25)
    assert float(p.c_skip(jnp.float32(80.0), 0.5, 0.002)) == pytest.approx(3.90629e-5, rel=1e-5)
    assert float(p.c_out(jnp.float32(80.0), 0.5, 0.002)) == pytest.approx(0.49997774, rel=1e-6)
    assert float(p.c_in(jnp.float32(1.2), 0.5)) == pytest.approx(1 / 1.3, rel=1e-6)  # 1.44 + 0.25 = 1.3 squared
    assert float(p.c_noise(jnp.float32(1.0))) == 0.0
    assert float(p.c_noise(jnp.float32(80.0))) == pytest.approx(1095.506658668, rel=1e-6)


@pytest.mark.parametrize("sigma_min", [0.002, 0.009, 0.1])
def test_the_boundary_is_the_identity(sigma_min):
    config = cmjax.cm.CMConfig(sigma_min=sigma_min)
    f = cmjax.consistency_fn(lambda x, t, cond: jnp.full_like(x, 1e6), config)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    np.testing.assert_array_equal(f(x, sigma_min), x)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_three_types_say_the_same(prediction_type):
    x0, eps = jax.random.normal(jax.random.key(1), (2, 5, 3))
    alpha, sigma = jnp.float32(0.6), jnp.float32(0.8)
    x = alpha * x0 + sigma * eps
    says = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}
    got = p.x0_eps(prediction_type, says[prediction_type], x, alpha, sigma)
    np.testing.assert_allclose(got[0], x0, atol=1e-6)
    np.testing.assert_allclose(got[1], eps, atol=1e-6)


def test_another_prediction_type_is_refused():
    one = jnp.ones(())
    with pytest.raises(ValueError, match="prediction_type must be 'epsilon', 'sample' or 'v_prediction', got 'flow'"):
        p.x0_eps("flow", one, one, one, one)


def test_one_sigma_each_equals_one_at_a_time():
    f = jax.jit(cmjax.consistency_fn(lambda x, t, cond: jnp.sin(x + t.reshape(-1, 1)), cmjax.cm.CMConfig()))
    x, sigma = jax.random.normal(jax.random.key(0), (4, 6)), jnp.array([0.002, 0.1, 2.0, 80.0])
    together = f(x, sigma)
    for i in range(4):
        np.testing.assert_allclose(together[i], f(x[i : i + 1], sigma[i])[0], rtol=1e-6)


def test_it_keeps_the_dtype_and_passes_everything_on():
    seen = {}

    def model(x, t, cond, *, key):
        seen.update(x=x, t=t, cond=cond, key=key)
        return x

    f = cmjax.consistency_fn(model, cmjax.cm.CMConfig())
    out = f(jnp.ones((2, 3), jnp.bfloat16), jnp.float32(1.0), {"label": jnp.arange(2)}, key=jax.random.key(3))
    assert out.dtype == jnp.bfloat16 and seen["x"].dtype == jnp.bfloat16
    assert float(seen["t"]) == 0.0 and seen["key"] == jax.random.key(3)
    np.testing.assert_array_equal(seen["cond"]["label"], [0, 1])


def test_it_is_a_pytree_of_the_models_arrays():
    model = jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.float32(2.0))
    f = cmjax.consistency_fn(model, cmjax.cm.CMConfig())
    assert jax.tree.leaves(f) == [2.0]
    slope = jax.grad(lambda f: f(jnp.ones((1, 1)), 80.0).sum())(f)
    # d/dw c_out(80) * w * c_in(80) * 1
    assert float(jax.tree.leaves(slope)[0]) == pytest.approx(0.49997774 / np.sqrt(80**2 + 0.25), rel=1e-5)


def test_the_denoiser_has_the_scalings_of_the_paper() -> None:
    config = cmjax.cm.CMConfig(sigma_data=0.7)
    told = []

    def network(x: jax.Array, t: jax.Array, cond: object) -> jax.Array:
        told.append(t)
        return jnp.sin(x)

    x = np.random.default_rng(0).standard_normal((3, 4))
    for sigma in (0.01, 0.7, 50.0):
        weight = 1 / np.sqrt(sigma**2 + 0.49)
        expected = 0.49 * weight**2 * x + sigma * 0.7 * weight * np.sin(weight * x)
        actual = cmjax.denoiser_fn(network, config)(jnp.asarray(x, jnp.float32), sigma)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(told[-1], 250 * np.log(sigma), rtol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_karras_preconditioning_is_trigflow(sigma_data: float) -> None:
    config = cmjax.cm.CMConfig(sigma_data=sigma_data)
    seen = []

    def network(x: jax.Array, t: jax.Array, cond: object, *, key: object = None) -> jax.Array:
        seen.append((t, cond, key))
        return jnp.sin(3 * x + t[:, None] / 250)

    sigma = jnp.array([0.002, 0.1, 1.0, 9.0, 80.0])
    x = jax.random.normal(jax.random.key(0), (5, 4)) * jnp.hypot(sigma, sigma_data)[:, None]
    t = jnp.arctan(sigma / sigma_data)
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    net = p.trigflow_fn(network, config)
    x0 = cos * (cos * x) - sin * sigma_data * net(cos * x / sigma_data, t, "label", key="dropout")
    np.testing.assert_allclose(x0, p.denoiser_fn(network, config)(x, sigma), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0][0], 250 * np.log(sigma), rtol=1e-4, atol=0.01)
    assert seen[0][1:] == ("label", "dropout")
    back = p.denoiser_fn(p.from_trigflow(net, config), config)(x, sigma)
    np.testing.assert_allclose(back, p.denoiser_fn(network, config)(x, sigma), rtol=2e-4, atol=1e-5)


def test_the_ends_of_trigflow_are_finite() -> None:
    net = p.trigflow_fn(lambda x, t, cond: jnp.ones_like(x) * t, cmjax.cm.CMConfig())
    for t in (0.0, np.pi / 2):
        out, slope = jax.value_and_grad(lambda t: net(jnp.zeros((1, 1)), t)[0, 0])(jnp.float32(t))
        assert np.isfinite(out) and np.isfinite(slope)
    np.testing.assert_allclose(net(jnp.zeros((1, 1)), 0.0), -250 * np.log(0.5e-6), rtol=1e-5)


def test_the_trigflow_bridges_are_pytrees_of_the_models_arrays() -> None:
    model = jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.float32(2.0))
    config = cmjax.cm.CMConfig()
    assert jax.tree.leaves(p.trigflow_fn(model, config)) == jax.tree.leaves(p.from_trigflow(model, config)) == [2.0]


def test_the_jump_of_a_trajectory_model_by_hand() -> None:
    told = []

    def network(x: jax.Array, t: jax.Array, cond: object, *, s: jax.Array, key: object = None) -> jax.Array:
        told.append((t, s, cond, key))
        return jnp.sin(x)

    jump, x = p.ctm_fn(network, cmjax.cm.CMConfig()), np.random.default_rng(0).standard_normal((2, 3))
    t, s = np.array([2.0, 0.5]), np.array([0.1, 0.5])
    weight = 1 / np.sqrt(t**2 + 0.25)[:, None]
    inner = 0.25 * weight**2 * x + 0.5 * t[:, None] * weight * np.sin(weight * x)
    share = (s / t)[:, None]
    given = [jnp.asarray(v, jnp.float32) for v in (x, t, s)]
    out = jump(*given, "label", key="dropout")
    np.testing.assert_allclose(out, share * x + (1 - share) * inner, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[1], given[0][1])  # s = t
    np.testing.assert_allclose(told[0][0], 250 * np.log(t), rtol=1e-5)
    np.testing.assert_allclose(told[0][1], 250 * np.log(s), rtol=1e-5)
    assert told[0][2:] == ("label", "dropout")
    np.testing.assert_allclose(jump.denoise(given[0], given[1]), inner, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(told[1][0], told[1][1])
    with pytest.raises(TypeError, match="unexpected keyword argument 's'"):
        p.ctm_fn(lambda x, t, cond: x, cmjax.cm.CMConfig())(*given)
