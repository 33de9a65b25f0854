"""Keys and noise: the numbers of `jax.random`, in a form that XLA compiles and runs several times faster.

On a CPU JAX's own lowering of threefry is a loop over stored counters: 1.6 s to compile, 25 ms for a million numbers.
As plain arithmetic, flat and unrolled, it is one vectorised loop: 0.2 s and 7 ms (`benchmarks/`). Drawing noise is nine
tenths of a sampler's own time, so this is worth a page. The random bits are the same, and so are the numbers, but for
the last bit of some: XLA rounds differently in loops of different shapes, and here the loop has one shape only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import _cpu
from cmjax.types import Array, Key

__all__ = ["flat_noise", "has_key_per_image", "image_keys", "noise", "noise_if", "split"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def noise(key: Key, shape: tuple[int, ...]) -> Array:
    """Draw N(0, I).

    Args:
      key: one key for the whole batch, or one for each image. Then image i depends on key i only, whatever the batch;
        the two ways draw different noise.
      shape: (B, *S).

    Returns:
      f32[B, *S].

    Raises:
      ValueError: the number of keys is not the size of the batch.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> bool((noise(keys, (4, 2))[:3] == noise(keys[:3], (3, 2))).all())
      True
    """
    return flat_noise(key, shape).reshape(shape)


def flat_noise(key: Key, shape: tuple[int, ...]) -> Array:
    """Draw `noise(key, shape)` before its reshape: f32[size] for one key, f32[B, size] for one key per image.

    A reshape to a short last axis, as of colours, has to stay outside of a `lax.cond`: inside, it is fused with the
    draw, whose vectors are then as short as that axis.
    """
    if has_key_per_image(key) and shape[:1] != _keys_shape(key):
        given = " x ".join(map(str, _keys_shape(key)))
        batch = f"a batch of {shape[0]}" if shape else "a sample without a batch axis"
        raise ValueError(f"{given} keys for {batch}: give one key, or one for each image.")
    return _draw(key, shape)


def noise_if(wanted: Array, key: Key, shape: tuple[int, ...]) -> Array:
    """Draw `noise(key, shape)` where a traced bool[] holds; else zeros, without paying for the draw."""
    draw = partial(flat_noise, shape=shape)
    drawn = jax.eval_shape(draw, key)  # both branches must agree, on the sharding too
    return jax.lax.cond(wanted, draw, lambda _: jnp.zeros_like(drawn), key).reshape(shape)


def split(key: Key, n: int) -> Key:
    """Split one key, or each image's, into n, as `jax.random.split` does.

    Args:
      key: one key, or one for each image, key[B].
      n: how many.

    Returns:
      key[n], or key[n, B]. The keys of image i depend on its key only.

    Raises:
      TypeError: `key` is not a key.

    Example:
      >>> k_x, k_z = split(image_keys(0, range(4)), 2)
      >>> k_x.shape
      (4,)
    """
    _keys_shape(key)  # refuses what is no key
    return _split(key, n)


def image_keys(seed_or_key: int | Key, indices: Any) -> Key:
    """Make one key for each image: fold_in(key, i), which depends on the number i only, not on the batch.

    The commands draw image i of a seed with this key.

    Args:
      seed_or_key: a seed, one key, or keys that broadcast against `indices`, such as one for each image.
      indices: numbers of images, i[] or i[B]; arrays, numbers, or a range.

    Returns:
      One key for each index, key[] or key[B].

    Raises:
      TypeError: `seed_or_key` is neither a seed nor a key, or `indices` are not integers.

    Example:
      Images 8 and 9 are the same in any batch:

      >>> a, b = noise(image_keys(0, range(10)), (10, 3)), noise(image_keys(0, [8, 9]), (2, 3))
      >>> bool((a[8:] == b).all())
      True
    """
    key = jax.random.key(int(seed_or_key)) if isinstance(seed_or_key, (int, np.integer)) else seed_or_key
    shape = _keys_shape(key)
    indices = jnp.asarray(np.asarray(indices) if isinstance(indices, (int, range, list, tuple)) else indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices must be integers, the numbers of images, got {indices.dtype}.")
    keys, shape = _new_style(key), jnp.broadcast_shapes(shape, indices.shape)
    if not shape:
        return jax.random.fold_in(keys, indices)
    keys, indices = jnp.broadcast_to(keys, shape), jnp.broadcast_to(indices, shape)
    return jax.vmap(jax.random.fold_in)(keys.ravel(), indices.ravel()).reshape(shape)


def has_key_per_image(key: Key) -> bool:
    """Whether this is an array of keys, one for each image, rather than one key."""
    return _keys_shape(key) != ()


def _keys_shape(key: Key) -> tuple[int, ...]:
    """The shape of an array of keys; an old-style key is itself an array, u32[2]."""
    if not hasattr(key, "dtype"):
        raise TypeError(f"key must be a PRNG key, as of jax.random.key(0), got {key!r}.")
    return key.shape if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.shape[:-1]


@partial(jax.jit, static_argnames="shape")
def _draw(key: Key, shape: tuple[int, ...]) -> Array:
    key = _new_style(key)
    if key.ndim:
        return jax.vmap(lambda key: _normal(key, math.prod(shape[1:])))(key)
    return _normal(key, math.prod(shape))


@partial(jax.jit, static_argnames="n")
def _split(key: Key, n: int) -> Key:
    key = _new_style(key)
    if key.ndim:
        return jax.vmap(lambda key: _children(key, n), out_axes=1)(key)
    return _children(key, n)


def _new_style(key: Key) -> Key:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _children(key: Key, n: int) -> Key:
    """Do what `jax.random.split(key, n)` does, key[n]."""
    if not _is_threefry(key):
        return jax.random.split(key, n)
    return jax.random.wrap_key_data(jnp.stack(_threefry(jax.random.key_data(key), n), axis=-1), impl="threefry2x32")


def _normal(key: Key, size: int) -> Array:
    """Draw what `jax.random.normal(key, (size,))` does, f32[size]."""
    if not (_is_threefry(key) and size < 2**32):
        return jax.random.normal(key, (size,), jnp.float32)
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    a, b = _threefry(jax.random.key_data(key), size)
    mantissa = ((a ^ b) >> np.uint32(9)) | np.uint32(0x3F800000)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)  # uniform in [0, 1)
    uniform = jnp.maximum(lowest, unit * (np.float32(1) - lowest) + lowest)  # uniform in (-1, 1)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def _is_threefry(key: Key) -> bool:
    """Whether to draw by `_threefry`: JAX does the same for this key, with a counter for each element."""
    counts_elements = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    return str(jax.random.key_impl(key)) == "threefry2x32" and counts_elements and _cpu.WORKAROUNDS


def _threefry(key_data: Array, size: int) -> tuple[Array, Array]:
    """Random bits, u32[size] twice: Threefry-2x32, 20 rounds (Salmon et al. 2011, section 3.3), of 0, 1, 2, …."""
    k0, k1 = key_data[0], key_data[1]
    keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    a, b = jnp.broadcast_to(k0, (size,)), jax.lax.iota(jnp.uint32, size) + k1
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            a = a + b
            b = ((b << np.uint32(r)) | (b >> np.uint32(32 - r))) ^ a
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + np.uint32(i + 1)
    return a, b
