"""MeanFlow and shortcut models: what is drawn, what is computed of it, and that the right velocity is the optimum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gaussian import Gaussian

import cmjax
from cmjax import losses

KEY = jax.random.key(3)
DATA = Gaussian(0.3, 0.6)
X0 = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)


def wrong(x, t, r, np=jnp):
    """A wrong velocity, smooth in all three."""
    return np.sin(x * (1 + t[:, None])) + np.cos(2 * r)[:, None] * x


def slope(x, t, r, v):
    """Its derivative along dx = v, dt = 1."""
    phase = x * (1 + t[:, None])
    return np.cos(phase) * (v * (1 + t[:, None]) + x) + np.cos(2 * r)[:, None] * v


def spied(seen, function=wrong):
    def u(x, t, r, cond=None, *, key=None):
        jax.debug.callback(lambda *given: seen.append([np.asarray(v, np.float64) for v in given]), x, t, r)
        return function(x, t, r)

    return u


@pytest.mark.parametrize("improved", [False, True])
def test_mean_flow_replayed_in_float64(improved):
    seen = []
    value = losses.mean_flow(spied(seen), X0, KEY, improved=improved, instant=0.25, power=0.5)
    jax.effects_barrier()
    x, t, r = seen[-1]
    assert (r <= t).all() and 0.1 < np.mean(r == t) < 0.5
    wide = t[:, None]
    v = (x - X0) / wide  # z - x0, of x = (1 - t) x0 + t z
    towards = wrong(x, t, t, np) if improved else v
    error = ((wrong(x, t, r, np) + (t - r)[:, None] * slope(x, t, r, towards) - v) ** 2).mean(1)
    np.testing.assert_allclose(value, error / np.sqrt(3 * error + 1e-3), rtol=2e-4)


@pytest.mark.parametrize("improved", [False, True])
def test_the_gradient_of_mean_flow_vanishes_at_the_exact_velocity_of_spread_data(improved):
    """The loss does not: v is noisy. 4 standard errors of 40,000 examples."""

    def u(w, x, t, r, cond=None):
        r = jnp.where(t - r < 2e-3, t - 2e-3, r)
        exact = (x - DATA.flow(x, (1 - t, t), (1 - r, r))) / (t - r)[:, None]
        return exact + w[0] + w[1] * x

    def loss(w, x0, key):
        return losses.mean_flow(lambda *given: u(w, *given), x0, key, improved=improved, power=0.0, instant=0.5).mean()

    keys = jax.random.split(KEY, 400)
    x0 = DATA.draw(jax.random.key(1), (400, 100, 1))
    each = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(jnp.zeros(2), x0, keys))
    assert (np.abs(each.mean(0)) < 4 * each.std(0) / np.sqrt(400) + 5e-3).all()
    off = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(jnp.array([0.2, 0.2]), x0, keys))
    assert (np.abs(off.mean(0)) > 0.1).all()


@pytest.mark.slow
def test_the_derivative_of_a_network_is_that_of_differences():
    config = cmjax.models.UNetConfig(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
        target_embed_type="timestep",
    )  # fmt: skip
    network = cmjax.models.from_nnx(cmjax.models.UNet(config, rngs=nnx.Rngs(0)))
    leaves = {
        name: leaf + 0.1 * jax.random.normal(jax.random.fold_in(KEY, i), leaf.shape)  # no layer that begins as 0
        for i, (name, leaf) in enumerate(network.leaves().items())
    }
    config = cmjax.meanflow.MeanFlowConfig(num_train_timesteps=10)  # or differences of float32 would see waves pass
    u = cmjax.parameterization.mean_flow_fn(network.replace(leaves), config).velocity
    x, v = jax.random.normal(KEY, (2, 2, 8, 8, 1))
    t, r, h = jnp.array([0.9, 0.5]), jnp.array([0.2, 0.1]), 1e-3

    @jax.jit
    def both(x, v):
        along = jax.jvp(lambda x, t: u(x, t, r), (x, t), (v, jnp.ones(2)))[1]
        return along, (u(x + h * v, t + h, r) - u(x - h * v, t - h, r)) / (2 * h), u(x, t, r) - u(x, t, t)

    slope, differences, told = both(x, v)
    np.testing.assert_allclose(slope, differences, atol=0.02 * float(jnp.abs(slope).max()))
    assert float(jnp.abs(told).max()) > 1e-3  # s is heard


def test_shortcut_replayed_in_float64():
    students, targets = [], []
    value = losses.shortcut(spied(students), spied(targets), X0, KEY, finest=8, share=0.25)
    jax.effects_barrier()
    (x, t, r), (first, second) = students[0], sorted(targets, key=lambda given: -given[1].sum())
    plain, d = slice(0, 48), (t - r)[48:, None] / 2
    np.testing.assert_allclose((t - r)[plain], 1 / 8)
    assert set(np.round(2 * d[:, 0], 6)) == {1.0, 0.5, 0.25}
    steps = t / (t - r)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    assert steps.min() >= 1
    np.testing.assert_allclose(first[0], x[48:])
    v = wrong(*first, np)
    np.testing.assert_allclose(second[0], x[48:] - d * v, atol=1e-6)
    target = np.concatenate([((x - X0) / t[:, None])[plain], (v + wrong(*second, np)) / 2])
    np.testing.assert_allclose(value, ((wrong(x, t, r, np) - target) ** 2).mean(1), rtol=1e-4)


def test_the_exact_velocity_of_spread_data_is_what_two_steps_teach():
    def u(x, t, r, cond=None):
        return (x - DATA.flow(x, (1 - t, t), (1 - r, r))) / (t - r)[:, None]

    value = losses.shortcut(u, u, DATA.draw(KEY, (64, 3)), KEY, share=0.5)
    assert float(value[32:].max()) < 1e-5 < 0.01 < float(value[:32].mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.mean_flow(spied([]), X0, KEY, instant=1.5), r"instant must lie in \[0, 1\], got 1.5"),
        (lambda: losses.shortcut(wrong, wrong, X0, KEY, finest=6), "finest must be a power of two, at least 2, got 6"),
        (lambda: losses.shortcut(wrong, wrong, X0, KEY, share=1.0), r"share must lie in \(0, 1\), got 1.0"),
        (lambda: losses.shortcut(wrong, wrong, X0[:1], KEY), "x0 must hold at least two examples"),
        (
            lambda: losses.mean_flow(lambda x, t, r, cond: x[:, :1], X0, KEY),
            r"u returned shape \(64, 1\) for x of shape \(64, 3\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
