"""The files of the package's small networks: weights in float16, by the names of their layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.io.safetensors_files import read_safetensors, write_safetensors

__all__ = ["read_into", "write_half"]

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def read_into(make: Callable[..., ModuleT], path: str | Path, what: str) -> ModuleT:
    """Read a network's weights.

    Args:
      make: the network's class, made by `make(rngs=rngs)`.
      path: the file.
      what: what it should hold, for the message.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or its names or shapes are not those of the network.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    tensors, flat = read_safetensors(path), list(nnx.to_flat_state(state))
    shapes = {_name(where): tuple(leaf.get_value().shape) for where, leaf in flat}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise ValueError(f"{Path(path).name} does not hold {what}: train it again.")
    weights = [(where, leaf.replace(jnp.asarray(tensors[_name(where)], jnp.float32))) for where, leaf in flat]
    return nnx.merge(graphdef, nnx.from_flat_state(weights))


def write_half(module: nnx.Module, path: str | Path) -> None:
    """Write a network's weights in float16, as `read_into` reads them.

    Raises:
      OSError: they cannot be written.
    """
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    write_safetensors({_name(where): np.asarray(leaf[...], np.float16) for where, leaf in flat}, path)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
