"""Add a LoRA to the weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import ArrayLike

from cmjax._numerics import f32
from cmjax.lora.parts import Target, networks, with_networks
from cmjax.lora.resolve import resolve
from cmjax.lora.scales import pairs
from cmjax.models import Network
from cmjax.models.lora import Factors, LoRA
from cmjax.types import Array

__all__ = ["merge"]


def merge(
    target: Target,
    lora: LoRA | Sequence[LoRA],
    scale: ArrayLike | Sequence[ArrayLike] = 1.0,
    *,
    donate: bool = False,
) -> Target:
    """Add a LoRA to the weights of a model: W + scale D, computed in float32 and rounded to the dtype of W once.

    It costs nothing later. To undo it, keep the model that it began with.

    Args:
      target: a text-to-image model, or one of its networks.
      lora: from `read`; or several, which are added together.
      scale: f[]; or a list of them, one for each of several.
      donate: whether the old weights are given up as they are changed, so that no second copy is needed: target must
        not be used afterwards.

    Returns:
      The model with other weights.

    Raises:
      ValueError: the LoRA does not fit (`resolve`), or scale is not finite, or an array of several numbers.
      TypeError: target is no model, lora is none, scale is no number, or the weights are abstract.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> pipe = cmjax.lora.merge(pipe, cmjax.lora.read("emoji-ink"), 0.5)

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1.
    """
    resolved = [(resolve(one, target), value) for one, value in pairs(lora, scale)]
    for _, value in resolved:
        if value.ndim:
            raise ValueError(
                f"scale must be one number for all images, got shape {value.shape}: attach takes one for each image; "
                "of several LoRAs, give a list of numbers."
            )
    changed = {}
    for part, network in networks(target).items():
        network.refuse_abstract()
        changes = _of_part(part, resolved)
        if changes:
            changed[part] = _merged(network, changes, donate)
    return with_networks(target, changed)


_Changes = dict[str, tuple[tuple[Factors, Array], ...]]


def _of_part(part: str, loras: Sequence[tuple[LoRA, Array]]) -> _Changes:
    """What changes each module of a part."""
    changes: _Changes = {}
    for lora, scale in loras:
        for name, factors in lora.of(part).items():
            changes[name] = (*changes.get(name, ()), (factors, scale))
    return changes


def _merged(network: Network, changes: _Changes, donate: bool) -> Network:
    add, leaves = _added_in_place if donate else _added, network.leaves()
    return network.replace({f"{name}.kernel": add(leaves[f"{name}.kernel"], one) for name, one in changes.items()})


def _add(kernel: Array, changes: tuple[tuple[Factors, Array], ...]) -> Array:
    total: Any = f32(kernel)
    for factors, scale in changes:
        total = total + scale * factors.delta(kernel)
    return total.astype(kernel.dtype)


_added = jax.jit(_add)
_added_in_place = jax.jit(_add, donate_argnums=0)
