"""Guidance, from models to models: classifier-free, in one doubled batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax._numerics import expand_like, f32, safe_sqrt
from cmjax._struct import Struct
from cmjax.types import Array, Cond, ModelFn

__all__ = ["Guided", "Rescaled", "WithNull", "classifier_free", "rescaled"]


class WithNull(Struct):
    """A condition with the empty one beside it, as the data of a training run gives both.

    Methods with a guided teacher (`cmjax.training`) lead it away from `null_cond`, and methods that drop conditions put
    `null_cond` in their place. The networks are told one of the two, never this pair.

    Attributes:
      cond: a pytree, batch first.
      null_cond: a pytree like cond, batch first too.
    """

    cond: Cond
    null_cond: Cond


class Guided(Struct):
    """A model guided away from its unconditional self; see `classifier_free`."""

    model: ModelFn
    guidance_scale: Array
    null_cond: Cond

    def __call__(self, x: Array, t: Array, cond: Cond, **kwargs: Any) -> Array:
        """Compute the guided output, f[B, *S], for x of f[B, *S], t of f[] or f[B], and cond with the batch first."""
        uncond, cond = self.both(x, t, cond, **kwargs)
        return self.combine(uncond, cond).astype(x.dtype)

    def both(self, x: Array, t: Array, cond: Cond, **kwargs: Any) -> tuple[Array, Array]:
        """Compute the outputs without and with the condition, f32[B, *S] each, in one model call."""
        if cond is None:
            raise ValueError("cond is None: guidance needs a condition to guide towards.")
        both_t = t if t.ndim == 0 else _interleaved(t, t)
        out = self.model(_interleaved(x, x), both_t, _doubled(self.null_cond, cond, x.shape[0]), **kwargs)
        pairs = f32(out).reshape(x.shape[0], 2, *x.shape[1:])
        return pairs[:, 0], pairs[:, 1]

    def combine(self, uncond: Array, cond: Array) -> Array:
        """Compute uncond + w (cond - uncond)."""
        return uncond + expand_like(self.guidance_scale, cond) * (cond - uncond)


class Rescaled(Guided):
    """A guided model with the contrast of the conditional one; see `rescaled`."""

    rescale: Array

    def combine(self, uncond: Array, cond: Array) -> Array:
        """Guide, then move the standard deviation of each image towards the conditional one's."""
        guided = super().combine(uncond, cond)
        axes = tuple(range(1, cond.ndim))
        std, wanted = (safe_sqrt(v.var(axes, keepdims=True)) for v in (guided, cond))
        ratio = jnp.where(std > 0, wanted / jnp.where(std > 0, std, 1.0), 1.0)  # a constant image has no contrast
        return guided * (1.0 + expand_like(self.rescale, cond) * (ratio - 1.0))


def classifier_free(model: ModelFn, guidance_scale: ArrayLike, null_cond: Cond) -> Guided:
    """Guide a model: uncond + w (cond - uncond), with both in one doubled batch.

    Args:
      model: a callable pytree `model(x, t, cond)`.
      guidance_scale: w, a scalar or one per image, f32[B]. 1 is the model itself; 0 is unconditional. A leaf.
      null_cond: the empty condition, a pytree like cond, with arrays of cond's shape or of one image's.

    Returns:
      A model.

    Raises:
      ValueError: (when called) cond is None, or null_cond does not match cond.

    Example:
      >>> model = classifier_free(lambda x, t, cond: x + cond[:, None], 2.0, jnp.zeros(()))
      >>> model(jnp.zeros((1, 2)), jnp.array(0.0), jnp.array([3.0]))
      Array([[6., 6.]], dtype=float32)

    References:
      Ho & Salimans 2022, equation 6 (there w is one less).
    """
    return Guided(model, f32(guidance_scale), null_cond)


def rescaled(model: ModelFn, guidance_scale: ArrayLike, null_cond: Cond, rescale: ArrayLike = 0.7) -> Rescaled:
    """Guide a model, and undo the growth in contrast that guidance causes.

    Args:
      model: as for `classifier_free`.
      guidance_scale: as for `classifier_free`.
      null_cond: as for `classifier_free`.
      rescale: from 0, plain guidance, to 1, which gives each image the standard deviation of the conditional output. A
        leaf.

    Returns:
      A model.

    Raises:
      ValueError: (when called) as for `classifier_free`.

    Example:
      >>> model = rescaled(lambda x, t, cond: x * cond[:, None], 2.0, jnp.zeros(()), rescale=1.0)
      >>> model(jnp.array([[-1.0, 1.0]]), jnp.array(0.0), jnp.array([3.0]))
      Array([[-3., 3.]], dtype=float32)

    References:
      Lin et al. 2023, section 3.4, equations 14 to 16.
    """
    return Rescaled(model, f32(guidance_scale), null_cond, f32(rescale))


def _doubled(null_cond: Cond, cond: Cond, batch: int) -> Cond:
    """Interleave the empty condition, broadcast to the batch, with the condition, leaf by leaf: [2B, ...]."""
    if jax.tree.structure(null_cond) != jax.tree.structure(cond):
        raise ValueError(
            f"null_cond must be a pytree like cond, the empty condition, got {null_cond!r:.60} for {cond!r:.60}."
        )

    def double(null: ArrayLike, full: Array) -> Array:
        if full.ndim == 0 or full.shape[0] != batch:
            raise ValueError(
                f"cond has an array of shape {full.shape} for a batch of {batch}: the batch must come first."
            )
        null = jnp.asarray(null, full.dtype)
        if null.shape not in (full.shape, full.shape[1:], (1, *full.shape[1:])):
            raise ValueError(
                f"null_cond has shape {null.shape}; it must be {full.shape[1:]} or {full.shape}, as cond is."
            )
        return _interleaved(jnp.broadcast_to(null, full.shape), full)

    return jax.tree.map(double, null_cond, cond)


def _interleaved(a: Array, b: Array) -> Array:
    """Interleave a0, b0, a1, b1, …, [2B, ...]: both inputs of image i are neighbours, so no shard has to move."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
