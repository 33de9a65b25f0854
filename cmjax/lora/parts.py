"""The networks of a model that a LoRA can change, by the names that files give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from cmjax.models import Network
from cmjax.models.families import family_of

__all__ = ["Model", "Target", "networks", "with_networks"]


@runtime_checkable
class Model(Protocol):
    """A model of several networks, such as a `TextToImage`."""

    @property
    def networks(self) -> dict[str, Network]:
        """The networks by the names of their folders."""
        ...

    def with_networks(self, networks: Mapping[str, Network]) -> Self:
        """Give a copy with other networks."""
        ...


Target = TypeVar("Target", bound=Any)  # a Network, or a Model


def networks(target: Network | Model) -> dict[str, Network]:
    """The networks of a model, by the names of their parts.

    Raises:
      TypeError: target is neither a model nor a network of a known family.
    """
    if isinstance(target, Network):
        return {family_of(target.config).folder: target}
    if not isinstance(target, Model):
        raise TypeError(
            "target must be a TextToImage, as cmjax.text_to_image.load returns it, or one of its networks, got a "
            f"{type(target).__name__}."
        )
    return target.networks


def with_networks(target: Target, changed: Mapping[str, Network]) -> Target:
    """The model with other networks in the place of some."""
    if isinstance(target, Network):
        return next(iter(changed.values()), target)  # pyright: ignore[reportReturnType]
    return target.with_networks(changed)
