"""Weights: a network's parameters in the names and layout of files, both ways.

Names map by rule: the parameter `down_blocks.0.conv1.kernel` is the tensor `down_blocks.0.conv1.weight`. The layer's
class says the last word and the order of the axes (`models.layers.layout`). The family says what older files call
things (`models.families`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from cmjax.io.memory import forget_pages
from cmjax.models.families import Family, family_of
from cmjax.models.layers import Stored
from cmjax.models.lora import Factor

__all__ = ["Placement", "cast", "file_tensors", "load_weights", "some_of"]

# Where weights go: one sharding for all, or one for each by its name and shape, such as
# ("down_blocks.0.resnets.0.conv1.kernel", (3, 3, 192, 192)).
Placement = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

_STRIP = 64


class _Leaf(NamedTuple):
    """A parameter of a module: its path, its variable, and its name and layout in files."""

    path: tuple[Any, ...]
    variable: Any
    name: str
    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.variable.get_value().shape


def _leaves(module: Any, params: nnx.State) -> list[_Leaf]:
    found = []
    for path, variable in nnx.to_flat_state(params):
        layer = module
        for word in path[:-1]:
            layer = layer[word] if isinstance(word, int) else getattr(layer, str(word))
        stored = layer.layout[path[-1]]
        found.append(_Leaf(path, variable, ".".join(map(str, (*path[:-1], stored.word))), stored))
    return found


def file_tensors(module: nnx.Module) -> dict[str, np.ndarray]:
    """Convert a module's parameters to the names and layout of files.

    Args:
      module: a network of any family, or one of `cmjax.models.layers`.

    Returns:
      The tensors by name: convolutions (out, in, H, W), linear layers (out, in). On a CPU they are views.

    Raises:
      ValueError: the module has LoRAs beside its weights.

    Example:
      >>> from cmjax.models.layers import Linear
      >>> sorted(file_tensors(Linear(3, 2, rngs=nnx.Rngs(0))).items())[1][1].shape
      (2, 3)
    """
    if next(iter(nnx.to_flat_state(nnx.state(module, Factor))), None):
        raise ValueError(
            "the network has LoRAs beside its weights, which its file cannot hold: merge them (cmjax.lora.merge), or "
            "write them to files of their own (cmjax.lora.attached, cmjax.lora.write)."
        )
    return {
        leaf.name: leaf.stored.to_file(np.asarray(leaf.variable[...]))
        for leaf in _leaves(module, nnx.state(module, nnx.Param))
    }


def load_weights(
    module: Any, tensors: Mapping[str, np.ndarray], *, sharding: Placement | None = None, abstract: bool = False
) -> Any:
    """Load tensors with the names and layout of files into a copy of a module.

    Each tensor is transposed, cast and placed by itself, so that views of a mapped file take no memory beyond that of
    the result.

    Args:
      module: a network, or its abstract form from `nnx.eval_shape`, which avoids creating weights only to replace them.
      tensors: the result of `file_tensors` or `read_safetensors`, in any float dtype.
      sharding: where the weights go; None for JAX's default device, uncommitted.
      abstract: check everything and read no weights: each is a `jax.ShapeDtypeStruct`.

    Returns:
      The module with the weights, in the dtypes of its parameters.

    Raises:
      TypeError: sharding is not a sharding, or does not return one.
      ValueError: there are parameters without weights, weights without a parameter, or weights of another shape (one
        message lists all of them); or weights are not floats, are infinite in the parameter's dtype, or cannot be
        divided by `sharding`.
    """
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    family, leaves = family_of(module), _leaves(module, params)
    tensors = {now: value for name, value in tensors.items() if (now := family.current(name)) is not None}
    _check(family, leaves, tensors)
    places = [_placement(".".join(map(str, leaf.path)), leaf.shape, sharding) for leaf in leaves]
    found = []
    for leaf, where in zip(leaves, places, strict=True):
        dtype = leaf.variable.get_value().dtype
        if abstract:
            weight = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where)
        else:
            value = leaf.stored.from_file(np.asarray(tensors[leaf.name]))
            weight = _place(leaf.name, value, dtype, where)
            forget_pages(value)
        found.append((leaf.path, leaf.variable.replace(weight)))
    return nnx.merge(graphdef, nnx.from_flat_state(found), rest)


def _placement(name: str, shape: tuple[int, ...], sharding: Placement | None) -> jax.sharding.Sharding | None:
    """Determine the sharding of one weight and check it; done for all weights before any is placed."""
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
      ValueError: a finite number becomes infinite; float16 ends at 65504.
    """
    with np.errstate(over="ignore"):
        copy = _copy(value, dtype)
    if np.dtype(dtype).itemsize < value.dtype.itemsize and not np.isfinite(copy).all() and np.isfinite(value).all():
        most = float(np.abs(value).max())
        raise ValueError(f"tensor {name} holds {most:.6g}, which is infinite in {np.dtype(dtype)}; take bfloat16.")
    return copy


def _place(name: str, value: np.ndarray, dtype: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(cast(name, value, dtype))  # `asarray` would compile a program for each shape
    return jax.make_array_from_callback(value.shape, sharding, lambda index: cast(name, value[index], dtype))


def _copy(value: np.ndarray, dtype: Any) -> np.ndarray:
    """Copy in strips of the last axis, which takes a third of the time for a kernel with transposed axes."""
    copy = np.empty(value.shape, dtype)
    for start in range(0, value.shape[-1], _STRIP):
        copy[..., start : start + _STRIP] = value[..., start : start + _STRIP]
    return copy


def _check(family: Family, leaves: list[_Leaf], tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors that do not fit the parameters, before any is placed."""
    rest, missing, misshapen = dict(tensors), [], []
    for leaf in leaves:
        value = rest.pop(leaf.name, None)
        if value is None:
            missing.append(leaf.name)
        elif not leaf.stored.fits(value, leaf.shape):
            misshapen.append(f"{leaf.name} is {value.shape}, not {leaf.stored.shape(leaf.shape)}")
        elif not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            raise ValueError(f"tensor {leaf.name} of the file holds {value.dtype}, but weights are floats.")
    faults = []
    if missing:
        faults.append(f"{family.folder} has {_count(missing, 'parameter')} with no weights: {some_of(missing)}")
    if left_over := sorted(rest):
        verb = "belong" if len(left_over) > 1 else "belongs"
        faults.append(f"{_count(left_over, 'tensor')} of the file {verb} to no parameter: {some_of(left_over)}")
    if misshapen:
        verb = "have" if len(misshapen) > 1 else "has"
        faults.append(f"{_count(misshapen, 'tensor')} of the file {verb} the wrong shape: {some_of(misshapen)}")
    if faults:
        raise ValueError(". ".join(faults) + f". Is this a {family.class_name} checkpoint?")


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def some_of(names: list[str], most: int = 5) -> str:
    """List some names in a message, and the number of others."""
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return ", ".join(map(_shown, names[:most])) + more


def _shown(name: str) -> str:
    """A name from a file, made fit for a message: without control characters, and cut where it is very long."""
    return name[:200] if name.isprintable() else name[:200].encode("unicode_escape").decode("ascii")
