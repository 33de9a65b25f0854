"""How the layers of a module divide among devices, so that each computes a part and they add sums once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cmjax.types import Array

__all__ = ["Division", "is_divided", "whole"]


@dataclasses.dataclass(frozen=True)
class Division:
    """Which layers of a module are divided by their outputs, and which by their inputs.

    With a part of the columns, a device computes a part of the channels, and no operation mixes channels before the
    rows. With a part of the rows, a device computes a part of each sum from these channels. The devices add their sums
    once, after the rows.

    Args:
      units: maps a module to the number of parts of its channels that are independent of each other (heads, groups of
        a norm, channels); the number of devices must divide it.
      columns: names, from the module on, of layers divided by the channels that come out.
      rows: names of layers divided by the channels that go in.

    References:
      Shoeybi et al., Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism, 2019,
      section 3.
    """

    units: Callable[[Any], int]
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


def is_divided() -> bool:
    """Whether the program is traced for several devices: within `jax.set_mesh`, if all axes are of type Auto."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)


def whole(x: Array) -> Array:
    """Tell the compiler that each device needs all channels here, so that the devices add or gather their parts.

    Without it the compiler may carry parts through a network, and gather them where that costs most.

    Args:
      x: f[..., C]. The compiler chooses for all axes but the last.

    Returns:
      x, with a constraint of its sharding if `is_divided`.
    """
    spec = P(*[P.UNCONSTRAINED] * (x.ndim - 1), None)
    return jax.lax.with_sharding_constraint(x, spec) if is_divided() else x
