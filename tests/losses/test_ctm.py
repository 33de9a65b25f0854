"""Consistency trajectories: which levels are drawn, what is computed of them, and what they teach."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian import Gaussian

import cmjax
from cmjax import losses
from cmjax.losses import ctm

CONFIG = cmjax.cm.CMConfig()
KEY = jax.random.key(5)
DATA = Gaussian(0.3, 0.6)
X0 = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
heun = functools.partial(cmjax.ode.heun, DATA.denoise)


def grid(n):
    return (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def spied(seen, scale):
    """A wrong jump that notes what it is given, (x, t, s)."""

    def jump(x, t, s, cond=None, *, key=None):
        jax.debug.callback(lambda *given: seen.append([np.asarray(v, np.float64) for v in given]), x, t, s)
        return wrong(x, t, s, scale)

    return jump


def wrong(x, t, s, scale, np=jnp):
    share = (s / t)[:, None]
    return share * x + (1 - share) * np.sin(scale * x) / (1 + t + s)[:, None]


@pytest.fixture(scope="module")
def spied_loss():
    """The loss on a grid of 6, compiled once: key -> (values, the student's calls, the target's)."""
    student, target = [], []
    options = {"num_scales": 6, "max_steps": 4, "weighting": losses.inverse_gap}
    g, g_target = spied(student, 1.0), spied(target, 2.0)
    loss = jax.jit(lambda key: losses.consistency_trajectory(g, g_target, heun, X0, key, **options))

    def run(key):
        student.clear(), target.clear()
        value = loss(key)
        jax.effects_barrier()
        return value, student, target

    return run


@pytest.mark.parametrize("seed", range(4))
def test_a_float64_replay_of_each_example(seed, spied_loss):
    key, n = jax.random.key(seed), 6
    value, student, target = spied_loss(key)
    levels = grid(n)
    ((_, t, s),) = student
    u = next(u for _, u, s_target in target if np.allclose(s_target, s))  # the other two go from s to the end
    z = np.float64(jax.random.normal(jax.random.split(key, 5)[3], X0.shape))
    i_t, i_s = (np.argmin(np.abs(levels - v[:, None]), axis=1) for v in (t, s))
    steps = {int(np.argmin(np.abs(levels - v)) - i) for v, i in zip(u, i_t, strict=True)}
    assert len(steps) == 1 and 1 <= min(steps) <= 4  # one k for the batch
    k = steps.pop()
    assert (i_t + k <= i_s).all() and (i_s <= n - 1).all()

    def denoise(x, sigma):
        return DATA.mean + DATA.std**2 / (DATA.std**2 + sigma**2) * (x - DATA.mean)

    for i in range(len(X0)):
        x_t = X0[i : i + 1] + levels[i_t[i]] * z[i : i + 1]
        x_u = x_t
        for j in range(i_t[i], i_t[i] + k):
            a, b = levels[j], levels[j + 1]
            d = (x_u - denoise(x_u, a)) / a
            guess = x_u + (b - a) * d
            x_u = x_u + (b - a) * (d + (guess - denoise(guess, b)) / b) / 2
        t1, u1, s1, end = (np.array([v]) for v in (levels[i_t[i]], levels[i_t[i] + k], levels[i_s[i]], 0.002))
        ours = wrong(wrong(x_t, t1, s1, 1.0, np), s1, end, 2.0, np)
        theirs = wrong(wrong(x_u, u1, s1, 2.0, np), s1, end, 2.0, np)
        np.testing.assert_allclose(value[i], ((ours - theirs) ** 2).mean() / (t1 - s1)[0], rtol=2e-3, atol=1e-6)


def test_more_teacher_steps_are_likelier_in_proportion():
    keys = jax.random.split(KEY, 60_000)
    draw = jax.jit(jax.vmap(ctm._steps, in_axes=(0, None)))
    for most in (1, 4):
        share = np.bincount(draw(keys, most), minlength=most + 1)[1:] / 60_000
        np.testing.assert_allclose(share, np.arange(1, most + 1) / (most * (most + 1) / 2), atol=0.01)


def test_no_more_teacher_steps_run_than_were_drawn_and_no_number_compiles_anew():
    calls, traces = [], []

    def teacher(x, t, u, cond):
        jax.debug.callback(lambda: calls.append(1))
        return DATA.to(x, t, u)

    def jump(x, t, s, cond=None, *, key=None):
        traces.append(1)
        return DATA.to(x, t, s)

    loss = jax.jit(functools.partial(losses.consistency_trajectory, jump, jump, teacher, max_steps=5))
    counts = []
    for seed in range(8):
        for n in (2, 3, 18):
            loss(X0, jax.random.key(seed), num_scales=n).block_until_ready()
            jax.effects_barrier()
            counts.append(len(calls))
            assert 1 <= len(calls) <= min(5, n - 1)
            calls.clear()
    assert len(traces) == 4 and len(set(counts)) >= 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_scales": 1}, ValueError, "num_scales must be at least 2"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be a Python int"),
    ],
)
def test_too_few_levels_or_steps_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        losses.consistency_trajectory(DATA.to, DATA.to, heun, X0, KEY, **changes)


def test_the_gradient_flows_through_the_frozen_jump_and_not_into_it():
    def jump(w):
        return cmjax.parameterization.ctm_fn(jax.tree_util.Partial(lambda w, x, t, cond, *, s: w * x, w), CONFIG)

    def loss(w, v):
        return losses.consistency_trajectory(jump(w), jump(v), heun, X0, KEY, num_scales=4, max_steps=1).sum()

    run = jax.jit(loss)
    own, other = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.5, 0.3)
    assert float(other) == 0.0
    measured = (float(run(0.5 + 1e-2, 0.3)) - float(run(0.5 - 1e-2, 0.3))) / 2e-2
    assert float(own) == pytest.approx(measured, rel=2e-3) and abs(measured) > 1e-3


def test_a_balanced_loss_pulls_as_hard():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.float32(0.5)}

    def main(params):
        return 3 * jnp.square(params["a"]).sum()

    def other(params):
        return params["b"] ** 2 + params["a"].sum()

    weight = losses.balance(main, other, params)
    assert float(weight) == pytest.approx(6 * 5**0.5 / (3**0.5 + 1e-4), rel=1e-5)
    assert float(losses.balance(main, lambda p: 0.0 * p["b"], params)) == pytest.approx(1e4)
    assert float(jax.grad(lambda p: losses.balance(main, other, p))(params)["b"]) == 0.0


@pytest.mark.slow
def test_jumps_of_gaussian_data_land_with_its_mean_and_spread():
    data = Gaussian(0.3, 0.6)

    def network(params, x, t, cond, *, s):  # a(t, s) x + b(t, s): it can say the answer
        told = jnp.stack([jnp.broadcast_to(v, len(x)) for v in (t, s)], axis=1) / 500
        h = jnp.tanh(told @ params["a"] + params["b"]) @ params["c"]
        return h[:, :1] * x + h[:, 1:]

    k = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (2, 48), "b": (48,), "c": (48, 2)}
    params = {name: jax.random.normal(key, shape) for (name, shape), key in zip(shapes.items(), k, strict=True)}
    params["c"] *= 0.1
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))

    @jax.jit
    def fit(params):
        def step(carry, key):
            params, opt_state = carry
            x_key, loss_key = jax.random.split(key)
            x0 = data.draw(x_key, (128, 1))

            def objective(params):
                g = cmjax.parameterization.ctm_fn(jax.tree_util.Partial(network, params), CONFIG)
                return losses.consistency_trajectory(g, g, heun, x0, loss_key).mean()

            updates, opt_state = optimizer.update(jax.grad(objective)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 1500))[0][0]

    g = jax.jit(cmjax.parameterization.ctm_fn(jax.tree_util.Partial(network, fit(params)), CONFIG))
    x = data.mean + 80.0 * jax.random.normal(jax.random.key(2), (20_000, 1))
    once = g(x, 80.0, 0.002)
    twice = g(g(x, 80.0, 1.0), 1.0, 0.002)
    for clean in (once, twice):
        assert float(clean.mean()) == pytest.approx(0.3, abs=0.05)
        assert float(clean.std()) == pytest.approx(0.6, abs=0.05)
    assert float(g(x, 80.0, 1.0).std()) == pytest.approx(np.hypot(0.6, 1.0), abs=0.08)
