"""The extractor inside the package: an eye for Fashion-MNIST, in its own file format."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.evaluation import (
    CLASSIFIER,
    ClassifierFeatures,
    Features,
    feature_shapes,
    read_classifier,
    write_classifier,
)
from cmjax.io import read_safetensors, write_safetensors


@pytest.fixture(scope="module")
def extractor():
    return ClassifierFeatures.of(read_classifier())


def test_it_has_features_and_logits_of_each_image_by_itself(extractor):
    assert feature_shapes(extractor, (28, 28, 1)) == (128, 10)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 28, 28, 1)), jnp.float32)

    @jax.jit
    def see(extractor, classifier, images):
        return extractor(images), Features(classifier.features(images), classifier(images))

    seen, expected = see(extractor, read_classifier(), images)
    turned, _ = see(extractor, read_classifier(), images[::-1])
    for got, same, other in zip(seen, expected, turned, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, same, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, other[::-1], rtol=1e-4, atol=1e-4)


def test_weights_are_read_as_they_were_written(extractor, tmp_path):
    write_classifier(read_classifier(), tmp_path / "again.safetensors")
    a, b = read_safetensors(CLASSIFIER), read_safetensors(tmp_path / "again.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == np.float16
        np.testing.assert_array_equal(a[name], b[name])
    assert CLASSIFIER.stat().st_size < 1_000_000


def test_bad_input(extractor, tmp_path):
    with pytest.raises(ValueError, match=r"sees images of \(28, 28, 1\), got \(32, 32, 3\)"):
        extractor(jnp.zeros((2, 32, 32, 3)))
    with pytest.raises(FileNotFoundError):
        read_classifier(tmp_path / "no.safetensors")
    write_safetensors({"conv1.kernel": np.zeros((2, 2))}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not hold this classifier's weights"):
        read_classifier(tmp_path / "other.safetensors")
