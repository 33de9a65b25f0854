"""Fresh noise: this room holds it against `jax.random.normal`, and against its own promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax._random import noise

KEY = jax.random.key(3)


@pytest.mark.parametrize("shape", [(5,), (2, 4, 4, 3)])
def test_it_is_jax_random_normal(shape: tuple[int, ...]) -> None:
    drawn = noise(KEY, shape)
    assert (drawn.shape, drawn.dtype) == (shape, jnp.float32)
    np.testing.assert_allclose(drawn, jax.random.normal(KEY, shape), rtol=2e-6, atol=1e-7)  # the last bit may differ
    keys = jax.random.split(KEY, shape[0])
    each = jnp.stack([jax.random.normal(key, shape[1:]) for key in keys])
    np.testing.assert_allclose(noise(keys, shape), each, rtol=2e-6, atol=1e-7)


def test_the_bits_do_not_depend_on_the_shape_or_on_the_neighbours() -> None:
    drawn = np.asarray(noise(KEY, (4, 31)))
    np.testing.assert_array_equal(noise(KEY, (124,)), drawn.ravel())
    np.testing.assert_array_equal(noise(KEY, (50,)), drawn.ravel()[:50])
    keys = jax.random.split(KEY, 9)
    np.testing.assert_array_equal(noise(keys, (9, 3))[2:4], noise(keys[2:4], (2, 3)))


def test_old_keys_and_other_generators() -> None:
    old = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(noise(old, (4, 2)), noise(KEY, (4, 2)))
    np.testing.assert_array_equal(noise(jax.random.split(old, 4), (4, 2)), noise(jax.random.split(KEY, 4), (4, 2)))
    other = jax.random.key(3, impl="rbg")
    np.testing.assert_array_equal(noise(other, (6,)), jax.random.normal(other, (6,)))
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(noise(KEY, (7,)), jax.random.normal(KEY, (7,)))


def test_moments() -> None:
    drawn = np.asarray(noise(KEY, (200_000,)), np.float64)
    assert drawn.mean() == pytest.approx(0.0, abs=0.01)
    assert drawn.var() == pytest.approx(1.0, abs=0.02)
    assert (drawn**4).mean() == pytest.approx(3.0, abs=0.1)


def test_wrong_keys() -> None:
    with pytest.raises(ValueError, match=r"^5 keys for a batch of 64: give one key, or one for each image\.$"):
        noise(jax.random.split(KEY, 5), (64, 2))
    with pytest.raises(ValueError, match="without a batch axis"):
        noise(jax.random.split(KEY, 5), ())
    with pytest.raises(ValueError, match=r"^3 x 4 keys for a batch of 3"):
        noise(jax.random.split(KEY, (3, 4)), (3, 2))
    with pytest.raises(TypeError, match=r"^key must be a PRNG key"):
        noise(0, (3,))  # type: ignore[arg-type]
