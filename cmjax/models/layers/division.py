"""How the layers of a module divide among devices, so that each computes a part and sums meet once."""

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

    Columns make a part of the channels each, which nothing after them mixes before the rows do. Rows take these parts
    and give a part of each sum: the sums of all devices are added once, after the rows.

    Args:
      units: how many parts of the channels are independent of each other (heads, groups of a norm, channels), of a
        module; the number of devices must divide it.
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
    """Whether the compiler is told of several devices: within `jax.set_mesh`, where all axes are of type Auto."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)


def whole(x: Array) -> Array:
    """Tell the compiler that each device has all channels here: what the devices have of them is brought together.

    Without it the compiler may carry parts through a network, and bring them together where that costs most. It acts
    where `is_divided`; anywhere else x is returned as it is.

    Args:
      x: f[..., C]. All axes but the last are left to the compiler.
    """
    spec = P(*[P.UNCONSTRAINED] * (x.ndim - 1), None)
    return jax.lax.with_sharding_constraint(x, spec) if is_divided() else x
