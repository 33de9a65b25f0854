"""The extractor inside the package: a small classifier of Fashion-MNIST, trained on real images.

Its model card is `cmjax/pretrained/fashion-mnist-classifier/README.md`; `benchmarks/fashion_mnist_classifier.py` trains
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax._struct import Struct, static
from cmjax.evaluation.features import Features
from cmjax.evaluation.weights import read_into, write_half
from cmjax.types import Array, Key

__all__ = ["CLASSIFIER", "Classifier", "ClassifierFeatures", "read_classifier", "write_classifier"]

CLASSIFIER = Path(__file__).parent.parent / "pretrained" / "fashion-mnist-classifier" / "classifier.safetensors"
_SHAPE = (28, 28, 1)


class Classifier(nnx.Module):
    """Four convolutions (28 -> 14 -> 7 -> 7 -> 4 pixels), 128 features, 10 logits; about 0.4M parameters.

    Images are f32[B, 28, 28, 1] in [-1, 1].
    """

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = _PatchConv(1, 32, 5, 2, rngs=rngs)
        self.conv2 = _PatchConv(32, 64, 3, 2, rngs=rngs)
        self.conv3 = _PatchConv(64, 64, 3, 1, rngs=rngs)
        self.conv4 = _PatchConv(64, 128, 3, 2, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 128, 128, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def features(self, x: Array, key: Key | None = None) -> Array:
        """Return the features f32[B, 128]; a key turns dropout on, as in training."""
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        x = nnx.relu(x + self.conv3(x))
        x = nnx.relu(self.conv4(x))
        x = _dropout(x.reshape(x.shape[0], -1), 0.3, None if key is None else jax.random.fold_in(key, 0))
        return nnx.relu(self.dense(x))

    def __call__(self, x: Array, key: Key | None = None) -> Array:
        """Return the logits f32[B, 10]."""
        features = _dropout(self.features(x, key), 0.3, None if key is None else jax.random.fold_in(key, 1))
        return self.head(features)


class ClassifierFeatures(Struct):
    """A `Classifier` as an extractor: its 128 features and 10 logits. Made by `ClassifierFeatures.of(classifier)`."""

    params: Any
    graphdef: Any = static()

    @classmethod
    def of(cls, classifier: Classifier) -> ClassifierFeatures:
        """Make an extractor of a classifier."""
        graphdef, params = nnx.split(classifier)
        return cls(params, graphdef)

    def __call__(self, images: Array) -> Features:
        """Compute the features and logits of images f32[B, 28, 28, 1] in [-1, 1].

        Raises:
          ValueError: they are of another size.
        """
        if images.shape[1:] != _SHAPE:
            raise ValueError(f"the Fashion-MNIST classifier sees images of {_SHAPE}, got {images.shape[1:]}.")
        classifier = nnx.merge(self.graphdef, self.params)
        features = classifier.features(images)
        return Features(features, classifier.head(features))


def read_classifier(path: str | Path = CLASSIFIER) -> Classifier:
    """Read a classifier's weights, by default those of the classifier in the package.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or its names or shapes are not those of a classifier.
    """
    return read_into(Classifier, path, "this classifier's weights")


def write_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier's weights in float16, as `read_classifier` reads them.

    Raises:
      OSError: they cannot be written.
    """
    write_half(classifier, path)


class _PatchConv(nnx.Module):
    """A convolution written as one matrix multiply of its patches: several times faster than XLA's own on a CPU.

    Padding puts ``kernel // 2`` zeros before and after, so stride 1 keeps the size and stride 2 halves it (rounded up).
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.size, self.stride = kernel, stride
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (kernel * kernel * features_in, features_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        size, stride, (height, width) = self.size, self.stride, x.shape[1:3]
        rows, columns = -(-height // stride), -(-width // stride)
        pad = (size // 2, size // 2 + stride)
        x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
        shifts = [
            x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            for i in range(size)
            for j in range(size)
        ]
        return jnp.concatenate(shifts, axis=-1) @ self.kernel[...] + self.bias[...]


def _dropout(x: Array, rate: float, key: Key | None) -> Array:
    return x if key is None else jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
