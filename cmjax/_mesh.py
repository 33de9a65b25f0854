"""Which devices share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

__all__ = ["Device", "batch_mesh", "devices_for", "dividing"]

Device = Any  # a `jax.Device`, which type checkers take for no class

_MOST_COPIED = 1 << 28  # bytes of which each core of a CPU may hold a copy: they all share one memory


def batch_mesh(batch_size: int, devices: Sequence[Device] | None = None) -> Mesh:
    """Line up the most devices that the batch divides among, as one axis, "batch".

    Args:
      batch_size: images at once.
      devices: to choose from, the first ones first; None for all of this process.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    chosen = np.array(devices[: dividing(batch_size, len(devices))])  # nothing is sent: any order will do
    return Mesh(chosen, ("batch",), axis_types=(AxisType.Auto,))


def devices_for(model: Any = None) -> list[Device]:
    """Take the devices of this process that share the work on a model, of which each holds a copy.

    All of them; but one alone for a model of more than 256 MiB where devices are cores of a CPU.

    Args:
      model: any pytree, with weights or abstract. What stands in it twice counts once.
    """
    local = jax.local_devices()
    once = {id(leaf): leaf for leaf in jax.tree.leaves(model) if hasattr(leaf, "dtype")}
    copied = sum(leaf.size * leaf.dtype.itemsize for leaf in once.values())
    return local[:1] if local[0].platform == "cpu" and copied > _MOST_COPIED else local


def dividing(size: int, most: int) -> int:
    """Find the largest number, up to `most`, that divides `size`.

    Example:
      >>> dividing(6, 4)
      3
    """
    return max(n for n in range(1, most + 1) if size % n == 0)
