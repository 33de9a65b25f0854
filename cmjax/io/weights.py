"""Weights: a network's parameters in diffusers' names and layout, both ways.

Names map by rule. The parameter `down_blocks.0.conv1.kernel` is the tensor `down_blocks.0.conv1.weight`: the last word
becomes `weight` (a `bias` stays), and the axes of a kernel are turned round.

| layer | here | file |
|---|---|---|
| convolution | `kernel` (H, W, in, out) | `weight` (out, in, H, W) |
| linear | `kernel` (in, out) | `weight` (out, in) |
| norm | `scale` | `weight` |
| embedding | `embedding` (rows, width) | `weight` (rows, width) |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import jax
import numpy as np
from flax import nnx

from cmjax.io.memory import forget_pages, return_freed_memory

__all__ = ["Placement", "cast", "load_unet_weights", "some_of", "unet_tensors"]

# Where weights go: one sharding for all, or one for each by its name and shape, such as
# ("down_blocks.0.resnets.0.conv1.kernel", (3, 3, 192, 192)).
Placement = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# Axis orders from our layout to the file's, by the number of axes of a kernel; and back.
_TO_FILE = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_FILE = {4: (2, 3, 1, 0), 2: (1, 0)}

_STRIP = 64

# The names that attention layers had before diffusers 0.15; many published files still carry them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet_tensors(module: nnx.Module) -> dict[str, np.ndarray]:
    """Give a module's parameters with diffusers' names and layout.

    Args:
      module: A `UNet`.

    Returns:
      The tensors by name: convolutions (out, in, H, W), linear layers (out, in). On a CPU they are views.

    Example:
      >>> sorted(unet_tensors(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).items())[1][1].shape
      (2, 3)
    """
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value = np.asarray(variable[...])
        if path[-1] == "kernel":
            value = value.transpose(_TO_FILE[value.ndim])
        tensors[_file_name(path)] = value
    return tensors


def load_unet_weights(
    module: Any, tensors: Mapping[str, np.ndarray], *, sharding: Placement | None = None, abstract: bool = False
) -> Any:
    """Put tensors in diffusers' names and layout into a copy of a module.

    Every tensor is turned, cast and placed by itself, so that tensors which are views of a mapped file take no memory
    but that of the result.

    Args:
      module: A `UNet`, or its abstract form from `nnx.eval_shape`, so that no weights are made only to be replaced.
      tensors: What `unet_tensors` gives or `read_safetensors` has read; any float dtype.
      sharding: Where the weights go; None for JAX's default device, uncommitted.
      abstract: Check everything and read no weights: each is a `jax.ShapeDtypeStruct`.

    Returns:
      The module with the weights, in the dtypes of its parameters.

    Raises:
      TypeError: sharding is something else, or gives something else.
      ValueError: Parameters without weights, weights without a parameter, or weights of another shape; all of them
        are listed in one message. Also weights that are not floats, are infinite in the parameter's dtype, or cannot
        be divided as `sharding` says.
    """
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    flat = list(nnx.to_flat_state(params))
    tensors = {_modern_name(name): value for name, value in tensors.items()}
    _check(flat, tensors)
    places = [_placement(".".join(map(str, path)), variable.get_value().shape, sharding) for path, variable in flat]
    if not abstract:
        return_freed_memory()
    found = []
    for (path, variable), where in zip(flat, places, strict=True):
        value = np.asarray(tensors[_file_name(path)])
        if path[-1] == "kernel":
            value = value.transpose(_FROM_FILE[value.ndim])
        dtype = variable.get_value().dtype
        if abstract:
            weight = jax.ShapeDtypeStruct(value.shape, dtype, sharding=where)
        else:
            weight = _place(_file_name(path), value, dtype, where)
            forget_pages(value)
        found.append((path, variable.replace(weight)))
    return nnx.merge(graphdef, nnx.from_flat_state(found), rest)


def _placement(name: str, shape: tuple[int, ...], sharding: Placement | None) -> jax.sharding.Sharding | None:
    """Where one weight goes, and whether it can go there: found out for all before any is placed."""
    if sharding is None:
        return None
    where: Any = sharding
    if isinstance(sharding, FunctionType | MethodType | functools.partial):  # a Mesh, or a class, is callable too
        where = sharding(name, shape)
    if not isinstance(where, jax.sharding.Sharding):
        raise TypeError(
            "sharding must be a jax.sharding.Sharding, such as NamedSharding(mesh, PartitionSpec()), or a function of "
            f"a weight's name and shape that gives one, got {where!r:.80}{'' if where is sharding else f' for {name}'}."
        )
    try:
        where.shard_shape(shape)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"sharding must divide the axes of every weight, but {where} does not divide {name} of shape {shape}."
        ) from error
    return where


def cast(name: str, value: np.ndarray, dtype: Any) -> np.ndarray:
    """Copy a tensor in a dtype, whatever its memory layout.

    Raises:
      ValueError: A finite number becomes infinite: float16 ends at 65504.
    """
    with np.errstate(over="ignore"):
        copy = _copy(value, dtype)
    if np.dtype(dtype).itemsize < value.dtype.itemsize and not np.isfinite(copy).all() and np.isfinite(value).all():
        most = float(np.abs(value).max())
        raise ValueError(f"tensor {name} holds {most:.6g}, which is infinite in {np.dtype(dtype)}; take bfloat16.")
    return copy


def _place(name: str, value: np.ndarray, dtype: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.numpy.asarray(cast(name, value, dtype))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: cast(name, value[index], dtype))


def _copy(value: np.ndarray, dtype: Any) -> np.ndarray:
    """Copy in strips of the last axis: a third of the time where the axes of a kernel were turned round."""
    copy = np.empty(value.shape, dtype)
    for start in range(0, value.shape[-1], _STRIP):
        copy[..., start : start + _STRIP] = value[..., start : start + _STRIP]
    return copy


def _check(flat: list[Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors that do not fit the parameters, before any is placed."""
    left_over, missing, misshapen = dict(tensors), [], []
    for path, variable in flat:
        name, shape = _file_name(path), variable.get_value().shape
        value = left_over.pop(name, None)
        shape = tuple(shape[axis] for axis in _TO_FILE[len(shape)]) if path[-1] == "kernel" else shape
        if value is None:
            missing.append(name)
        elif value.shape != shape:
            misshapen.append(f"{name} is {value.shape}, not {shape}")
        elif not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            raise ValueError(f"tensor {name} of the file holds {value.dtype}, but weights are floats.")
    _refuse(missing, sorted(left_over), misshapen)


