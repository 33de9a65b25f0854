"""Shared by the samplers that take one η for each image of a batch: how their tables are read."""

from __future__ import annotations

from cmjax._numerics import expand_like
from cmjax.samplers.base import Prediction, SamplerState
from cmjax.types import Array

__all__ = ["weight"]


def weight(state: SamplerState, table: Array, pred: Prediction) -> Array:
    """Read a table at this step, f[]; of a table with a row for each image, f[B, n], one for each, f[B, 1, ..., 1]."""
    if table.ndim == 1:
        return state.now(table)
    if table.shape[0] != pred.x0.shape[0]:
        raise ValueError(
            f"eta was given for {table.shape[0]} images, but the batch has {pred.x0.shape[0]}: "
            "give one for each image, [n, B] or [1, B], or one for all, [] or [n]."
        )
    return expand_like(state.now(table.T), pred.x0)
