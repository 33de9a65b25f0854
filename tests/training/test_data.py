"""The order in which a run sees its images."""

import numpy as np

from cmjax import training
from cmjax.training.data import batch_indices, batches


def test_every_epoch_shows_each_image_once_in_its_own_order():
    seen = np.concatenate([batch_indices(3, k, 10, 4) for k in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    np.testing.assert_array_equal(batch_indices(3, 2, 10, 4), seen[8:12])  # of (seed, step) alone
    assert list(batch_indices(4, 0, 10, 4)) != list(seen[:4])


def test_a_resumed_run_asks_for_what_is_left():
    """Of an iterable that can begin anywhere; the batches of others are drawn and dropped."""
    recipe = training.Recipe(batch_size=2)
    rows = [(np.full((2, 1), k, np.float32), None) for k in range(5)]

    class Source(list):
        def starting_at(self, step):
            asked.append(step)
            return iter(self[step:])

    asked = []
    for source in (rows, Source(rows)):
        assert [int(x[0, 0]) for x, _ in (next(batches(source, None, recipe, k)) for k in (0, 3))] == [0, 3]
    assert asked == [0, 3]
