"""Guidance in training: teachers trained with label dropout, and students of guided teachers.

A condition that comes with the empty one beside it (`guidance.WithNull`), such as a text, is dropped for that one, and
teachers are guided away from it.

Else conditions are labels. A network of K classes accepts mixtures of classes, f32[B, K]. The even mixture of all
classes means no label. A network thus needs no extra class, and any teacher trained in this way can be guided:
`classifier_free(model, w, no_label(K))`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cmjax._bounds import Rule
from cmjax.guidance import WithNull, classifier_free
from cmjax.types import Array, Cond, Key

__all__ = ["RANGE", "check_one_scale", "drawn_scales", "guided", "guided_as_drawn", "no_label", "some_left_out", "told"]

RANGE = Rule(
    "be () or two scales above 0, the lower one first",
    lambda ends: not ends or (len(ends) == 2 and 0 < ends[0] <= ends[1]),
)


def no_label(num_classes: int) -> Array:
    """The mixture that means no label, f32[K]."""
    return jnp.full((num_classes,), 1.0 / num_classes, jnp.float32)


def told(cond: Cond) -> Cond:
    """What a network is told: the condition without the empty one beside it."""
    return cond.cond if isinstance(cond, WithNull) else cond


def some_left_out(model: Any, cond: Cond, key: Key, share: float) -> tuple[Cond, Key]:
    """Drop a share of the conditions, and give the key for what follows. Ho & Salimans 2022, algorithm 1.

    Labels i32[B] become mixtures f32[B, K]; a condition with the empty one beside it becomes one of the two. A share of
    0 changes neither the condition nor the key.
    """
    if not share:
        return cond, key
    key, drop_key = jax.random.split(key)
    return _dropped(model, cond, drop_key, share), key


def _dropped(model: Any, cond: Cond, key: Key, share: float) -> Cond:
    if isinstance(cond, WithNull):
        batch = jax.tree.leaves(cond)[0].shape[0]
        left_out = jax.random.bernoulli(key, share, (batch,))

        def choose(full: Array, null: Array) -> Array:
            return jnp.where(left_out.reshape(-1, *(1,) * (full.ndim - 1)), null.astype(full.dtype), full)

        return jax.tree.map(choose, cond.cond, cond.null_cond)
    labels = _mixtures(model, cond, "label_dropout")
    left_out = jax.random.bernoulli(key, share, (len(labels), 1))
    return jnp.where(left_out, no_label(labels.shape[1]), labels)


def drawn_scales(key: Key, ends: tuple[float, ...], batch: int) -> Array:
    """Draw one guidance scale for each example, uniformly, f32[B]."""
    return jax.random.uniform(key, (batch,), jnp.float32, *ends)


def guided(teacher: Any, cond: Cond, scale: float | Array) -> tuple[tuple[Any, Any], Cond]:
    """Guide a teacher (model, config) by a scale, and convert the condition for it. A scale of 1 changes neither.

    Args:
      teacher: the pair.
      cond: labels, or a condition with the empty one beside it.
      scale: of all, or f32[B], one for each example.
    """
    if isinstance(scale, float | int) and scale == 1.0:
        return teacher, told(cond)
    model, config = teacher
    if isinstance(cond, WithNull):
        return (classifier_free(model, scale, cond.null_cond), config), cond.cond
    labels = _mixtures(model, cond, "guidance_scale")
    return (classifier_free(model, scale, no_label(labels.shape[1])), config), labels


def check_one_scale(scale: float, ends: tuple[float, ...]) -> None:
    """Raise ValueError where both a scale and a range of scales are given."""
    if ends and scale != 1.0:
        raise ValueError(f"guidance_scale must be 1 where guidance_range draws one for each example, got {scale}.")


def guided_as_drawn(
    teacher: Any, cond: Cond, key: Key, scale: float, ends: tuple[float, ...], batch: int
) -> tuple[Any, Cond, Array | None, Key]:
    """Guide a teacher by a scale, or by one drawn for each example.

    Returns:
      The guided teacher, what it and the student are told, the scales that were drawn or None, and a key that is left.
    """
    if not ends:
        return *guided(teacher, cond, scale), None, key
    key, scale_key = jax.random.split(key)
    scales = drawn_scales(scale_key, ends, batch)
    return *guided(teacher, cond, scales), scales, key


def _mixtures(model: Any, cond: Cond, name: str) -> Array:
    classes = getattr(getattr(getattr(model, "module", None), "config", None), "num_class_embeds", None)
    if classes is None or cond is None:
        raise ValueError(
            f"{name} needs labels, and a cmjax.models.UNet with num_class_embeds; or texts with the empty one beside "
            "each (cmjax.guidance.WithNull); leave it out."
        )
    return jax.nn.one_hot(cond, classes, dtype=jnp.float32)
