"""Compute with a LoRA beside the frozen weights of a model."""

from __future__ import annotations

from collections.abc import Sequence

from jax.typing import ArrayLike

from cmjax.lora.parts import Model, Target, networks, with_networks
from cmjax.lora.resolve import resolve
from cmjax.lora.scales import pairs
from cmjax.models import Network
from cmjax.models import lora as layers
from cmjax.models.lora import LoRA
from cmjax.types import Array

__all__ = ["attach", "attached", "detach"]


def attach(target: Target, lora: LoRA | Sequence[LoRA], scale: ArrayLike | Sequence[ArrayLike] = 1.0) -> Target:
    """Give a model a LoRA beside its frozen weights; factors and scale are leaves, to sweep, trace and train.

    The function is that of `merge`. Another scale, or other factors of the same shapes, compile nothing anew.

    Args:
      target: a text-to-image model, or one of its networks. It may have LoRAs already.
      lora: from `read`; or several.
      scale: f[], or f[B] for one an image; or a list of these, one for each of several LoRAs. 0 is the model itself.

    Returns:
      The model. Of each changed network the factors alone are what training changes (`cmjax.models.partition`); its
      weights are the same arrays as before.

    Raises:
      ValueError: the LoRA does not fit (`resolve`), or a scale is not finite, or has more than one axis.
      TypeError: target is no model, lora is none, or a scale is no number.

    Example:
      >>> import cmjax, jax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> attach(pipe, cmjax.lora.read("emoji-ink"), jax.numpy.array([0.0, 0.5, 1.0])).unet
      Network(UNetCondition, 153,632 parameters)
    """
    for one, value in pairs(lora, scale):
        resolved, changed = resolve(one, target), {}
        for part, network in networks(target).items():
            if chosen := resolved.of(part):
                changed[part] = layers.attach(network, chosen, value)
        target = with_networks(target, changed)
    return target


def attached(target: Network | Model) -> list[tuple[LoRA, Array]]:
    """The LoRAs that a model has, first to last, with their scales: to `write` one after training.

    Args:
      target: from `attach`, or a model without LoRAs.

    Returns:
      Pairs of a LoRA and its scale, f[] or f[B].

    Raises:
      TypeError: target is no model.
    """
    found: list[tuple[dict, Array]] = []
    for part, network in networks(target).items():
        for i, modules in enumerate(layers.attached(network)):
            if i == len(found):
                found.append(({}, next(iter(modules.values()))[1]))
            found[i][0].update({f"{part}.{name}": factors for name, (factors, _) in modules.items()})
    return [(LoRA(dict(sorted(factors.items()))), scale) for factors, scale in found]


def detach(target: Target) -> Target:
    """Take all LoRAs off a model: what is left is the one that `attach` began with.

    Raises:
      TypeError: target is no model.
    """
    return with_networks(target, {part: layers.detach(network) for part, network in networks(target).items()})