def _refuse(missing: list[str], left_over: list[str], misshapen: list[str]) -> None:
    faults = []
    if missing:
        faults.append(f"unet has {_count(missing, 'parameter')} with no weights: {some_of(missing)}")
    if left_over:
        verb = "belong" if len(left_over) > 1 else "belongs"
        faults.append(f"{_count(left_over, 'tensor')} of the file {verb} to no parameter: {some_of(left_over)}")
    if misshapen:
        verb = "have" if len(misshapen) > 1 else "has"
        faults.append(f"{_count(misshapen, 'tensor')} of the file {verb} the wrong shape: {some_of(misshapen)}")
    if faults:
        raise ValueError(". ".join(faults) + ". Is this a UNet2DModel checkpoint?")


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def some_of(names: list[str], most: int = 5) -> str:
    """List names in a message, and how many more there are."""
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _file_name(path: tuple[Any, ...]) -> str:
    *head, last = (str(p) for p in path)
    return ".".join([*head, "bias" if last == "bias" else "weight"])


def _modern_name(name: str) -> str:
    """Rename the attention layers of old files, and the frequencies, which the first had under two names."""
    if name == "time_proj.W":
        return "time_proj.weight"
    words = name.split(".")
    if len(words) >= 3 and words[-3].isdigit() and words[-2] in _OLD_ATTENTION and "attentions" in words:
        words[-2] = _OLD_ATTENTION[words[-2]]
    return ".".join(words)
