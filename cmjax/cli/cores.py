"""A processor's cores as devices, for commands whose batches are many and whose networks are small."""

from __future__ import annotations

import contextlib
import os

import jax

__all__ = ["as_devices"]

_MOST = 8  # a batch should still be a batch on each, and each holds the weights


def as_devices() -> None:
    """Let JAX see each core as a device, where it runs on the CPU; before anything is computed.

    XLA shares the work of one operation between the cores, but not well where operations are small: a batch in two
    halves, one on each of two cores, trains 1.2 to 1.5 times as fast (`benchmarks/training.py`). How many devices the
    user has asked for, by `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS`, and what has begun, stay as they are.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or jax.config.jax_num_cpu_devices >= 0:  # pyright: ignore[reportAttributeAccessIssue]
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX has begun: its devices stay
        jax.config.update("jax_num_cpu_devices", min(cores, _MOST))
