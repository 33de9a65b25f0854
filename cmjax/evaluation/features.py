"""What a feature extractor is: the eye that generated and real images are compared with.

A distance is a statement about images *and* extractor: figures in different extractors cannot be compared, nor those
of one network with its images resized or scaled in another way.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from cmjax.types import Array

__all__ = ["Extractor", "Features", "as_pytree", "feature_shapes"]


class Features(NamedTuple):
    """What an extractor sees in images: features f32[B, d], and logits f32[B, k] where it tells k classes apart."""

    features: Array
    logits: Array | None = None


class Extractor(Protocol):
    """Any callable pytree from images f32[B, H, W, C] in [-1, 1] to `Features`, each image by itself.

    It runs inside `jax.jit`, beside the model that draws: arrays that it holds as leaves are placed on every device. A
    plain function will do. What is not JAX must come in a `jax.pure_callback`.
    """

    def __call__(self, images: Array, /) -> Features:
        """Look at the images."""
        ...


def as_pytree(extractor: Any) -> Extractor:
    """Make an extractor fit to cross `jit`: its leaves arrays, and a plain function a pytree without any.

    Raises:
      TypeError: it holds something else.
    """
    if jax.tree.leaves(extractor) == [extractor]:
        return jax.tree_util.Partial(extractor)
    return jax.tree.map(jax.numpy.asarray, extractor)


def feature_shapes(extractor: Extractor, shape: tuple[int, int, int]) -> tuple[int, int | None]:
    """Find out how many features an extractor has, and how many classes, without computing anything.

    Args:
      extractor: what is to be asked.
      shape: (H, W, C) of the images.

    Returns:
      d, and k or None.

    Raises:
      TypeError: it does not return `Features`.
      ValueError: what it returns does not have the shapes or dtypes of `Features`; or what it raises itself.

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
