"""Assemble models: from a network's config and tensors to a model with the dtypes and devices that were asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.io.weights import Placement, load_weights
from cmjax.models import Network, from_nnx
from cmjax.models.families import family_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["Checkpoint", "assemble", "check_dtype"]


class Checkpoint(NamedTuple):
    """A model and the config of the sampler it was made for: `model, config = cmjax.load(...)`.

    The config is a `CMConfig`, a `TCDConfig` or an `LCMConfig`. Only the folder determines which, so its type is `Any`.
    """

    model: Network
    config: Any


def assemble(
    config: Any,
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    abstract: bool = False,
) -> Network:
    """Make the model that a config and tensors describe.

    Args:
      config: the config of a network of any family.
      tensors: the tensors by their names in files, in any float dtype.
      dtype: the dtype that the network computes in.
      param_dtype: the dtype of its matrices. Vectors stay float32: they are small, and precision matters there.
      sharding: where the weights go.
      abstract: check everything, and read no weights.

    Raises:
      TypeError: dtype or param_dtype is not a float dtype, or float64 without x64, or sharding is not a sharding.
      ValueError: the tensors are not those of the network.
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        check_dtype(name, value)
        if jax.dtypes.canonicalize_dtype(value) != jnp.dtype(value):
            raise TypeError(f"{name} is float64, which takes jax.config.update('jax_enable_x64', True).")

    shaped = _shaped(family_of(config).adapted(config, tensors), jnp.dtype(dtype), jnp.dtype(param_dtype))
    return from_nnx(load_weights(shaped, tensors, sharding=sharding, abstract=abstract))


@functools.lru_cache(maxsize=16)  # a command looks at each part before it compiles, and loads it after
def _shaped(config: Any, dtype: Any, param_dtype: Any) -> nnx.Module:
    """Make a network without weights. It is shared: nothing may change it."""
    make_network: Any = family_of(config).network

    def make() -> nnx.Module:
        network = make_network(config, rngs=_NoKeys(), dtype=dtype)
        params = nnx.state(network, nnx.Param)
        nnx.update(network, jax.tree.map(lambda p: p.astype(param_dtype) if p.ndim > 1 else p, params))
        return network

    return nnx.eval_shape(make)


class _NoKeys:
    """A stand-in for the keys of weights when only their shapes are made.

    `nnx.Rngs` counts the keys it gives, and under a trace each count takes 13 ms: seconds for a large network. Without
    a key, layers draw nothing, and JAX has no draws to trace.
    """

    def params(self) -> None:
        return None


def check_dtype(name: str, dtype: Any) -> None:
    """Refuse a dtype that is not one of the float dtypes that networks are computed and stored in.

    Raises:
      TypeError: it is not.
    """
    try:
        known = dtype is not None and jnp.dtype(dtype).name in _DTYPES
    except TypeError:
        known = False
    if not known:
        raise TypeError(f"{name} must be a float dtype: {', '.join(_DTYPES)}; got {dtype!r:.60}.")


_DTYPES = ("float32", "bfloat16", "float16", "float64")
