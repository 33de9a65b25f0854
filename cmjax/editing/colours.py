"""Colour edits: the luminance of each pixel is known."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax._struct import Struct
from cmjax.editing._checks import Bounds, check_bounds, check_shape, few_numbers, measured
from cmjax.types import Array

__all__ = ["LUMA", "Colorize", "colorize", "luminance"]

# What each colour contributes to the luminance (ITU-R BT.601), as in the paper's colorization.
LUMA = (0.2989, 0.5870, 0.1140)


class Colorize(Struct):
    """Keep the luminance; see `colorize`."""

    gray: Array
    weights: Array

    def __call__(self, x0: Array) -> Array:
        """Give x0 the luminance of gray, moving along the weights: f32[B, H, W, C]."""
        x0, channels = measured("x0", x0), self.weights.shape[-1]
        if x0.shape[-1:] != (channels,):
            raise ValueError(f"colorize weighs {channels} colours, but x0 has shape {x0.shape}, channels last.")
        check_shape("gray", self.gray, x0[..., :1])
        weights = self.weights.reshape((1,) * (x0.ndim - 1) + (channels,))
        missing = self.gray - (x0 * weights).sum(-1, keepdims=True)
        return x0 + missing * weights / (weights**2).sum()


def colorize(gray: ArrayLike, *, weights: Sequence[float] = LUMA, bounds: Bounds = (-1.0, 1.0)) -> Colorize:
    """Colour a grey picture: restore the luminance of each pixel at every step.

    Args:
      gray: f[B, H, W, 1], or f[1, H, W, 1] for all images, in the model's range; see `luminance`.
      weights: how much each channel contributes; they are scaled so that they add up to 1.
      bounds: as for `inpaint`.

    Returns:
      An edit on f[B, H, W, C], for as many channels C as weights. It gives float32.

    Raises:
      TypeError: gray is not of a float dtype, or weights are not numbers.
      ValueError: gray does not have one channel, is out of bounds, or the weights do not have a positive sum.

    Example:
      >>> colorize(jnp.full((1, 1, 1, 1), 0.5), weights=(1, 0, 1))(jnp.zeros((1, 1, 1, 3)))
      Array([[[[0.5, 0. , 0.5]]]], dtype=float32)

    References:
      Song et al. 2023, appendix D. (The paper completes the weights to an orthogonal matrix; its other columns cancel.)
    """
    given, gray = gray, measured("gray", gray)
    if gray.ndim < 2 or gray.shape[-1] != 1:
        remedy = (
            "luminance(photo) makes one of a colour picture" if gray.shape[-1:] == (3,) else "write gray[..., None]"
        )
        raise ValueError(f"gray must have one channel, [B, H, W, 1], got shape {gray.shape}: {remedy}.")
    check_bounds("gray", given, bounds)
    return Colorize(gray, jnp.asarray(_unit_sum(weights)))


def luminance(images: ArrayLike, *, weights: Sequence[float] = LUMA) -> Array:
    """Measure what `colorize` keeps.

    Args:
      images: f[..., C].
      weights: as for `colorize`.

    Returns:
      f32[..., 1]. The luminance of a grey (v, v, v) is v.

    Raises:
      TypeError: images are not of a float dtype, or weights are not numbers.
      ValueError: the number of channels is not the number of weights.

    Example:
      >>> luminance(jnp.array([1.0, 0.5, 0.0]), weights=(1, 2, 1))
      Array([0.5], dtype=float32)
    """
    images, share = measured("images", images), _unit_sum(weights)
    if images.shape[-1:] != share.shape:
        raise ValueError(f"images must have {len(share)} channels, last, got shape {images.shape}.")
    return (images * share.reshape((1,) * (images.ndim - 1) + share.shape)).sum(-1, keepdims=True)


def _unit_sum(weights: Sequence[float]) -> np.ndarray:
    rule = "one number for each channel, with a positive sum, such as (1, 1, 1)"
    found = few_numbers("weights", weights, rule)
    if not 0 < found.sum() < np.inf:
        raise ValueError(f"weights must be {rule}, got {weights}.")
    return (found / found.sum()).astype(np.float32)
