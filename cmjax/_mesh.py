"""Which devices share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

__all__ = ["Device", "batch_mesh", "dividing"]

Device = Any  # a `jax.Device`, which type checkers take for no class


def batch_mesh(batch_size: int, devices: Sequence[Device] | None = None) -> Mesh:
    """Line up the most devices that the batch divides among, as one axis, "batch".

    Args:
      batch_size: images at once.
      devices: to choose from, the first ones first; None for all of this process.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    chosen = np.array(devices[: dividing(batch_size, len(devices))])  # nothing is sent: any order will do
    return Mesh(chosen, ("batch",), axis_types=(AxisType.Auto,))


def dividing(size: int, most: int) -> int:
    """Find the largest number, up to `most`, that divides `size`.

    Example:
      >>> dividing(6, 4)
      3
    """
    return max(n for n in range(1, most + 1) if size % n == 0)
