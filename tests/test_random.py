"""Keys and noise: this room holds them against `jax.random`, and against their own promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax._random import image_keys, noise, split

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


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_splitting_is_jax_random_split(n: int, impl: str) -> None:
    key = jax.random.key(3, impl=impl)
    keys = jax.random.split(key, 4)

    def data(keys: jax.Array) -> np.ndarray:
        return np.asarray(jax.random.key_data(keys))

    expected, each = data(jax.random.split(key, n)), split(keys, n)
    np.testing.assert_array_equal(data(split(key, n)), expected)
    np.testing.assert_array_equal(data(jax.jit(split, static_argnums=1)(key, n)), expected)
    np.testing.assert_array_equal(data(each)[:, 2], data(jax.random.split(keys[2], n)))
    assert jax.random.key_impl(each) == jax.random.key_impl(key)


def test_splitting_old_keys_and_the_old_way() -> None:
    data, old = jax.random.key_data, jax.random.PRNGKey(3)
    np.testing.assert_array_equal(data(split(old, 3)), jax.random.split(old, 3))
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(data(split(KEY, 3)), data(jax.random.split(KEY, 3)))


def test_moments() -> None:
    drawn = np.asarray(noise(KEY, (200_000,)), np.float64)
    assert drawn.mean() == pytest.approx(0.0, abs=0.01)
    assert drawn.var() == pytest.approx(1.0, abs=0.02)
    assert (drawn**4).mean() == pytest.approx(3.0, abs=0.1)


def test_the_fast_way_is_taken() -> None:
    drawn = str(jax.make_jaxpr(lambda key: noise(split(key, 2)[0], (64, 2)))(KEY))
    assert "random_bits" not in drawn
    assert "random_split" not in drawn


def test_wrong_keys() -> None:
    with pytest.raises(ValueError, match=r"^5 keys for a batch of 64: give one key, or one for each image\.$"):
        noise(jax.random.split(KEY, 5), (64, 2))
    with pytest.raises(ValueError, match="without a batch axis"):
        noise(jax.random.split(KEY, 5), ())
    with pytest.raises(ValueError, match=r"^3 x 4 keys for a batch of 3"):
        noise(jax.random.split(KEY, (3, 4)), (3, 2))
    with pytest.raises(TypeError, match=r"^key must be a PRNG key"):
        noise(0, (3,))  # type: ignore[arg-type]


def test_the_key_of_an_image_is_folded_from_its_number_alone() -> None:
    def same(keys: jax.Array, expected: list[jax.Array]) -> None:
        data = jnp.stack([jax.random.key_data(key) for key in expected])
        np.testing.assert_array_equal(jax.random.key_data(keys), data)

    each = [jax.random.fold_in(KEY, i) for i in (7, 0, 3)]
    for indices in ([7, 0, 3], np.array([7, 0, 3]), jnp.array([7, 0, 3], jnp.int32)):
        same(image_keys(KEY, indices), each)
        same(image_keys(3, indices), each)
    same(jax.jit(image_keys)(KEY, jnp.array([7, 0, 3])), each)
    same(image_keys(jax.random.PRNGKey(3), [7, 0, 3]), each)
    same(image_keys(KEY, 7)[None], each[:1])
    seeds = jax.random.split(KEY, 2)
    same(image_keys(seeds, 5), [jax.random.fold_in(seed, 5) for seed in seeds])
    same(image_keys(seeds, [5, 6]), [jax.random.fold_in(seed, i) for seed, i in zip(seeds, (5, 6), strict=True)])


def test_image_keys_refuse_what_is_no_key_and_no_number() -> None:
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        image_keys(0.5, [0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="indices must be integers"):
        image_keys(0, [0.5])
