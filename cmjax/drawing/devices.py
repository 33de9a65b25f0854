"""Which devices share a batch, and how many images each of them draws at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from cmjax._mesh import Device, devices_for, dividing

__all__ = ["BatchPlan", "choose_devices", "plan_batch", "use_cores_as_devices"]

_MOST_CORES = 8  # a batch should still be a batch on each


class BatchPlan(NamedTuple):
    """The devices that share a batch, and the size of the batch.

    Attributes:
      devices: of this process.
      batch: images at once, on all devices together.
    """

    devices: tuple[Device, ...]
    batch: int

    @property
    def per_device(self) -> int:
        """Images at once on each device."""
        return self.batch // len(self.devices)


def use_cores_as_devices() -> None:
    """Let JAX see each core as a device, up to eight, where it runs on the CPU. Call it before anything is computed.

    XLA divides one operation among the cores, but not well where operations are small: a batch in two halves, one on
    each of two cores, trains 1.2 to 1.5 times as fast (`benchmarks/training.py`). A number of devices that the user has
    chosen, by `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS`, stays, and so do devices that JAX already uses.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices >= 0:  # pyright: ignore[reportAttributeAccessIssue]
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX has begun: its devices stay
        jax.config.update("jax_num_cpu_devices", min(cores, _MOST_CORES))


def choose_devices(count: int | None = None, model: Any = None) -> tuple[Device, ...]:
    """Take the first devices of this process.

    Args:
      count: how many; None for all, or for one core of a CPU where the model has more than 256 MiB.
      model: of which each has a copy, with weights or abstract.

    Raises:
      ValueError: this process has fewer.

    Example:
      >>> len(choose_devices(1))
      1
    """
    local = jax.local_devices()
    if count is not None and count > len(local):
        kind = local[0].platform
        hint = f" On a CPU, JAX_NUM_CPU_DEVICES={count} makes that many devices of its cores." if kind == "cpu" else ""
        raise ValueError(
            f"devices must be at most {len(local)}, the number of {kind} devices of this process, got {count}.{hint}"
        )
    return tuple(devices_for(model) if count is None else local[:count])


def plan_batch(
    devices: Sequence[Device], batch: int | None, count: int, per_device: int, *, strict: bool = False
) -> BatchPlan:
    """Plan how many images are drawn at once, and on which devices.

    Args:
      devices: the devices that may be used.
      batch: images at once, on all devices together; None for `per_device` on each.
      count: images in all: no more than these are drawn at once.
      per_device: images at once on a device, where `batch` is None.
      strict: whether `batch` must be a multiple of the number of devices. Otherwise the most devices are used that
        divide it.

    Returns:
      The devices and the batch size.

    Raises:
      ValueError: strict, and the batch is not a multiple of the number of devices.

    Example:
      >>> plan_batch(jax.local_devices()[:1], None, count=100, per_device=8).batch
      8
    """
    if batch is None:
        devices = devices[: min(len(devices), count)]
        return BatchPlan(tuple(devices), len(devices) * min(per_device, -(-count // len(devices))))
    batch = batch if strict else min(batch, count)
    if strict and batch % len(devices):
        raise ValueError(f"batch must be a multiple of {len(devices)}, the number of devices, got {batch}.")
    return BatchPlan(tuple(devices[: dividing(batch, len(devices))]), batch)
