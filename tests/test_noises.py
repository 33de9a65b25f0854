"""Between noises: this room checks that great circles keep the length, the ends and the pace."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.noises import slerp, slerp_grid, slerp_path

A, B = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 16, 16, 1), np.float32))
rotated = jax.jit(slerp)


def unit(x):
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
def test_slerp_is_the_rotation_in_float64(t):
    u, v = unit(A), unit(B)
    theta = np.arccos((u * v).sum(1, keepdims=True))
    a, b = (np.asarray(x, np.float64).reshape(3, -1) for x in (A, B))
    expected = (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)
    np.testing.assert_allclose(rotated(A, B, t).reshape(3, -1), expected, atol=2e-6)


def test_the_ends_are_the_noises_and_the_length_stays():
    np.testing.assert_allclose(slerp(A, B, 0.0), A, atol=1e-6)
    np.testing.assert_allclose(slerp(A, B, 1.0), B, atol=1e-6)
    a, b = np.asarray(A), np.asarray(B)
    same_length = b * (np.linalg.norm(a[0]) / np.linalg.norm(b[0]))
    path = jax.jit(slerp_path, static_argnums=1)(np.stack([a[0], same_length[0]]), 9)
    lengths = np.linalg.norm(np.asarray(path).reshape(9, -1), axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    steps = (unit(path)[1:] * unit(path)[:-1]).sum(1)
    np.testing.assert_allclose(np.arccos(steps), np.arccos(steps[0]), rtol=1e-4)  # an even pace
    assert (0.5 * (a + b)).std() < 0.75 * np.asarray(rotated(A, B, 0.5)).std()  # which a line has not


def test_a_place_for_each_image_and_one_for_all():
    t, a, b = np.array([0.1, 0.5, 0.9], np.float32), np.asarray(A), np.asarray(B)
    each = np.asarray(rotated(A, B, t))
    for i in range(3):
        np.testing.assert_allclose(each[i], rotated(a[i : i + 1], b[i : i + 1], t[i])[0], atol=1e-6)
    half = jax.ShapeDtypeStruct(A.shape, jnp.bfloat16)
    assert jax.eval_shape(slerp, half, half, 0.5).dtype == jnp.bfloat16


def test_a_grid_has_its_corners_and_its_sides():
    corners = np.random.default_rng(1).standard_normal((4, 8, 8, 1), np.float32)
    on_path = jax.jit(slerp_path, static_argnums=1)
    field = np.asarray(jax.jit(slerp_grid, static_argnums=(1, 2))(corners, 3, 5)).reshape(3, 5, 8, 8, 1)
    for found, corner in zip((field[0, 0], field[0, -1], field[-1, 0], field[-1, -1]), corners, strict=True):
        np.testing.assert_allclose(found, corner, atol=1e-6)
    np.testing.assert_allclose(field[:, 0], on_path(corners[0::2], 3), atol=1e-6)
    np.testing.assert_allclose(field[0], on_path(corners[:2], 5), atol=1e-6)


def test_parallel_opposite_and_empty_noises_have_finite_values_and_gradients():
    a = np.asarray(A)
    slopes = jax.jit(jax.value_and_grad(lambda a, b, t: slerp(a, b, t).sum()))
    for b in (a, 2 * a, -a, np.zeros_like(a)):
        for t in (0.0, 0.5, 1.0):
            value, slope = slopes(a, b, t)
            assert np.isfinite(value)
            assert np.isfinite(slope).all()
    np.testing.assert_allclose(rotated(a, 2 * a, 0.5), 1.5 * a, rtol=1e-5, atol=1e-6)


def test_the_place_may_be_traced_and_differentiated():
    slope = jax.jit(jax.grad(lambda t: (slerp(A, B, t) ** 2).sum()))(0.3)
    near = [float((np.asarray(rotated(A, B, t)) ** 2).sum()) for t in (0.29, 0.31)]
    assert float(slope) == pytest.approx((near[1] - near[0]) / 0.02, rel=2e-2)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, r"one shape, got \(3, 16, 16, 1\) and \(2, 16, 16, 1\)", lambda: slerp(A, B[:2], 0.5)),
        (ValueError, r"one for each of 3 images, got shape \(2,\)", lambda: slerp(A, B, jnp.zeros(2))),
        (TypeError, "a must be a float array", lambda: slerp(jnp.zeros((1, 2), int), jnp.zeros((1, 2)), 0.5)),
        (TypeError, "b must be a float array", lambda: slerp(jnp.zeros((1, 2)), jnp.zeros((1, 2), complex), 0.5)),
        (TypeError, "b must be a float array, got a NoneType", lambda: slerp(A, None, 0.5)),
        (TypeError, "t must be a number, from 0 to 1, got a NoneType", lambda: slerp(A, B, None)),
        (TypeError, "t must be a number, from 0 to 1, got 'half'", lambda: slerp(A, B, "half")),
        (TypeError, "t must be a number.*, got complex64", lambda: slerp(A, B, 1j)),
        (TypeError, "t must be a number.*, got bool", lambda: slerp(A, B, True)),
        (TypeError, "ends must be a float array, got a NoneType", lambda: slerp_path(None, 3)),
        (TypeError, "corners must be a float array, got 'abcd'", lambda: slerp_grid("abcd", 2, 2)),
        (ValueError, "num must be at least 2, got 1", lambda: slerp_path(A[:2], 1)),
        (TypeError, "num must be a Python int", lambda: slerp_path(A[:2], 2.5)),
        (ValueError, r"corners must be 4 noises, .*\(3, 16, 16, 1\)", lambda: slerp_grid(A, 2, 2)),
        (ValueError, r"ends must be 2 noises, .*\(3, 16, 16, 1\)", lambda: slerp_path(A, 5)),
    ],
)
def test_bad_input_is_refused_in_one_sentence(error, message, make):
    with pytest.raises(error, match=message):
        make()


def test_the_former_name_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"cmjax\.latents is now cmjax\.noises: use cmjax\.noises\.slerp_path"):
        assert cmjax.latents.slerp_path is cmjax.noises.slerp_path
    with pytest.raises(AttributeError, match="no attribute 'lerp'"):
        cmjax.latents.lerp  # noqa: B018
