"""Precision and recall: closed forms on lines, laws, and the definition written out without blocks."""

import numpy as np
import pytest

from cmjax.evaluation import manifold
from cmjax.evaluation.manifold import neighbour_distances, precision_recall

RNG = np.random.default_rng(0)


def by_definition(real, generated, k):
    """Eqs. 1 to 3, every distance by itself."""

    def inside(points, others):
        apart = np.linalg.norm(others[:, None] - others[None], axis=-1)
        reach = np.sort(apart, axis=1)[:, k]  # a vector is its own nearest
        return (np.linalg.norm(points[:, None] - others[None], axis=-1) <= reach).any(axis=1).mean()

    return inside(generated, real), inside(real, generated)


@pytest.fixture(params=[(1024, 4096), (7, 5), (1, 3)], ids=["one block", "many blocks", "rows"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(manifold, "_ROWS", request.param[0])
    monkeypatch.setattr(manifold, "_COLUMNS", request.param[1])


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_definition_in_any_blocks(blocks, k):
    real, generated = RNG.normal(size=(40, 3)), 0.7 * RNG.normal(size=(33, 3)) + 0.5
    found = precision_recall(real, generated, k=k)
    assert found == pytest.approx(by_definition(real, generated, k), abs=1e-12)
    assert 0.2 < found.recall < found.precision < 1


def test_identical_sets_cover_each_other(blocks):
    features = RNG.normal(size=(30, 4)).astype(np.float32) + 100
    assert precision_recall(features, features) == (1, 1)
    assert precision_recall(features, features[::-1]) == (1, 1)


def test_copies_of_one_vector_cover_it_and_no_more(blocks):
    """A model that has collapsed: balls of no size."""
    real = np.concatenate([np.full((1, 3), 0.1), RNG.normal(size=(19, 3))]).astype(np.float32)
    collapsed = np.full((20, 3), 0.1, np.float32)
    assert precision_recall(real, collapsed) == (1, 1 / 20)
    assert precision_recall(collapsed, collapsed) == (1, 1)


def test_sets_far_apart_have_nothing_in_common(blocks):
    features = RNG.normal(size=(20, 3))
    assert precision_recall(features, features + 100) == (0, 0)


def test_precision_and_recall_are_each_other_with_the_sets_exchanged(blocks):
    a, b = RNG.normal(size=(25, 2)), 0.5 * RNG.normal(size=(30, 2))
    assert precision_recall(a, b) == precision_recall(b, a)[::-1]


def test_a_part_of_the_real_is_precise_but_does_not_cover(blocks):
    """Two clusters, of which one is drawn."""
    left, right = RNG.normal(size=(20, 2)), RNG.normal(size=(20, 2)) + 50
    assert precision_recall(np.concatenate([left, right]), left) == (1, 0.5)


def test_distances_to_neighbours(blocks):
    np.testing.assert_allclose(neighbour_distances(np.array([[0.0], [1], [3], [7]]), k=2), [3, 2, 3, 6], rtol=1e-12)


def test_bad_input():
    good = RNG.normal(size=(5, 2))
    for arguments, options, message in (
        ((good, good[:3]), {}, "generated must be more than k = 3 vectors, .* got 3"),
        ((good[:1], good), {"k": 1}, "real must be more than k = 1 vectors"),
        ((good, good), {"k": 0}, "k must be at least 1, got 0"),
        ((good, good[:, :1]), {}, "one dimension, got 2 and 1"),
        ((good, np.full((5, 2), np.nan)), {}, "generated must be finite"),
        ((good[0], good), {}, r"real must be f\[N, d\], got float64\[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            precision_recall(*arguments, **options)
