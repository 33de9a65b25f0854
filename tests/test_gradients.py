"""Gradients through the loop: against finite differences, the same with `remat`, and what memory they take."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax

KEY = jax.random.key(0)
CONFIG = cmjax.cm.CMConfig(clip_denoised=False)
X = 80.0 * np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def net(x, t, cond):
    return jnp.sin(2 * x) * jnp.cos(t / 250) + 0.3 * x**2 + (0.0 if cond is None else cond)


def reward(arguments, remat=False):
    """What all of them can change: the start, a guidance scale, noise levels, the scale of fresh noise."""
    model = cmjax.guidance.classifier_free(jax.tree_util.Partial(net), arguments["scale"], jnp.zeros(3))
    state = cmjax.cm.init(CONFIG, sigmas=arguments["sigmas"], s_noise=arguments["s_noise"])
    x = cmjax.sample(model, state, arguments["x"], KEY, jnp.full((2, 3), 0.7), remat=remat)
    return jnp.square(x - 0.5).sum()


ARGUMENTS = {
    "x": jnp.asarray(X),
    "scale": jnp.float32(1.7),
    "sigmas": jnp.array([80.0, 4.0, 0.7], jnp.float32),
    "s_noise": jnp.float32(0.8),
}


@pytest.fixture(scope="module")
def value_of():
    """The reward, compiled once."""
    return jax.jit(reward)


@pytest.fixture(scope="module")
def slopes():
    return jax.jit(jax.grad(reward))(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_gradients_are_finite_differences(name, slopes, value_of):
    value, h = ARGUMENTS[name], 3e-3
    direction = np.sign(np.asarray(slopes[name])) * np.maximum(np.abs(np.asarray(value)), 0.1)
    ahead, behind = (float(value_of(ARGUMENTS | {name: value + jnp.float32(d) * direction})) for d in (h, -h))
    measured = (ahead - behind) / (2 * h)
    expected = float(np.vdot(slopes[name], direction))
    assert abs(expected) > 1e-3
    assert measured == pytest.approx(expected, rel=0.02)


def test_remat_changes_no_number(slopes, value_of):
    value, again = value_of(ARGUMENTS), jax.jit(partial(reward, remat=True))(ARGUMENTS)
    assert value == again
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5),
        jax.jit(jax.grad(partial(reward, remat=True)))(ARGUMENTS),
        slopes,
    )


def test_without_remat_the_program_has_none():
    state = cmjax.cm.init(CONFIG, num_steps=3)
    walks = [cmjax.sample, cmjax.trajectory, partial(cmjax.generate, shape=X.shape)]
    for walk in walks:
        given = (KEY,) if isinstance(walk, partial) else (X, KEY)
        plain, remat = (str(jax.make_jaxpr(partial(walk, net, state, remat=remat))(*given)) for remat in (False, True))
        assert "remat" not in plain and "remat" in remat
    path, again = (jax.jit(partial(cmjax.trajectory, net, remat=remat))(state, X, KEY) for remat in (False, True))
    jax.tree.map(np.testing.assert_array_equal, path, again)


def test_remat_is_static():
    state = cmjax.cm.init(CONFIG, num_steps=3)
    with pytest.raises(TypeError, match="remat must be static under jit"):
        jax.jit(lambda remat: cmjax.sample(net, state, X, KEY, remat=remat))(True)


def test_with_remat_memory_grows_by_the_sample_alone():
    weights = [np.full((16, 512), 0.01, np.float32)] + 4 * [np.full((512, 512), 0.01, np.float32)]

    def wide(x, t, cond):
        h = x
        for w in weights:
            h = jnp.tanh(h @ w)
        return h @ weights[0].T

    def memory(num_steps, remat):
        state = cmjax.cm.init(CONFIG, num_steps=num_steps)
        slope = jax.grad(lambda x: cmjax.sample(wide, state, x, KEY, remat=remat).sum())
        return jax.jit(slope).lower(jnp.zeros((64, 16))).compile().memory_analysis().temp_size_in_bytes

    sample, inside = 64 * 16 * 4, 5 * 64 * 512 * 4
    plain, remat = (memory(8, remat) - memory(2, remat) for remat in (False, True))
    assert plain >= 6 * inside  # of six more steps jax 0.12 keeps just those, 0.10 some more
    assert memory(8, False) > 8 * inside and plain > 100 * remat
    assert remat < 6 * 1.5 * sample


def test_the_share_of_fresh_noise_of_an_ode_has_a_gradient():
    def denoise(x, sigma, cond):
        return jnp.sin(x / (1 + sigma))

    def end(eta):
        x = cmjax.ode.solve(cmjax.ode.euler, denoise, np.array([80.0, 5.0, 1.0, 0.1]), jnp.asarray(X), KEY, eta=eta)
        return jnp.square(x - 0.5).sum()

    slope, h = float(jax.jit(jax.grad(end))(0.6)), 3e-3
    at = jax.jit(end)
    assert (float(at(0.6 + h)) - float(at(0.6 - h))) / (2 * h) == pytest.approx(slope, rel=0.02)
