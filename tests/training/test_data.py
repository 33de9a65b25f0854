"""The order in which a run sees its images."""

import numpy as np

from cmjax.training.data import batch_indices


def test_every_epoch_shows_each_image_once_in_its_own_order():
    seen = np.concatenate([batch_indices(3, k, 10, 4) for k in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    np.testing.assert_array_equal(batch_indices(3, 2, 10, 4), seen[8:12])  # of (seed, step) alone
    assert list(batch_indices(4, 0, 10, 4)) != list(seen[:4])
