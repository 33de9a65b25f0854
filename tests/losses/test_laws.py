"""Every loss x every law: shapes, gradients, the frozen target, one dropout key, the function without a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vp_gaussian
from gaussian import Gaussian

import cmjax
from cmjax import losses

CONFIG = cmjax.cm.CMConfig()
POINT = Gaussian(mean=0.7, std=0.0)  # one data point: without a teacher, only there do the pairs lie on the trajectory
WIDE = Gaussian(mean=0.7, std=0.4)


class Case(NamedTuple):
    """A loss as `loss(f, f_target, x0, key, **options)`, and what it is for.

    Attributes:
      loss: returns f32[B]; takes `dropout=`.
      exact: data -> the function that the loss teaches.
      linear: w f32[] -> one that is wrong, as a pytree with one leaf, w.
      data: where the exact function has no loss.
      calls: how often the networks that get the dropout key are called.
    """

    loss: Callable[..., Any]
    exact: Callable[[Gaussian], Any]
    linear: Callable[[Any], Any]
    data: Gaussian = POINT
    calls: int = 2


def consistency(data: Gaussian) -> Any:
    """f(x, σ) of the data, exactly."""
    return lambda x, sigma, cond=None, *, key=None: data.to(x, sigma, CONFIG.sigma_min)


def linear(w: Any) -> Any:
    """The consistency function of a one-parameter network, F(x) = w x."""
    return cmjax.consistency_fn(jax.tree_util.Partial(lambda w, x, t, cond, key=None: w * x, jnp.float32(w)), CONFIG)


def denoiser(data: Gaussian) -> Any:
    """D(x, σ) of the data, exactly."""
    return data.denoise


def distilled(f: Any, f_target: Any, x0: Any, key: Any, **options: Any) -> Any:
    """Consistency distillation from the exact teacher of some data, with a weight that any error meets at once."""
    options = {"num_scales": 20, "weighting": losses.inverse_gap, "metric": losses.pseudo_huber, **options}
    return losses.consistency_distillation(f, f_target, Gaussian().to, x0, key, **options)


def halved(denoise: Any, _: Any, x0: Any, key: Any, **options: Any) -> Any:
    """Progressive distillation from the exact teacher of one data point, where Euler steps are exact too."""
    return losses.progressive_distillation(denoise, POINT.to, x0, key, num_steps=8, **options)


def denoised(denoise: Any, _: Any, x0: Any, key: Any, **options: Any) -> Any:
    """Denoising, which has no target network."""
    return losses.denoising(denoise, x0, key, **options)


def exact_trigflow(data: Gaussian) -> Any:
    """The TrigFlow network of the exact f(x, σ)."""

    def net(x, t, cond=None, *, key=None):
        cos, sin = jnp.cos(t)[:, None], 0.5 * jnp.sin(t)[:, None]
        return (0.5 * cos * x - data.flow(0.5 * x, (cos, sin), (1.0, 0.0))) / sin

    return net


def linear_trigflow(w: Any) -> Any:
    """F(x) = w x in TrigFlow."""
    return cmjax.parameterization.trigflow_fn(linear(w).model, CONFIG)


def linear_jump(w: Any) -> Any:
    """The jump of a network F(x) = w x."""
    return cmjax.parameterization.ctm_fn(
        jax.tree_util.Partial(lambda w, x, t, cond, *, s, key=None: w * x, jnp.float32(w)), CONFIG
    )


VP, BELL, COARSE = cmjax.tcd.TCDConfig(), Gaussian(mean=0.3, std=0.6), (249, 499, 749, 999)
STEP = vp_gaussian.trajectory(BELL, VP)  # the teacher's, exactly


def along(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of timesteps with its teacher, on a grid as coarse as the other losses' pairs."""
    return lambda f, f_target, x0, key, **options: loss(
        f, f_target, STEP, x0, key, timesteps=COARSE, metric=losses.pseudo_huber, **options
    )


def scaled(make: Callable[..., Any]) -> Callable[[Any], Any]:
    """Make w into a function of timesteps, of the network w x."""
    return lambda w: make(jax.tree_util.Partial(lambda w, x, t, cond, key=None: w * x, jnp.float32(w)), VP)


def average_velocity(data: Gaussian) -> Any:
    """u(x, t, r) of the data's flow, exactly; where r = t the velocity itself, as the limit of a short step."""

    def u(x, t, r, cond=None, *, key=None):
        r = jnp.where(t - r < 2e-3, t - 2e-3, r)
        landed = data.flow(x, (1 - t, t), (1 - r, r))
        return (x - landed) / (t - r)[:, None]

    return u


def velocity_of_a_line(w: Any) -> Any:
    """The velocity of a network w x, as a pytree."""
    return jax.tree_util.Partial(lambda w, x, t, r, cond=None, key=None: w * x, jnp.float32(w))


