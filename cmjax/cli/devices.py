"""Which devices draw, and how many images at once: --devices and --batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax

from cmjax._mesh import Device, dividing
from cmjax.cli.errors import UsageError

__all__ = ["BatchPlan", "choose_devices", "plan_batch"]


class BatchPlan(NamedTuple):
    """The devices that share a batch, and its size: each draws `batch / len(devices)` images at a time."""

    devices: tuple[Device, ...]
    batch: int

    @property
    def each(self) -> int:
        """Images a device."""
        return self.batch // len(self.devices)

    def speed(self, count: int, seconds: float) -> str:
        """Say how fast so many images were drawn."""
        on = f" on {len(self.devices)} devices" if len(self.devices) > 1 else ""
        return f"{count / seconds:.1f} images/s{on}"


def choose_devices(count: int | None) -> tuple[Device, ...]:
    """Take the first `count` of this process's devices, or all.

    Raises:
      UsageError: there are fewer.
    """
    local = jax.local_devices()
    if count is not None and count > len(local):
        kind = local[0].platform
        hint = f" (on a CPU, JAX_NUM_CPU_DEVICES={count} makes as many of its cores)" if kind == "cpu" else ""
        raise UsageError(f"--devices {count}: this process has {len(local)} of kind {kind}{hint}.")
    return tuple(local[:count])


def plan_batch(devices: Sequence[Device], batch: int | None, count: int, each: int, *, strict: bool) -> BatchPlan:
    """Say how many images are drawn at once.

    Args:
      devices: that may be used.
      batch: as asked for, on all devices together; None for `each` a device.
      count: images wanted in all: no more than these are drawn at once.
      each: images a device, where nobody says.
      strict: whether a batch that is asked for must divide among all of the devices: those were asked for too.

    Raises:
      UsageError: the batch does not divide among devices that must all be used.
    """
    if batch is None:
        devices = devices[: min(len(devices), count)]
        return BatchPlan(tuple(devices), len(devices) * min(each, -(-count // len(devices))))
    batch = batch if strict else min(batch, count)
    if strict and batch % len(devices):
        raise UsageError(
            f"--batch {batch} does not divide among {len(devices)} devices: give a multiple of {len(devices)}."
        )
    return BatchPlan(tuple(devices[: dividing(batch, len(devices))]), batch)
