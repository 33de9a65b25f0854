"""The loss of autoencoders: the divergence in closed form, distances by hand, and the laws of the other losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import losses

X0 = np.random.default_rng(0).uniform(-1, 1, (3, 4, 6, 2)).astype(np.float32)
KEY = jax.random.key(1)


def coder(weights, x):
    """A linear encoder of half the size, with a variance that depends on the picture."""
    mean = weights["gain"] * x[:, ::2, ::2]
    return mean, weights["spread"] * x[:, 1::2, ::2] - 2.0


def loss(weights, x0=X0, key=KEY, **options):
    def decode(z):
        return weights["back"] * z.repeat(2, 1).repeat(2, 2)

    return losses.autoencoding(lambda x: coder(weights, x), decode, x0, key, **options)


WEIGHTS = {"gain": jnp.float32(0.5), "spread": jnp.float32(0.3), "back": jnp.float32(1.5)}


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 1.0), (-0.3, 0.2), (2.0, 3.0)])
def test_the_divergence_is_that_of_two_normal_distributions(mean, variance):
    """∫ q ln(q / p) by a sum over a fine grid, times the number of latents; and nothing else where all is exact."""
    x = np.linspace(-40, 40, 400_001)
    q = np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    ratio = -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance) + x**2 / 2
    one = float((q * ratio).sum() * (x[1] - x[0]))

    def encode(x):
        latents = jnp.full((3, 2, 2, 5), mean, jnp.float32)
        return latents, jnp.full_like(latents, np.log(variance))

    value = losses.autoencoding(encode, lambda z: jnp.asarray(X0), X0, KEY, kl=0.1)
    np.testing.assert_allclose(value, np.full(3, 0.1 * 20 * one), rtol=1e-4, atol=1e-6)


def test_distances_are_means_of_pixels_and_of_neighbours():
    decoded = np.random.default_rng(1).uniform(-1, 1, X0.shape).astype(np.float32)
    off = decoded - X0
    axes = (1, 2, 3)
    by_hand = np.abs(off).mean(axes)
    edges = np.abs(off[:, 1:] - off[:, :-1]).mean(axes) + np.abs(off[:, :, 1:] - off[:, :, :-1]).mean(axes)
    encode = lambda x: (x, None)  # noqa: E731 (latents without a variance)
    for weight in (0.0, 0.7):
        value = losses.autoencoding(encode, lambda z: decoded, X0, KEY, edges=weight)
        np.testing.assert_allclose(value, by_hand + weight * edges, rtol=1e-5)
    row = losses.autoencoding(encode, lambda z: decoded[:, :1, :1], X0[:, :1, :1], KEY)
    np.testing.assert_allclose(row, np.abs(off[:, :1, :1]).mean(axes), rtol=1e-5)


def test_latents_are_drawn_with_the_encoders_deviation():
    seen = []

    def decode(z):
        seen.append(z)
        return jnp.zeros((2, 1, 1, 1))

    shape = (2, 100, 100, 1)
    encode = lambda x: (jnp.full(shape, 3.0), jnp.full(shape, 2 * np.log(0.5)))  # noqa: E731
    losses.autoencoding(encode, decode, np.zeros((2, 1, 1, 1), np.float32), KEY)
    assert float(seen[0].mean()) == pytest.approx(3.0, abs=0.02)
    assert float(seen[0].std()) == pytest.approx(0.5, abs=0.02)


def test_one_value_per_example_in_float32_that_depends_on_it_alone():
    for dtype in (jnp.float32, jnp.bfloat16):
        value = jax.eval_shape(loss, WEIGHTS, jax.ShapeDtypeStruct(X0.shape, dtype), KEY)
        assert value.shape == (3,) and value.dtype == jnp.float32
    whole = loss(WEIGHTS)
    other = loss(WEIGHTS, np.concatenate([X0[:2], np.zeros_like(X0[2:])]))
    np.testing.assert_array_equal(whole[:2], other[:2])
    assert whole[2] != other[2]
    np.testing.assert_allclose(jax.jit(loss)(WEIGHTS), whole, rtol=1e-5)


@pytest.mark.parametrize("extreme", [-30.0, 20.0])
def test_gradients_are_finite(extreme):
    grads = jax.grad(lambda w: loss(w, kl=1e-3).mean())(WEIGHTS)
    assert all(bool(jnp.isfinite(g)) and float(g) != 0 for g in jax.tree.leaves(grads))

    def far(spread):  # at the ends of what an encoder says, and where the picture is met exactly
        encode = lambda x: (x, jnp.full(x.shape, extreme) * spread)  # noqa: E731
        return losses.autoencoding(encode, lambda z: z * 0 + X0, X0, KEY).mean()

    assert bool(jnp.isfinite(jax.grad(far)(jnp.float32(1.0))))


def test_what_are_no_pictures_is_refused():
    with pytest.raises(TypeError, match="x0 must be a float array"):
        loss(WEIGHTS, np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"x0 must be pictures f\[B, H, W, C\], got shape \(2, 3\)"):
        loss(WEIGHTS, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="a and b must have one shape"):
        losses.autoencoding(lambda x: (x, None), lambda z: z[:, :1], X0, KEY)
