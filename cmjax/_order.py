"""The order in which a run sees its examples: of (seed, step) alone, so that a run can resume anywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["batch_indices"]


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """Choose the examples of a step, i64[batch_size]: each epoch has its own order, which (seed, step) determines."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: _order(seed, int(epoch), size) for epoch in np.unique(positions // size)}
    return np.array([orders[p // size][p % size] for p in positions])


@lru_cache(maxsize=2)  # a batch may reach over the end of an epoch
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)
