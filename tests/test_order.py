"""Orders of examples: exact over epochs, of (seed, step) alone."""

import numpy as np
import pytest

from cmjax._order import BucketOrder, batch_indices


@pytest.mark.parametrize("sizes", [(7, 5, 1), (8, 4), (3,), (1, 1), (40, 17, 9, 2)])
def test_every_example_is_seen_once_an_epoch(sizes):
    batch, ends = 4, np.cumsum(sizes)
    buckets = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    order = BucketOrder(3, buckets, batch)
    seen, step = np.zeros(sum(sizes), int), 0
    for epoch in range(1, 9):
        while step < order.steps(epoch):
            chosen = order.batch(step)
            assert len(chosen) == batch and np.isin(chosen, buckets[order.bucket(step)]).all()
            np.add.at(seen, chosen, 1)
            step += 1
        for bucket in buckets:  # all were seen as often as there were epochs, but for less than a batch
            lacking = epoch - seen[bucket]
            assert lacking.min() >= 0 and lacking.sum() == epoch * len(bucket) % batch
            assert lacking.max() <= -(-batch // len(bucket))


def test_an_order_is_of_seed_and_step_alone():
    buckets = [np.arange(9), np.arange(9, 20)]
    order = BucketOrder(0, buckets, 3)
    whole = [order.batch(step).tolist() for step in range(40)]
    assert [BucketOrder(0, buckets, 3).batch(step).tolist() for step in (39, 0, 7)] == [whole[39], whole[0], whole[7]]
    assert [BucketOrder(1, buckets, 3).batch(step).tolist() for step in range(40)] != whole
    assert whole[:6] != whole[6:12]  # epochs differ
    turns = [order.bucket(step) for step in range(40)]
    assert turns != sorted(turns)


def test_one_bucket_is_the_plain_order():
    order = BucketOrder(5, [np.arange(10)], 3)
    for step in (0, 3, 4, 100):
        np.testing.assert_array_equal(order.batch(step), batch_indices(5, step, 10, 3))
