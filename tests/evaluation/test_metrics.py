"""Sets are looked at batch by batch, and halves of the data are fair."""

import numpy as np
import pytest

from cmjax.evaluation import EMBEDDED, Features, halves, load_extractor, look, measure

RNG = np.random.default_rng(0)
FEATURES, LOGITS = RNG.normal(size=(50, 4)).astype(np.float32), RNG.normal(size=(50, 3))


def seen(*cuts, keep=50, features=FEATURES):
    return look(map(Features, np.split(features, cuts), np.split(LOGITS, cuts)), 4, keep=keep)


def test_labels_of_shape_n_1_are_labels():
    labels = np.array([0, 1, 1, 0, 2])
    for one, other in zip(halves(labels, 5), halves(labels[:, None], 5), strict=True):
        np.testing.assert_array_equal(one, other)
    features = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    seen = look([Features(features, np.eye(3)[[0, 1, 2, 0, 2]])], 2)
    assert measure(seen, seen.moments, labels=labels[:, None]).class_accuracy == 0.8


def test_what_is_kept_does_not_depend_on_batches():
    whole, parts = seen(), seen(7, 20, 49)
    np.testing.assert_array_equal(whole.features, FEATURES)
    np.testing.assert_array_equal(parts.features, FEATURES)
    np.testing.assert_array_equal(parts.guesses, LOGITS.argmax(axis=1))
    np.testing.assert_allclose(parts.moments.scatter, whole.moments.scatter, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(seen(7, 20, keep=10).features, FEATURES[:10])
    assert seen(7, 20, keep=10).moments.count == 50
    assert look([Features(FEATURES)], 4).guesses is None


def test_the_figures_of_equal_sets_and_of_a_shift():
    real, same = seen(), seen(7, 20)
    figures = measure(same, real.moments, real.features, LOGITS.argmax(axis=1))
    assert figures == pytest.approx((0, 1, 1, 1), abs=1e-10)
    shift = np.float32([3, 0, 4, 0])
    assert measure(seen(features=FEATURES + shift), real.moments).frechet_distance == pytest.approx(25, rel=1e-5)
    assert measure(same, real.moments)[1:] == (None, None, None)
    with pytest.raises(ValueError, match="labels must be one for each of the 50 images, got 3"):
        measure(same, real.moments, labels=np.arange(3))


@pytest.mark.parametrize("labels", [np.arange(60) % 4, np.repeat(np.arange(4), 15), RNG.integers(0, 3, 60), None])
def test_halves_share_no_image_and_begin_fairly(labels):
    a, b = halves(labels, 60)
    assert sorted([*a, *b]) == list(range(60))
    assert 0 <= len(b) - len(a) <= (1 if labels is None else len(np.unique(labels)))
    if labels is not None:
        for half in (a, b):
            counts = np.bincount(labels[half[:12]])
            assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(halves(labels, 60)[0], a)


def test_images_in_some_order_without_labels_are_shuffled():
    a, b = halves(None, 1000)
    assert abs(a.mean() - b.mean()) < 60


def test_the_embedded_extractor_has_a_name():
    assert load_extractor(EMBEDDED).graphdef is not None
    with pytest.raises(ValueError, match="'emoji-classifier' or a 'module:make'"):
        load_extractor("os.path")
    with pytest.raises(TypeError, match="must be a function that makes an extractor, got a str"):
        load_extractor("os:sep")
