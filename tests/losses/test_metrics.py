"""Distances: values made by hand, and gradients where two samples are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import losses


def test_metrics_by_hand():
    a, b = jnp.zeros((2, 2, 2)), jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(losses.l1(a, b), [7 / 4, 0])
    np.testing.assert_allclose(losses.l2(a, b), [25 / 4, 0])
    np.testing.assert_allclose(losses.pseudo_huber(a, b, c=12.0), [1, 0])
    np.testing.assert_allclose(losses.pseudo_huber(a, b), [np.sqrt(25 + 0.00108**2) - 0.00108, 0], rtol=1e-6)
    np.testing.assert_allclose(losses.elementwise_huber(a, b, c=4.0), [(1 + np.sqrt(32) - 4) / 4, 0], rtol=1e-6)


def test_pseudo_huber_has_a_finite_gradient_where_equal():
    a = jnp.ones((1, 9))
    assert bool((jax.grad(lambda a: losses.pseudo_huber(a, jnp.ones((1, 9))).sum())(a) == 0).all())


def test_pseudo_huber_without_its_length_is_the_distance():
    grad = jax.grad(lambda a: losses.pseudo_huber(a, jnp.zeros((1, 2)), c=0.0).sum())
    np.testing.assert_allclose(grad(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(grad(jnp.zeros((1, 2))), 0.0)


@pytest.mark.parametrize("metric", [losses.l1, losses.l2, losses.pseudo_huber, losses.elementwise_huber])
def test_what_has_not_one_shape_is_no_pair(metric):
    with pytest.raises(ValueError, match=r"a and b must have one shape, got \(4, 8\) and \(4, 1\)"):
        metric(jnp.zeros((4, 8)), jnp.zeros((4, 1)))
