"""Feature extractors, with which generated and real images are compared.

A distance depends on the images *and* on the extractor. Figures of different extractors cannot be compared, nor figures
of one network whose images are resized or scaled in different ways.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from cmjax.types import Array

__all__ = ["Extractor", "Features", "as_pytree", "feature_shapes"]


class Features(NamedTuple):
    """What an extractor returns: features f32[B, d], and logits f32[B, k] if it classifies k classes, else None."""

    features: Array
    logits: Array | None = None


class Extractor(Protocol):
    """Any callable pytree from images f32[B, H, W, C] in [-1, 1] to `Features`, each image by itself.

    It runs inside `jax.jit`, beside the model that draws, and its leaves are placed on every device. A plain function
    works too. Code that is not JAX needs a `jax.pure_callback`.
    """

    def __call__(self, images: Array, /) -> Features:
        """Compute the features of images."""
        ...


def as_pytree(extractor: Any) -> Extractor:
    """Prepare an extractor for `jit`: convert its leaves to arrays, and a plain function to a pytree without leaves.

    Raises:
      TypeError: it has a leaf that is not an array.
    """
    if jax.tree.leaves(extractor) == [extractor]:
        return jax.tree_util.Partial(extractor)
    return jax.tree.map(jax.numpy.asarray, extractor)


def feature_shapes(extractor: Extractor, shape: tuple[int, int, int]) -> tuple[int, int | None]:
    """Find the number of features and classes of an extractor, without computing anything.

    Args:
      extractor: the extractor.
      shape: (H, W, C) of the images.

    Returns:
      d, and k or None.

    Raises:
      TypeError: it does not return `Features`.
      ValueError: what it returns does not have the shapes or dtypes of `Features`; or the extractor raises it.

    Example:
      >>> feature_shapes(lambda images: Features(images.mean(axis=(1, 2))), (8, 8, 3))
      (3, None)
    """
    images = jax.ShapeDtypeStruct((2, *shape), jax.numpy.float32)
    seen = jax.eval_shape(lambda images: extractor(images), images)
    if not isinstance(seen, Features):
        raise TypeError(f"an extractor must return cmjax.evaluation.Features, got {type(seen).__name__}.")
    for name, array in seen._asdict().items():
        if array is None and name == "logits":
            continue
        axes, dtype = getattr(array, "shape", ()), getattr(array, "dtype", type(array).__name__)
        if len(axes) != 2 or axes[0] != 2 or not axes[1] or not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            came = f"{dtype}{list(axes)}" if hasattr(array, "shape") else type(array).__name__
            raise ValueError(f"an extractor's {name} of 2 images must be f[2, n], got {came}.")
    return seen.features.shape[1], None if seen.logits is None else seen.logits.shape[1]
