"""Guidance in training: teachers trained with label dropout, and students of guided teachers.

A network of K classes accepts mixtures of classes, f32[B, K]. The even mixture of all classes means no label. A
network thus needs no extra class, and any teacher trained in this way can be guided: `classifier_free(model, w,
no_label(K))`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cmjax.guidance import classifier_free
from cmjax.types import Array, Cond, Key

__all__ = ["guided", "no_label", "some_left_out"]


def no_label(num_classes: int) -> Array:
    """The mixture that means no label, f32[K]."""
    return jnp.full((num_classes,), 1.0 / num_classes, jnp.float32)


def some_left_out(model: Any, cond: Cond, key: Key, share: float) -> Array:
    """Convert labels i32[B] to mixtures f32[B, K], and drop a share of them. Ho & Salimans 2022, algorithm 1."""
    labels = _mixtures(model, cond, "label_dropout")
    left_out = jax.random.bernoulli(key, share, (len(labels), 1))
    return jnp.where(left_out, no_label(labels.shape[1]), labels)


def guided(teacher: Any, cond: Cond, scale: float) -> tuple[tuple[Any, Any], Cond]:
    """Guide a teacher (model, config) by a scale, and convert the labels for it. A scale of 1 changes neither."""
    if scale == 1.0:
        return teacher, cond
    model, config = teacher
    labels = _mixtures(model, cond, "guidance_scale")
    return (classifier_free(model, scale, no_label(labels.shape[1])), config), labels


def _mixtures(model: Any, cond: Cond, name: str) -> Array:
    classes = getattr(getattr(getattr(model, "module", None), "config", None), "num_class_embeds", None)
    if classes is None or cond is None:
        raise ValueError(f"{name} needs labels, and a cmjax.models.UNet with num_class_embeds; leave it out.")
    return jax.nn.one_hot(cond, classes, dtype=jnp.float32)
