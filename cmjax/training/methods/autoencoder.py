"""Training of autoencoders, between whose latents and noise a text-to-image model works."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cmjax import losses
from cmjax._bounds import at_least
from cmjax.training.methods.base import Learner, Method

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["Autoencoding"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoding(Method):
    """An autoencoder, from images alone. Rombach et al. 2022.

    The model is `models.from_nnx` of an autoencoder, a module with `encode` and `decode`. It has no noise levels: its
    config is None.

    Attributes:
      kl: the weight of the divergence of the latents from a standard normal distribution.
      edges: the weight of the differences of neighbouring pixels.
    """

    config_type: ClassVar[type] = type(None)

    kl: Annotated[float, at_least(0)] = 1e-6
    edges: Annotated[float, at_least(0)] = 1.0

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.autoencoding`."""
        module: Any = getattr(learner.model, "module", None)
        if not (hasattr(module, "encode") and hasattr(module, "decode")):
            got = type(learner.model if module is None else module).__name__
            raise ValueError(
                f"model must be an autoencoder, such as cmjax.models.from_nnx(Autoencoder(...)), got a {got}."
            )
        return losses.autoencoding(module.encode, module.decode, x0, key, kl=self.kl, edges=self.edges)
