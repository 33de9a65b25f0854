"""The order in which a run sees its examples: of (seed, step) alone, so that a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["BucketOrder", "batch_indices"]


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """Choose the examples of a step, i64[batch_size]: each epoch has its own order, which (seed, step) determines."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: _order(seed, int(epoch), size) for epoch in np.unique(positions // size)}
    return np.array([orders[p // size][p % size] for p in positions])


@lru_cache(maxsize=2)  # a batch may reach over the end of an epoch
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


class BucketOrder:
    """The order of a run whose batches are each of one bucket, such as pictures of one size.

    Each bucket goes through its examples again and again, in a new order each time, and its batches follow one another
    without a gap: what does not fill a batch at the end of an epoch begins the bucket's first batch of the next one. So
    an epoch has floor((e + 1) n / B) - floor(e n / B) batches of a bucket of n examples; in what order the buckets take
    turns is drawn for each epoch. After e epochs, each example was seen e times, but for fewer than B in each bucket,
    which come first in the next epoch. With one bucket, this is `batch_indices`.

    Args:
      seed: of the run.
      buckets: of each bucket the numbers of its examples, i64[n], n at least 1.
      batch_size: B.

    Example:
      >>> order = BucketOrder(0, [np.array([10, 11, 12]), np.array([20, 21])], 2)
      >>> seen = [order.batch(step).tolist() for step in range(5)]  # two epochs: 3 batches of one bucket, 2 of another
      >>> sorted(sum(seen, []))
      [10, 10, 11, 11, 12, 12, 20, 20, 21, 21]
    """

    def __init__(self, seed: int, buckets: Sequence[np.ndarray], batch_size: int):
        self._seed, self._buckets, self._batch_size = seed, [np.asarray(one) for one in buckets], batch_size
        self._sizes = np.array([len(one) for one in self._buckets], np.int64)
        self._epoch = lru_cache(maxsize=2)(self._turns)
        self._shuffled = lru_cache(maxsize=2 * len(self._buckets))(self._shuffle)

    def bucket(self, step: int) -> int:
        """The number of the bucket that a step's batch is of."""
        return int(self._place(step)[0])

    def batch(self, step: int) -> np.ndarray:
        """The examples of a step, i64[B]."""
        bucket, number = self._place(step)
        positions = np.arange(number * self._batch_size, (number + 1) * self._batch_size)
        epochs, within = np.divmod(positions, self._sizes[bucket])
        orders = {epoch: self._shuffled(bucket, epoch) for epoch in np.unique(epochs).tolist()}
        chosen = [orders[epoch][i] for epoch, i in zip(epochs.tolist(), within.tolist(), strict=True)]
        return self._buckets[bucket][chosen]

    def steps(self, epochs: int) -> int:
        """How many batches so many epochs have."""
        return int(self._counts(epochs).sum())

    def _counts(self, epochs: int) -> np.ndarray:
        """Batches of each bucket in so many epochs."""
        return epochs * self._sizes // self._batch_size

    def _place(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and which of the bucket's batches it is."""
        low, high = 0, 1  # the epoch e with steps(e) <= step < steps(e + 1), by bisection
        while self.steps(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.steps(middle) <= step else (low, middle)
        turns, numbers = self._epoch(low)
        at = step - self.steps(low)
        return int(turns[at]), int(numbers[at])

    def _turns(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The bucket of each batch of an epoch, and which of the bucket's batches it is."""
        before, after = self._counts(epoch), self._counts(epoch + 1)
        turns = np.repeat(np.arange(len(self._sizes)), after - before)
        turns = np.random.default_rng([self._seed, epoch, 2]).permutation(turns)  # 2: apart from the draws of examples
        numbers = np.empty_like(turns)
        for bucket, (first, last) in enumerate(zip(before, after, strict=True)):
            numbers[turns == bucket] = np.arange(first, last)
        return turns, numbers

    def _shuffle(self, bucket: int, epoch: int) -> np.ndarray:
        if bucket == 0:
            return _order(self._seed, epoch, int(self._sizes[0]))
        return np.random.default_rng([self._seed, epoch, 3, bucket]).permutation(self._sizes[bucket])
