"""The scales that go with LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax._numerics import as_array, f32, is_traced
from cmjax.lora._checks import refuse_no_lora
from cmjax.models.lora import LoRA
from cmjax.types import Array

__all__ = ["pairs"]


def pairs(lora: LoRA | Sequence[LoRA], scale: ArrayLike | Sequence[ArrayLike]) -> list[tuple[LoRA, Array]]:
    """Pair LoRAs with their scales.

    Raises:
      ValueError: there is not one scale for each, or a scale is no finite number.
      TypeError: lora is neither a LoRA nor a list, or a scale is no number.
    """
    if isinstance(lora, LoRA):
        return [(lora, _scale(scale))]
    if not isinstance(lora, list | tuple):
        refuse_no_lora(lora, " or a list of them")
    loras = list(lora)
    scales: list[Any] = list(scale) if isinstance(scale, list | tuple) else [scale] * len(loras)
    if len(scales) != len(loras):
        raise ValueError(f"scale must be one number, or one for each of {len(loras)} LoRAs, got {len(scales)}.")
    for one in loras:
        refuse_no_lora(one)
    return [(one, _scale(value)) for one, value in zip(loras, scales, strict=True)]


def _scale(value: Any) -> Array:
    array = as_array("scale", value, "a number, or one for each image")
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"scale must be a number, or one for each image, got {array.dtype}.")
    if array.ndim > 1 or not array.size:
        raise ValueError(f"scale must be a number, or one for each image, f[B], got shape {array.shape}.")
    if not is_traced(array) and not np.isfinite(np.asarray(array, np.float32)).all():
        raise ValueError(f"scale must be finite, got {value}.")
    return f32(array)
