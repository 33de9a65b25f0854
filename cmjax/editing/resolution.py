"""Resolution edits: the means of blocks are known."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax._numerics import whole
from cmjax._struct import Struct, static
from cmjax.editing._checks import Bounds, check_bounds, check_shape, measured
from cmjax.types import Array

__all__ = ["SuperResolution", "block_mean", "super_resolution"]


class SuperResolution(Struct):
    """Keep the means of blocks; see `super_resolution`."""

    low: Array
    factor: int = static()

    def __call__(self, x0: Array) -> Array:
        """Shift every block to its mean in low: f32[B, H, W, C]."""
        x0 = measured("x0", x0)
        means = block_mean(x0, self.factor)
        check_shape("low", self.low, means)
        missing = jnp.broadcast_to(self.low - means, means.shape)
        return x0 + missing.repeat(self.factor, axis=-3).repeat(self.factor, axis=-2)


def super_resolution(low: ArrayLike, factor: int, *, bounds: Bounds = (-1.0, 1.0)) -> SuperResolution:
    """Enlarge a picture: restore the mean of each block of pixels at every step.

    Args:
      low: f[B, h, w, C], or f[1, h, w, C] for all images, in the model's range.
      factor: how many times larger the result is, on each side: an int, since it determines shapes.
      bounds: as for `inpaint`.

    Returns:
      An edit on f[B, h factor, w factor, C], which returns float32.

    Raises:
      TypeError: low is not of a float dtype, or factor is not an int.
      ValueError: factor is less than 1, low has too few axes or is out of bounds.

    Example:
      >>> edit = super_resolution(jnp.array([[[[0.5]]]]), 2)
      >>> edit(jnp.array([0.0, 0.0, 0.0, 1.0]).reshape(1, 2, 2, 1)).ravel()
      Array([0.25, 0.25, 0.25, 1.25], dtype=float32)

    References:
      Song et al. 2023, appendix D. (The paper completes the mean to an orthogonal matrix; its other columns cancel.)
    """
    given, low, factor = low, measured("low", low), whole("factor", factor, 1)
    if low.ndim < 3:
        raise ValueError(f"low must have axes [B, h, w, C], got shape {low.shape}.")
    check_bounds("low", given, bounds)
    return SuperResolution(low, factor)


def block_mean(images: ArrayLike, factor: int) -> Array:
    """Measure what `super_resolution` keeps: shrink by averaging blocks of factor x factor pixels.

    Args:
      images: f[..., H, W, C].
      factor: an int that divides H and W.

    Returns:
      f32[..., H / factor, W / factor, C].

    Raises:
      TypeError: images are not of a float dtype, or factor is not an int.
      ValueError: factor does not divide the size.

    Example:
      >>> block_mean(jnp.arange(4.0).reshape(1, 2, 2, 1), 2).ravel()
      Array([1.5], dtype=float32)
    """
    images, factor = measured("images", images), whole("factor", factor, 1)
    if images.ndim < 3:
        raise ValueError(f"images must have axes [..., H, W, C], got shape {images.shape}.")
    *batch, height, width, channels = images.shape
    if height % factor or width % factor:
        raise ValueError(f"factor must divide the size of the images, but {factor} does not divide {height} x {width}.")
    blocks = images.reshape(*batch, height // factor, factor, width // factor, factor, channels)
    return blocks.mean((-4, -2))
