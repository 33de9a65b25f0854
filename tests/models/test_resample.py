import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.models.layers import resample

fir_halve, fir_double = (jax.jit(f, static_argnames="edges") for f in (resample.fir_halve, resample.fir_double))

KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
SHAPES = [(2, 4, 6, 3), (1, 2, 2, 1), (1, 8, 2, 2)]
EDGES = ["constant", "reflect"]


def picture(shape):
    return np.random.default_rng(0).normal(size=shape)


def padded(x, edges):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), edges)


def halved(x, edges):
    """A direct loop, in float64: a window of 4 x 4 pixels for each pixel of the result."""
    b, h, w, c = x.shape
    x, out = padded(x, edges), np.zeros((b, h // 2, w // 2, c))
    for i in range(h // 2):
        for j in range(w // 2):
            window = x[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            out[:, i, j] = np.einsum("bpqc,pq->bc", window, KERNEL)
    return out


def doubled(x, edges):
    """A direct loop, in float64: each pixel paints 4 x 4 pixels of the result."""
    b, h, w, c = x.shape
    x, out = padded(x, edges), np.zeros((b, 2 * h + 6, 2 * w + 6, c))
    for i in range(h + 2):
        for j in range(w + 2):
            out[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += 4 * KERNEL[None, :, :, None] * x[:, i, None, None, j]
    return out[:, 3 : 2 * h + 3, 3 : 2 * w + 3]


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_equal_a_direct_loop(shape, edges):
    x = picture(shape)
    np.testing.assert_allclose(fir_halve(jnp.asarray(x, jnp.float32), edges), halved(x, edges), atol=1e-6)
    np.testing.assert_allclose(fir_double(jnp.asarray(x, jnp.float32), edges), doubled(x, edges), atol=1e-6)


def test_a_constant_stays_constant_inside_and_everywhere_with_reflected_edges():
    x = np.full((1, 6, 8, 2), 0.7, np.float32)
    for resize in (fir_halve, fir_double):
        np.testing.assert_allclose(np.asarray(resize(x))[:, 1:-1, 1:-1], 0.7, rtol=1e-6)
        np.testing.assert_allclose(resize(x, "reflect"), 0.7 * np.ones(resize(x).shape), rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(fir_halve(x))[0, 0, 0, 0], 0.7 * (7 / 8) ** 2, rtol=1e-6
    )  # a corner: 7 / 8 is inside
    np.testing.assert_allclose(np.asarray(fir_double(x))[0, 0, 0, 0], 0.7 * (3 / 4) ** 2, rtol=1e-6)


def test_a_ramp_stays_a_ramp_inside():
    x = jnp.asarray(np.broadcast_to(np.arange(8.0, dtype=np.float32)[None, :, None, None], (1, 8, 8, 1)))
    np.testing.assert_allclose(np.asarray(fir_halve(x))[0, 1:-1, 1, 0], 2 * np.arange(1.0, 3.0) + 0.5, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(fir_double(x))[0, 1:-1, 5, 0], (np.arange(1.0, 15.0) - 0.5) / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_doubling_is_four_times_the_transpose_of_halving(shape):
    y = jnp.asarray(picture(shape), jnp.float32)
    b, h, w, c = shape
    _, transpose = jax.vjp(fir_halve, jnp.zeros((b, 2 * h, 2 * w, c)))
    np.testing.assert_allclose(fir_double(y), 4 * transpose(y)[0], atol=1e-6)


def test_one_pixel_is_repeated_where_there_is_nothing_to_reflect():
    np.testing.assert_array_equal(fir_double(np.full((1, 1, 1, 1), 3.0), "reflect"), np.full((1, 2, 2, 1), 3.0))


def test_bfloat16_stays_bfloat16():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    assert fir_halve(x).dtype == fir_double(x).dtype == jnp.bfloat16