def of_one(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that has no target function."""
    return lambda f, _, *args, **options: loss(f, *args, **options)


CASES = {
    "consistency_training": Case(
        functools.partial(losses.consistency_training, num_scales=20), consistency, linear
    ),
    "easy_consistency_tuning": Case(
        functools.partial(losses.easy_consistency_tuning, gap=0.25), consistency, linear
    ),
    "consistency_distillation": Case(distilled, consistency, linear, Gaussian()),
    "progressive_distillation": Case(halved, denoiser, linear, calls=1),
    "denoising": Case(denoised, denoiser, linear, calls=1),
    "continuous_consistency": Case(
        of_one(losses.continuous_consistency),
        exact_trigflow, linear_trigflow, calls=1,
    ),
    "infinitesimal_consistency": Case(
        of_one(losses.infinitesimal_consistency),
        consistency, linear, calls=1,
    ),
    "consistency_trajectory": Case(
        lambda g, g_target, *args, **options: losses.consistency_trajectory(
            g, g_target, lambda x, t, u, cond: WIDE.to(x, t, u), *args, **options
        ),
        lambda data: data.to, linear_jump, WIDE, calls=4,
    ),
    "mean_flow": Case(
        of_one(functools.partial(losses.mean_flow, instant=0.5, power=0.0)),
        average_velocity, velocity_of_a_line, calls=1,
    ),
    "mean_flow, improved": Case(
        of_one(functools.partial(losses.mean_flow, instant=0.5, power=0.0, improved=True)),
        average_velocity, velocity_of_a_line, calls=2,
    ),
    "shortcut": Case(functools.partial(losses.shortcut, share=0.5), average_velocity, velocity_of_a_line, calls=3),
    "trajectory_distillation": Case(
        along(losses.trajectory_distillation),
        lambda data: vp_gaussian.trajectory(data, VP), scaled(cmjax.tcd.trajectory_fn), BELL
    ),
    "latent_consistency_distillation": Case(
        along(losses.latent_consistency_distillation),
        lambda data: vp_gaussian.consistency(data, VP), scaled(cmjax.lcm.consistency_fn), BELL
    ),
}  # fmt: skip
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
X0 = np.random.default_rng(0).normal(size=(7, 4, 4, 1)).astype(np.float32)


@functools.cache
def slopes(case):
    """The gradients by f, by f_target and by x0."""
    f, key = case.linear(0.3), jax.random.key(1)
    mean = lambda f, f_target, x0: case.loss(f, f_target, x0, key).mean()  # noqa: E731
    return jax.jit(jax.grad(mean, argnums=(0, 1, 2)))(f, f, X0)


@each
def test_one_value_per_example_in_float32(case):
    f = case.linear(0.3)
    for dtype in (jnp.float32, jnp.bfloat16):
        value = jax.eval_shape(case.loss, f, f, jax.ShapeDtypeStruct(X0.shape, dtype), jax.random.key(1))
        assert value.shape == (7,) and value.dtype == jnp.float32


@each
def test_jit_equals_eager(case):
    f = case.linear(0.3)
    eager, jitted = (loss(f, f, X0, jax.random.key(1)) for loss in (case.loss, jax.jit(case.loss)))
    np.testing.assert_allclose(jitted, eager, rtol=2e-4)


@each
def test_gradients_are_finite(case):
    grads = slopes(case)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert float(jnp.abs(jax.tree.leaves(grads[0])[0])) > 0


@each
def test_no_gradient_reaches_the_target(case):
    assert float(jax.tree.leaves(slopes(case)[1])[0]) == 0.0


@each
def test_the_exact_function_has_no_loss(case):
    x0 = case.data.draw(jax.random.key(2), (64, 3))
    functions = case.exact(case.data), case.linear(0.3)
    right, poor = jax.jit(lambda x0: [case.loss(g, g, x0, jax.random.key(0)) for g in functions])(x0)
    assert float(right.max()) < 1e-3 and float(poor.mean()) > 0.1


@each
def test_student_and_target_get_one_dropout_key(case):
    keys = []

    def spy(x, *args, key=None):
        keys.append(key)
        return x

    for dropout in (False, True):
        keys.clear()
        jax.eval_shape(functools.partial(case.loss, spy, spy, dropout=dropout), X0, jax.random.key(0))
        assert len(keys) >= case.calls and all(key is keys[0] for key in keys)
        assert (keys[0] is not None) == dropout


@each
def test_grey_levels_are_refused(case):
    f = case.linear(0.3)
    with pytest.raises(TypeError, match="x0 must be a float array"):
        case.loss(f, f, np.zeros((2, 3), np.uint8), jax.random.key(0))
