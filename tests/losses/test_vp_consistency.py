"""Latent consistency distillation: each value replayed, with guidance of either kind; what it teaches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import replay
import vp_gaussian
from gaussian import Gaussian

import cmjax
from cmjax import losses

TABLE = replay.alphas_cumprod()
ALPHA, SIGMA = np.sqrt(TABLE), np.sqrt(1 - TABLE)
GRID = (99, 499, 999)


def network(x, t, cond, *, key=None):
    """Say something of x, t and the condition f[B]; NumPy or JAX."""
    xp = np if isinstance(x, np.ndarray) else jnp
    t = xp.asarray(t).astype(x.dtype)
    t = t.reshape(t.shape + (1,) * (x.ndim - 1)) if t.ndim else t
    return xp.sin(x * cond.reshape(cond.shape + (1,) * (x.ndim - 1)) + t * x.dtype.type(0.01))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_each_value_is_the_formula_with_a_guidance_scale_per_example(kind):
    config = cmjax.lcm.LCMConfig(prediction_type=kind, timestep_scaling=0.01)
    calls = {}

    def student(scale):
        def says(x, t, cond, *, key=None):
            calls[scale] = np.asarray(x, np.float64), np.asarray(t)
            return network(x, t, cond["label"] + scale * cond["w"])

        return cmjax.lcm.consistency_fn(says, config)

    x0 = np.random.default_rng(0).normal(size=(9, 3, 2)).astype(np.float32)
    label, w = np.linspace(0.5, 2.0, 9, dtype=np.float32), np.linspace(15.0, 3.0, 9, dtype=np.float32)
    teacher = cmjax.tcd.trajectory_fn(cmjax.guidance.classifier_free(network, 1.0 + w, jnp.zeros(())), config)
    value = losses.latent_consistency_distillation(
        student(0.1), student(0.2), teacher, x0, jax.random.key(1),
        timesteps=GRID, cond=jnp.asarray(label), student_cond={"label": jnp.asarray(label), "w": jnp.asarray(w)},
    )  # fmt: skip
    (x, t), (x_n, n) = calls[0.1], calls[0.2]
    assert set(t.tolist()) == set(GRID) and set(n.tolist()) == {0, 99, 499}

    def f(scale, x, t, b):
        said = network(x, t, np.asarray([label[b] + scale * w[b]], np.float64))
        zero = np.zeros_like(x)
        return replay.lcm_step(said, x, zero, TABLE, t, None, prediction_type=kind, timestep_scaling=0.01)[1]

    for b in range(9):
        at, low, x_t = int(t[b]), int(n[b]), x[b : b + 1]
        plain, guided = (
            replay.x0_eps(kind, network(x_t, at, np.asarray([c], np.float64)), x_t, TABLE[at]) for c in (0.0, label[b])
        )
        x0_w, eps_w = (q + float(w[b]) * (q - q_plain) for q, q_plain in zip(guided, plain, strict=True))
        expected = ALPHA[low] * x0_w + SIGMA[low] * eps_w  # the scripts': both are guided, then DDIM
        assert replay.distance(x_n[b : b + 1], expected, floor=1.0) < 1e-3
        gap = f(0.1, x_t, at, b) - f(0.2, x_n[b : b + 1], low, b)
        np.testing.assert_allclose(value[b], np.mean(gap**2), rtol=5e-3, atol=1e-6)


def test_the_lowest_target_is_the_teachers_own_point():
    config = cmjax.lcm.LCMConfig()
    f = cmjax.lcm.consistency_fn(lambda x, t, cond: jnp.zeros_like(x), config)
    wild = cmjax.lcm.consistency_fn(lambda x, t, cond: jnp.full_like(x, 1e3), config)
    x0, key = jnp.ones((4, 3)), jax.random.key(0)
    teacher = cmjax.tcd.trajectory_fn(lambda x, t, cond: jnp.zeros_like(x), config)
    values = [losses.latent_consistency_distillation(f, g, teacher, x0, key, timesteps=(499,)) for g in (f, wild)]
    np.testing.assert_array_equal(*values)
    assert 0.0 < float(values[0].max()) < 1e-5  # f is x / α; the target, at timestep 0, is α_0 of that


def test_the_gradient_is_zero_at_the_exact_function_and_nowhere_near():
    config, data = cmjax.lcm.LCMConfig(prediction_type="v_prediction"), Gaussian()
    exact, teacher = vp_gaussian.consistency(data, config), vp_gaussian.trajectory(data, config)
    x0 = data.draw(jax.random.key(0), (64, 3))

    def loss(w):
        f = lambda x, t, cond=None: exact(x, t) + w * jnp.sin(x)  # noqa: E731
        return losses.latent_consistency_distillation(f, exact, teacher, x0, jax.random.key(1)).mean()

    at = jax.jit(jax.value_and_grad(loss))
    value, slope = at(0.0)
    assert float(value) < 1e-10 and abs(float(slope)) < 1e-5
    assert float(at(0.1)[1]) > 0.05 and float(at(-0.1)[1]) < -0.05


def test_a_small_network_learns_the_consistency_function():
    config, data = cmjax.lcm.LCMConfig(prediction_type="sample"), Gaussian(mean=0.4, std=0.7)
    grid, teacher = (99, 299, 499, 699, 899), vp_gaussian.trajectory(data, config)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 600))

    def make(params):
        at = lambda t: params[jnp.searchsorted(jnp.array(grid), t)]  # noqa: E731
        return cmjax.lcm.consistency_fn(lambda x, t, cond: at(t)[:, :1] * x + at(t)[:, 1:], config)

    @jax.jit
    def fit(params, keys):
        def step(carry, key):
            params, state = carry
            x0 = data.draw(jax.random.fold_in(key, 1), (256, 1))

            def objective(params):
                f = make(params)
                return losses.latent_consistency_distillation(f, f, teacher, x0, key, timesteps=grid).mean()

            updates, state = optimizer.update(jax.grad(objective)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    f = make(fit(jnp.zeros((5, 2)), jax.random.split(jax.random.key(0), 600)))
    exact = vp_gaussian.consistency(data, config)
    for t in grid:
        x = ALPHA[t] * 0.4 + jnp.linspace(-2.0, 2.0, 5)[:, None]
        at = jnp.full(5, t)
        np.testing.assert_allclose(f(x, at), exact(x, at), atol=0.03)


def test_a_guidance_scale_is_shown_as_a_sinusoid():
    w = np.array([0.0, 0.5, 7.5, 14.0])
    omega = 10000.0 ** (-np.arange(128) / 127)
    phase = 1000.0 * w[:, None] * omega
    expected = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    np.testing.assert_allclose(cmjax.models.guidance_embedding(jnp.asarray(w)), expected, atol=2e-3)
    assert cmjax.models.guidance_embedding(jnp.asarray(w), 7).shape == (4, 7)
