"""Trajectory consistency distillation: what it draws, each value replayed, what it teaches, what is refused."""

from __future__ import annotations

import functools

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
TYPES = ("epsilon", "sample", "v_prediction")


class Seen:
    """A function of timesteps that remembers what it was called with; its rates and grid shine through."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *args, **options):
        self.calls.append((args, options))
        return self.function(*args, **options)

    def __getattr__(self, name):
        return getattr(self.function, name)


def wave(shift):
    """A network that tells timesteps apart; NumPy or JAX."""

    def network(x, t, cond=None, *, key=None):
        xp = np if isinstance(x, np.ndarray) else jnp
        t = xp.asarray(t).astype(x.dtype)
        return xp.sin(x + shift + (t.reshape(t.shape + (1,) * (x.ndim - 1)) if t.ndim else t) * x.dtype.type(0.01))

    return network


def drawn(batch=4000, **options):
    """(t, n, m, x_t) of a large batch."""
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: x, cmjax.tcd.TCDConfig())
    student, target = Seen(g), Seen(g)
    losses.trajectory_distillation(student, target, g, jnp.full((batch, 1), 0.5), jax.random.key(0), **options)
    (x, t, m, _), _ = student.calls[0]
    (_, n, m_target, _), _ = target.calls[0]
    np.testing.assert_array_equal(m, m_target)
    return *(np.asarray(v) for v in (t, n, m)), np.asarray(x)


@pytest.mark.parametrize(
    ("options", "grid", "skip"),
    [
        ({}, np.arange(1, 51) * 20 - 1, 1),
        ({"timesteps": (199, 599, 999)}, (199, 599, 999), 1),
        ({"timesteps": (0, 199, 599, 999)}, (199, 599, 999), 1),
        ({"timesteps": (199, 399, 599, 799, 999), "skip": 2}, (199, 399, 599, 799, 999), 2),
    ],
    ids=("default", "by hand", "with 0", "skip"),
)
def test_pairs_and_landings_are_drawn_evenly_from_the_grid(options, grid, skip):
    t, n, m, _ = drawn(**options)
    levels = np.array([0, *grid])
    i = np.searchsorted(levels, t)
    np.testing.assert_array_equal(levels[i], t)
    np.testing.assert_allclose(np.bincount(i, minlength=len(levels))[1:] / len(t), 1 / len(grid), atol=0.03)
    below = np.maximum(i - skip, 0)
    np.testing.assert_array_equal(levels[below], n)
    j = np.searchsorted(levels, m)
    np.testing.assert_array_equal(levels[j], m)
    share = j / np.maximum(below, 1)
    assert (j <= below).all() and ((j == below) & (j > 0)).any() and ((j == 0) & (below > 0)).any()
    assert share[below > 0].mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("segments", [2, 3, 4, 8, 50])
@pytest.mark.parametrize("to_start", [False, True])
def test_no_jump_leaves_its_segment(segments, to_start):
    """Segments begin where the steps of a path of as many steps do."""
    t, n, m, _ = drawn(skip=7, segments=segments, to_start=to_start)
    begins = np.append(0, np.asarray(cmjax.tcd.init(cmjax.tcd.TCDConfig(), segments).timesteps)[:0:-1])
    of_t = begins[np.searchsorted(begins, t) - 1]
    levels = np.array([0, *(np.arange(1, 51) * 20 - 1)])
    i, first = np.searchsorted(levels, t), np.searchsorted(levels, of_t)
    np.testing.assert_array_equal(n, levels[np.maximum(i - 7, first)])
    assert (m <= n).all() and (m >= of_t).all() and set(t) == set(levels[1:])
    if to_start:
        np.testing.assert_array_equal(m, of_t)
    elif segments < 5:
        share = (np.searchsorted(levels, m) - first) / np.maximum(np.searchsorted(levels, n) - first, 1)
        assert share[n > of_t].mean() == pytest.approx(0.5, abs=0.03)


def test_one_segment_is_the_whole_trajectory_and_stages_have_one_program():
    g = cmjax.tcd.trajectory_fn(wave(0.0), cmjax.tcd.TCDConfig())
    x0 = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    loss = lambda **options: losses.trajectory_distillation(g, g, g, x0, jax.random.key(1), **options)  # noqa: E731
    staged = jax.jit(lambda k: loss(segments=k))
    np.testing.assert_allclose(staged(1), loss(), rtol=1e-5)
    np.testing.assert_allclose(staged(4), loss(segments=4), rtol=1e-5)
    assert staged._cache_size() == 1 and not np.allclose(staged(4), staged(1))
    for segments in (0, 51):
        with pytest.raises(ValueError, match=rf"segments must lie in \[1, 50\], the size of the grid, got {segments}"):
            loss(segments=segments)


def test_the_noise_is_the_teachers():
    t, _, _, x = drawn()
    z = (x[:, 0] - ALPHA[t] * 0.5) / SIGMA[t]
    assert z.mean() == pytest.approx(0.0, abs=0.06) and z.std() == pytest.approx(1.0, abs=0.05)


def jumped(network, kind, x, t, s):
    """DDIM, in float64, of one example."""
    x0, eps = replay.x0_eps(kind, network(x, t), x, TABLE[t])
    return x if s == t else ALPHA[s] * x0 + SIGMA[s] * eps


@pytest.mark.parametrize(("kind", "segments"), [*((kind, 1) for kind in TYPES), ("v_prediction", 2)])
def test_each_value_is_the_formula(kind, segments):
    config = cmjax.tcd.TCDConfig(prediction_type=kind, original_inference_steps=5)
    networks = [wave(shift) for shift in (0.0, 0.5, 1.0)]
    g, g_target, teacher = (Seen(cmjax.tcd.trajectory_fn(network, config)) for network in networks)
    x0 = np.random.default_rng(0).normal(size=(12, 3, 2)).astype(np.float32)
    weighting = lambda t, n: t + 2 * n  # noqa: E731
    options = {"weighting": weighting, "segments": segments, "to_start": segments > 1}
    value = losses.trajectory_distillation(g, g_target, teacher, x0, jax.random.key(1), **options)
    (x, t, m, _), _ = g.calls[0]
    (_, n, _, _), _ = g_target.calls[0]
    assert len(set(np.asarray(t).tolist())) > 3
    for b in range(12):
        at, low, end, x_t = int(t[b]), int(n[b]), int(m[b]), np.asarray(x[b : b + 1], np.float64)
        x_n = jumped(networks[2], kind, x_t, at, low)
        gap = jumped(networks[0], kind, x_t, at, end) - jumped(networks[1], kind, x_n, low, end)
        weight = SIGMA[at] / ALPHA[at] + 2 * SIGMA[low] / ALPHA[low]
        np.testing.assert_allclose(value[b], weight * np.mean(gap**2), rtol=2e-3, atol=1e-6)


def off(w, g):
    """A trajectory function that is wrong by w."""
    return lambda x, t, s, cond=None, *, key=None: g(x, t, s) + w * jnp.sin(x)


def test_the_gradient_is_zero_at_the_exact_function_and_nowhere_near():
    config = cmjax.tcd.TCDConfig(prediction_type="v_prediction")
    exact = vp_gaussian.trajectory(Gaussian(), config)
    x0 = Gaussian().draw(jax.random.key(0), (64, 3))

    def loss(w):
        g = off(w, exact)
        return losses.trajectory_distillation(g, exact, exact, x0, jax.random.key(1)).mean()

    at = jax.jit(jax.value_and_grad(loss))
    value, slope = at(0.0)
    assert float(value) < 1e-10 and abs(float(slope)) < 1e-5
    assert float(at(0.1)[1]) > 0.05 and float(at(-0.1)[1]) < -0.05


def test_no_gradient_reaches_the_teacher():
    config = cmjax.tcd.TCDConfig()
    make = lambda w: cmjax.tcd.trajectory_fn(  # noqa: E731
        jax.tree_util.Partial(lambda w, x, t, cond: w * x, jnp.float32(w)), config
    )
    x0 = jnp.ones((4, 3))
    loss = lambda teacher: losses.trajectory_distillation(make(0.3), make(0.4), teacher, x0, jax.random.key(0)).sum()  # noqa: E731
    for slope in jax.tree.leaves(jax.jit(jax.grad(loss))(make(0.5))):
        np.testing.assert_array_equal(slope, 0.0)


def test_the_teacher_and_the_student_have_their_own_conditions():
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond, key=None: x, cmjax.tcd.TCDConfig())
    student, target, teacher = Seen(g), Seen(g), Seen(g)
    loss = functools.partial(losses.trajectory_distillation, student, target, teacher, jnp.ones((2, 3)))
    loss(jax.random.key(0), cond="prompt", dropout=True)
    loss(jax.random.key(0), cond="prompt", student_cond="prompt and scale")
    assert [args[3] for args, _ in student.calls] == ["prompt", "prompt and scale"]
    assert [args[3] for args, _ in target.calls] == ["prompt", "prompt and scale"]
    assert [(args[3], options) for args, options in teacher.calls] == [("prompt", {})] * 2


def fit(make, params, loss, steps, rate, batch):
    """Train by Adam in one scan; `make` takes params to g, `loss` takes g and a key to f32[]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(params, keys):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(lambda params: loss(make(params), key, batch))(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return run(params, jax.random.split(jax.random.key(0), steps))


GRID = (99, 299, 499, 699, 899)
SAMPLE = cmjax.tcd.TCDConfig(prediction_type="sample")


@pytest.mark.slow
def test_a_network_that_sees_the_landing_learns_the_trajectory():
    data = Gaussian(mean=jnp.array([0.3, -0.5]), std=jnp.array([0.4, 1.5]))
    teacher = vp_gaussian.trajectory(data, SAMPLE)
    base = cmjax.tcd.trajectory_fn(lambda x, t, cond: cond, SAMPLE)  # says what it is told

    def make(params):
        def g(x, t, s, cond=None, *, key=None):
            alpha, sigma = base.rates(t)
            alpha_s, sigma_s = base.rates(s)
            hidden = jnp.tanh(
                jnp.stack([alpha, sigma, alpha_s, sigma_s, alpha / sigma, sigma_s / sigma], 1) @ params["a"]
            )
            gain, shift = jnp.split(jnp.tanh(hidden @ params["b"]) @ params["c"], 2, axis=1)
            return base(x, t, s, gain * x + shift)

        return g

    k = jax.random.split(jax.random.key(1), 3)
    shapes = {"a": (6, 32), "b": (32, 32), "c": (32, 4)}
    params = {
        name: jax.random.normal(key, shape) / np.sqrt(shape[0])
        for key, (name, shape) in zip(k, shapes.items(), strict=True)
    }

    def loss(g, key, batch):
        x_key, key = jax.random.split(key)
        x0 = data.draw(x_key, (batch, 2))
        return losses.trajectory_distillation(g, g, teacher, x0, key, timesteps=GRID).mean()

    g = make(fit(make, params, loss, 1200, 1e-2, 128))
    for t, s in ((899, 0), (899, 299), (699, 499), (299, 0)):
        x0, z = data.draw(jax.random.key(2), (4000, 2)), jax.random.normal(jax.random.key(3), (4000, 2))
        x = ALPHA[t] * x0 + SIGMA[t] * z
        landed = np.asarray(g(x, jnp.full(4000, t), jnp.full(4000, s)), np.float64)
        right = np.asarray(data.flow(x, (ALPHA[t], SIGMA[t]), (ALPHA[s], SIGMA[s])), np.float64)
        np.testing.assert_allclose(landed.mean(0), right.mean(0), atol=0.05)
        np.testing.assert_allclose(np.cov(landed.T), np.cov(right.T), atol=0.1)


def chords(std):
    """The gains a_i, x0 = a_i x at timestep i, that the loss teaches a network of order 1 on N(0, std²).

    Such a network says one x0 for all landings, though no chord meets the whole trajectory. At level j the gain of the
    jump to m is p_m a + q_m, and the target's, through the exact step, is r_m: a = Σ p (r - q) / Σ p².
    """
    levels, spread = (0, *GRID), np.hypot(ALPHA * std, SIGMA)
    gains = [None]
    for j in range(1, len(levels)):
        t, n, m = levels[j], levels[j - 1], np.array(levels[:j])
        after = np.ones(j)
        if j > 1:
            after[:-1] = ALPHA[m[:-1]] * gains[-1] + SIGMA[m[:-1]] * (1 - ALPHA[n] * gains[-1]) / SIGMA[n]
        p, q, r = ALPHA[m] - SIGMA[m] * ALPHA[t] / SIGMA[t], SIGMA[m] / SIGMA[t], after * spread[n] / spread[t]
        gains.append(np.sum(p * (r - q)) / np.sum(p**2))
    return gains[1:]


def test_a_network_of_order_one_learns_the_best_chords():
    data = Gaussian(mean=0.0, std=0.5)
    teacher = vp_gaussian.trajectory(data, SAMPLE)

    def make(params):
        model = lambda x, t, cond: params[jnp.searchsorted(jnp.array(GRID), t)][:, None] * x  # noqa: E731
        return cmjax.tcd.trajectory_fn(model, SAMPLE)

    def loss(g, key, batch):
        x_key, key = jax.random.split(key)
        return losses.trajectory_distillation(g, g, teacher, data.draw(x_key, (batch, 1)), key, timesteps=GRID).mean()

    learned = fit(make, jnp.zeros(5), loss, 800, 3e-2, 256)
    np.testing.assert_allclose(learned, chords(0.5), atol=0.01)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"timesteps": (499, 499)}, ValueError, r"strictly ascending, but timesteps\[1\] = 499 follows 499"),
        ({"timesteps": (999, 499)}, ValueError, "strictly ascending"),
        ({"timesteps": (499, 1000)}, ValueError, r"must lie in \[0, 999\] \(num_train_timesteps = 1000\), got 1000"),
        ({"timesteps": (-1, 499)}, ValueError, r"must lie in \[0, 999\].*got -1"),
        ({"timesteps": (0,)}, ValueError, "timesteps must hold one above 0"),
        ({"timesteps": ()}, TypeError, "timesteps must be a list of whole numbers"),
        ({"timesteps": (19.5, 499.0)}, TypeError, "timesteps must be a list of whole numbers"),
        ({"timesteps": 499}, TypeError, "timesteps must be a list of whole numbers, got 499"),
        ({"skip": 0}, ValueError, "skip must be at least 1, got 0"),
        ({"skip": 1.5}, TypeError, "skip must be a Python int"),
    ],
)
@pytest.mark.parametrize("loss", [losses.trajectory_distillation, losses.latent_consistency_distillation])
def test_what_makes_no_grid_is_refused(loss, options, kind, message):
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: x, cmjax.tcd.TCDConfig())
    with pytest.raises(kind, match=message):
        loss(g, g, g, jnp.zeros((2, 3)), jax.random.key(0), **options)


def test_a_traced_grid_and_a_teacher_without_rates_are_refused():
    g = cmjax.tcd.trajectory_fn(lambda x, t, cond: x, cmjax.tcd.TCDConfig())
    loss = functools.partial(losses.trajectory_distillation, g, g)
    with pytest.raises(TypeError, match="timesteps must be concrete under jit"):
        jax.jit(lambda grid: loss(g, jnp.zeros((2, 3)), jax.random.key(0), timesteps=grid))(jnp.array([499, 999]))
    with pytest.raises(TypeError, match=r"teacher must be a trajectory function.*got a function"):
        loss(lambda x, t, s, cond: x, jnp.zeros((2, 3)), jax.random.key(0))
