"""Distillation: where pairs and targets lie, how good a teacher's step is, what is learned from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import affine, affine_params, fit
from gaussian import Gaussian

import cmjax
from cmjax import losses, ode, schedules

CONFIG = cmjax.cm.CMConfig()
DATA = Gaussian(mean=0.0, std=0.6)
KEY = jax.random.key(0)


def linear(w):
    """The network of one parameter, F(x) = w x."""
    return jax.tree_util.Partial(lambda w, x, t, cond, key=None: w * x, jnp.float32(w))


def student(w):
    return cmjax.consistency_fn(linear(w), CONFIG)


def exact(x, sigma, cond=None, *, key=None):
    return DATA.to(x, sigma, CONFIG.sigma_min)


def grid(n, sigma_min=0.002):
    """The Karras grid of n points, descending."""
    return schedules.karras_sigmas(np.arange(n), n, sigma_min, 80.0, 7.0)


# ---- consistency distillation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [losses.uniform, losses.inverse_gap])
def test_stepping_towards_the_data_is_training_without_a_teacher(weighting):
    x0 = DATA.draw(KEY, (64, 3))
    options = {"num_scales": 12, "proposal": losses.karras(), "weighting": weighting, "metric": losses.l2}

    @functools.partial(jax.jit, static_argnums=1)
    def value(x0, *teacher):
        loss = losses.consistency_distillation if teacher else losses.consistency_training
        return loss(student(0.3), student(0.2), *teacher, x0, KEY, **options)

    def straight(x, t, r, cond):  # an Euler step whose denoiser knows x0
        return ode.euler(lambda x, sigma, cond: jnp.asarray(x0), x, t, r)

    def with_the_noise(x, t, r, cond):
        return losses._pairs.noised(x0, (r,), jax.random.split(KEY, 3)[1])[0]

    np.testing.assert_allclose(value(x0, straight), value(x0), rtol=2e-4)
    np.testing.assert_allclose(value(x0, with_the_noise), value(x0), rtol=1e-6)


def test_with_the_exact_teacher_its_gradient_tends_to_that_of_training_without_one():
    """Song et al. 2023, theorem 2.

    With w(σ) = c_skip + c_out c_in w, the mean gradient of squared loss is 2 w'(t) times
      w(t) (s² + t²) - w(r) (s² + r t)                  in training, and
      w(t) (s² + t²) - w(r) √((s² + r²) (s² + t²))      in distillation:
    they differ by w(r) (t - r)² / 2 s² / (s² + t²) + ..., one order of the step less than they are.
    """
    level = 0.5

    @jax.jit
    def gradients(n):
        x0 = DATA.draw(KEY, (100_000, 1))
        options = {"num_scales": n, "proposal": lambda *_: jnp.full(len(x0), level), "metric": losses.l2}

        def mean(w, loss, *teacher):
            return loss(student(w), student(0.3), *teacher, x0, KEY, weighting=losses.uniform, **options).mean()

        distilled = jax.grad(mean)(0.3, losses.consistency_distillation, DATA.to)
        return distilled, jax.grad(mean)(0.3, losses.consistency_training)

    def closed_forms(n):
        low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
        i = np.floor((level ** (1 / 7) - low) / (high - low) * (n - 1))
        r, t = ((low + j / (n - 1) * (high - low)) ** 7 for j in (i, i + 1))

        def w(sigma, by=0.3):
            skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
            return skip + (sigma - 0.002) * 0.5 / (sigma**2 + 0.25) * by

        slope, s2 = 2 * (w(t, 1.0) - w(t, 0.0)), DATA.std**2
        taught = np.sqrt((s2 + r**2) * (s2 + t**2)), s2 + r * t
        return [slope * (w(t) * (s2 + t**2) - w(r) * at) for at in taught]

    apart = []
    for n in (10, 40):
        measured, expected = gradients(n), closed_forms(n)
        np.testing.assert_allclose(measured, expected, rtol=0.05)
        apart.append(abs(1 - expected[1] / expected[0]))
    assert apart[1] < apart[0] / 3


@pytest.mark.parametrize(("step", "order"), [(ode.euler, 1), (ode.heun, 2), (ode.dpm2, 2)])
def test_the_exact_function_has_the_loss_of_the_teachers_error(step, order):
    teacher, x0 = functools.partial(step, DATA.denoise), DATA.draw(KEY, (2000, 1))

    @jax.jit
    def error(r):  # of one step from 1 down to r: they are the whole grid
        at = {"num_scales": 2, "sigma_min": r, "sigma_max": 1.0}
        loss = losses.consistency_distillation(exact, exact, teacher, x0, KEY, metric=losses.l1, **at)
        return loss.mean()

    errors = [error(1.0 - h) for h in (0.2, 0.1, 0.05)]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(rates, order + 1, atol=0.35)  # they fall towards it: 3.30, 3.17 with Heun


def test_the_teacher_is_asked_on_neighbouring_levels_with_the_conditioning():
    @jax.jit
    def asked(cond):
        seen = []

        def teacher(x, t, r, cond):
            seen.append((t, r, cond))
            return x

        def f(x, sigma, cond):
            return x + cond["label"][:, None]

        losses.consistency_distillation(f, f, teacher, jnp.zeros((5000, 1)), KEY, num_scales=18, cond=cond)
        return seen

    cond = {"label": jnp.arange(5000.0)}
    ((t, r, given),) = asked(cond)
    levels = grid(18)[::-1]
    i = np.argmin(np.abs(levels - r[:, None]), axis=1)
    np.testing.assert_allclose(r, levels[i], rtol=2e-5)
    np.testing.assert_allclose(t, levels[i + 1], rtol=2e-5)
    np.testing.assert_allclose(np.bincount(i) / 5000, 1 / 17, atol=0.012)  # n ~ U{1, ..., N - 1}
    np.testing.assert_array_equal(given["label"], cond["label"])


# ---- progressive distillation ----------------------------------------------------------------------------------------


def test_two_steps_of_the_teacher_meet_the_students_levels():
    @jax.jit
    def asked(x0):
        seen = []

        def teacher(x, t, r, cond):
            seen.append((t, r))
            return x

        losses.progressive_distillation(DATA.denoise, teacher, x0, KEY, num_steps=4)
        return seen

    (t, m), (m_again, r) = asked(jnp.zeros((2000, 1)))
    levels = grid(9)[::-1]  # of the teacher's 8 steps
    i = np.argmin(np.abs(levels - m[:, None]), axis=1)
    assert set(i) == {1, 3, 5, 7}
    for seen_at, index in ((r, i - 1), (m, i), (m_again, i), (t, i + 1)):
        np.testing.assert_allclose(seen_at, levels[index], rtol=2e-5)


@pytest.mark.parametrize("sigma_min", [0.002, 0.0])
@pytest.mark.parametrize("m", [1, 2, 8])
def test_a_student_without_loss_lands_where_the_teacher_does(m, sigma_min):
    """For an exact teacher that student is known: x̂0 on its own levels, from which its steps are exact too."""
    data = Gaussian(mean=0.3, std=0.6)
    levels = grid(m + 1, sigma_min)

    def denoise(x, sigma, cond=None, *, key=None):
        i = jnp.argmin(jnp.abs(jnp.asarray(levels[:-1], jnp.float32) - jnp.reshape(sigma, (-1, 1))), axis=1)
        r = jnp.asarray(levels[1:], jnp.float32)[i].reshape(jnp.shape(sigma))
        share = (sigma / (sigma - r)).reshape(jnp.shape(r) + (1,) * (x.ndim - r.ndim) if r.ndim else ())
        return x + share * (data.to(x, sigma, r) - x)

    x0 = data.draw(KEY, (500, 2))

    @jax.jit
    def both(x0, x):
        loss = losses.progressive_distillation(denoise, data.to, x0, KEY, num_steps=m, sigma_min=sigma_min)
        return loss, ode.solve(ode.euler, denoise, levels, x)

    x = 80.0 * jax.random.normal(KEY, (500, 2))
    loss, landed = both(x0, x)
    assert float(loss.max()) < 1e-6
    np.testing.assert_allclose(landed, data.to(x, 80.0, sigma_min), atol=2e-4)


def test_no_gradient_reaches_a_teacher():
    @jax.jit
    @jax.grad
    def slope(network):
        teacher = functools.partial(ode.heun, cmjax.denoiser_fn(network, CONFIG))
        f, x0 = student(0.2), jnp.ones((4, 3))
        followed = losses.consistency_distillation(f, f, teacher, x0, KEY, num_scales=8)
        return (followed + losses.progressive_distillation(f, teacher, x0, KEY, num_steps=8)).sum()

    assert float(jax.tree.leaves(slope(linear(0.3)))[0]) == 0.0


def test_counts_may_be_traced():
    x0, teacher = DATA.draw(KEY, (6, 2)), functools.partial(ode.heun, DATA.denoise)

    def both(n):
        followed = losses.consistency_distillation(student(0.2), student(0.1), teacher, x0, KEY, num_scales=n + 1)
        return followed, losses.progressive_distillation(student(0.2), teacher, x0, KEY, num_steps=n)

    traced = jax.jit(both)
    for n in (1, 6):
        np.testing.assert_allclose(traced(n), jax.jit(functools.partial(both, n))(), rtol=1e-3)


@pytest.mark.parametrize("count", [0, -1, np.int64(0), jnp.int32(0)])
def test_too_few_steps_are_refused(count):
    x0 = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {count}"):
        losses.progressive_distillation(DATA.denoise, DATA.to, x0, KEY, num_steps=count)
    with pytest.raises(ValueError, match=f"num_scales must be at least 2 .*got {count}"):
        losses.consistency_distillation(exact, exact, DATA.to, x0, KEY, num_scales=count)


# ---- what is learned -------------------------------------------------------------------------------------------------

AXES = np.array([[0.8, -0.6], [0.6, 0.8]], np.float32)
ALONG = Gaussian(mean=np.array([0.4, -0.2], np.float32), std=np.array([0.9, 0.3], np.float32))
MEAN, COVARIANCE = AXES @ ALONG.mean, AXES @ np.diag(ALONG.std**2) @ AXES.T  # of correlated data, f32[B, 2]


def draw(key):
    return ALONG.draw(key, (256, 2)) @ AXES.T


def turned(step):
    """A function of (x, ...) along the axes of the correlated data, made one of those data."""
    return lambda x, *at: step(x @ AXES, *at) @ AXES.T


def noise():
    return 80.0 * jax.random.normal(jax.random.key(9), (20_000, 2))


def moments_are_right(samples, atol):
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=atol)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=atol)


@pytest.mark.slow
def test_consistency_distillation_learns_one_step_that_is_all_of_the_teachers():
    denoise = turned(ALONG.denoise)
    teacher = functools.partial(ode.heun, denoise)

    def function(params):
        return cmjax.consistency_fn(jax.tree_util.Partial(affine, params), CONFIG)

    def value(params, key):
        x_key, loss_key = jax.random.split(key)
        f = function(params)
        return losses.consistency_distillation(f, f, teacher, draw(x_key), loss_key, num_scales=40).mean()

    params = jax.jit(functools.partial(fit, value, steps=5000, rate=5e-3))(affine_params(KEY, 2), jax.random.key(1))
    samples = jax.jit(lambda params, x: function(params)(x, 80.0))(params, noise())
    moments_are_right(samples, atol=0.05)
    walked = jax.jit(lambda x: ode.solve(ode.heun, denoise, grid(40), x))(noise())
    assert float(jnp.square(samples - walked).mean()) < 0.05**2  # image by image; the data are 0.67 wide


@pytest.mark.slow
def test_progressive_distillation_learns_one_step_by_halving():
    def function(params):
        return cmjax.denoiser_fn(jax.tree_util.Partial(affine, params), CONFIG)

    def value(params, key, teacher, num_steps):
        x_key, loss_key = jax.random.split(key)
        return losses.progressive_distillation(
            function(params), teacher, draw(x_key), loss_key, num_steps=num_steps
        ).mean()

    def first(params, key):  # the exact flow teaches four steps
        return value(params, key, turned(ALONG.to), 4)

    def halved(params, key, teacher, num_steps):  # and the student two, and then one
        return value(params, key, functools.partial(ode.euler, function(teacher)), num_steps)

    params = jax.jit(functools.partial(fit, first, steps=1000))(affine_params(KEY, 2), jax.random.key(4))
    halve = jax.jit(functools.partial(fit, halved, steps=500, rate=5e-3))
    for m in (2, 1):
        params = halve(params, jax.random.key(m), params, m)
    samples = jax.jit(lambda params, x: ode.euler(function(params), x, *grid(2)))(params, noise())
    moments_are_right(samples, atol=0.01)
    np.testing.assert_allclose(samples, turned(ALONG.to)(noise(), 80.0, 0.002), atol=2e-3)
