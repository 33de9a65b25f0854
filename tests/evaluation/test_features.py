"""What an extractor must be is found out before anything is computed."""

import jax
import jax.numpy as jnp
import pytest

from cmjax._struct import Struct
from cmjax.evaluation import Features, feature_shapes


class Projection(Struct):
    matrix: jax.Array

    def __call__(self, images):
        return Features(images.reshape(len(images), -1) @ self.matrix)


def test_shapes_of_a_function_and_of_a_struct():
    assert feature_shapes(Projection(jnp.ones((12, 5))), (2, 2, 3)) == (5, None)
    assert feature_shapes(lambda x: Features(x[:, 0, 0], x[:, 0, 0, :2]), (2, 2, 3)) == (3, 2)


@pytest.mark.parametrize(
    ("extractor", "error", "message"),
    [
        (lambda x: x[:, 0, 0], TypeError, "must return cmjax.evaluation.Features, got ShapeDtypeStruct"),
        (lambda x: Features(x), ValueError, r"features of 2 images must be f\[2, n\], got float32\[2, 4, 4, 1\]"),
        (lambda x: Features(x.mean(axis=(0, 1))), ValueError, r"got float32\[4, 1\]"),
        (lambda x: Features(x[:, 0, 0].astype(int)), ValueError, r"got int32\[2, 1\]"),
        (lambda x: Features(x[:, 0, 0], x.mean()), ValueError, r"an extractor's logits of 2 images .* got float32\[\]"),
        (lambda x: Features(None), ValueError, "got NoneType"),
    ],
)
def test_what_is_no_extractor(extractor, error, message):
    with pytest.raises(error, match=message):
        feature_shapes(extractor, (4, 4, 1))
