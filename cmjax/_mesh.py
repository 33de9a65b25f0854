"""Which devices share a batch."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

__all__ = ["batch_mesh"]


def batch_mesh(batch_size: int) -> Mesh:
    """Line up the most local devices that the batch divides among, as one axis, "batch"."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return jax.make_mesh((count,), ("batch",), axis_types=(AxisType.Auto,), devices=devices[:count])
