"""Where the arrays of a run lie: on the devices of one process, or of several that make the same calls.

Several processes (`jax.distributed.initialize`) each give the whole batch, and hold their part of it on their devices.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax._mesh import batch_mesh, devices_for, dividing

__all__ = ["agree", "gathered", "is_first", "mesh_of", "place", "place_batch", "together"]

_AXIS = "batch"
_SMALL = 1 << 14  # values: below, a leaf is not worth dividing


def is_first() -> bool:
    """Whether this process writes files and reports."""
    return jax.process_index() == 0


def mesh_of(batch_size: int, model: Any = None) -> Mesh:
    """Line up the devices that share a batch: as many as divide it, the same number in every process.

    Args:
      batch_size: images at once.
      model: what each device has a copy of; a large one is on one core of a CPU alone.

    Raises:
      ValueError: the batch does not divide among the processes.
    """
    count = jax.process_count()
    if count == 1:
        return batch_mesh(batch_size, devices_for(model))
    if batch_size % count:
        raise ValueError(
            f"batch_size / accumulate must be a multiple of the number of processes, {count}, got {batch_size}."
        )
    each = dividing(batch_size // count, len(devices_for(model)))
    chosen = [device for i in range(count) for device in jax.local_devices(i)[:each]]
    return Mesh(np.array(chosen), (_AXIS,), axis_types=(AxisType.Auto,))


def place(tree: Any, mesh: Mesh, *, divide: bool = False) -> Any:
    """Put a tree on the devices of a mesh: whole on each, or divided among them.

    What several parts of the tree share stays shared.

    Args:
      tree: arrays; with several processes, the same in each.
      mesh: from `mesh_of`.
      divide: whether a large leaf is divided along its longest axis that the number of devices divides.
    """
    leaves, treedef = jax.tree.flatten(tree)
    once = list({id(leaf): leaf for leaf in leaves}.values())
    where = [NamedSharding(mesh, _spec(leaf, mesh.size) if divide else P()) for leaf in once]
    put = dict(zip(map(id, once), _put(once, where), strict=True))
    return jax.tree.unflatten(treedef, [put[id(leaf)] for leaf in leaves])


def _spec(leaf: Any, count: int) -> P:
    axes = [i for i, size in enumerate(jnp.shape(leaf)) if size % count == 0]
    if not axes or jnp.size(leaf) < _SMALL:
        return P()
    axis = max(axes, key=lambda i: jnp.shape(leaf)[i])
    return P(*(None,) * axis, _AXIS)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Divide a batch among the devices of a mesh, image by image; with several processes, each gives the whole."""
    leaves, treedef = jax.tree.flatten(batch)
    return jax.tree.unflatten(treedef, _put(leaves, [NamedSharding(mesh, P(_AXIS))] * len(leaves)))


def _put(leaves: list[Any], where: list[NamedSharding]) -> list[Any]:
    """Put arrays on devices; those of other processes get their part from what these hold."""
    if jax.process_count() == 1:
        return jax.device_put(leaves, where)
    return [_put_part(leaf, one) for leaf, one in zip(leaves, where, strict=True)]


def _put_part(leaf: Any, where: NamedSharding) -> jax.Array:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_part(jax.random.key_data(leaf), where), impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def gathered(tree: Any) -> Any:
    """A tree whose leaves are whole in this process: those of one process as they are. All processes call it."""
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_whole(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    if leaf.is_fully_replicated:
        return jnp.asarray(leaf.addressable_data(0))
    return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def together(name: str) -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"cmjax {name}")


def agree(what: str, held: Any) -> None:
    """Refuse processes that hold something else: other words, or other arrays.

    Raises:
      ValueError: in every process, where one differs.
    """
    if jax.process_count() == 1:
        return
    crc = 0
    for leaf in jax.tree.leaves(held):
        crc = zlib.crc32(leaf.encode() if isinstance(leaf, str) else np.ascontiguousarray(leaf).tobytes(), crc)
    heard = np.ravel(multihost_utils.process_allgather(np.uint32(crc)))
    if others := np.flatnonzero(heard != heard[0]).tolist():
        raise ValueError(
            f"all processes must have the same {what}, but process {others[0]} has another one than process 0: start "
            "them with the same arguments and files."
        )
