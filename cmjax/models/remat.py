"""Less memory for a gradient: what blocks compute is not kept, but computed again."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from flax import nnx

from cmjax.models.layers import Block
from cmjax.models.network import Network, rebuilt

__all__ = ["remat"]

ModelT = TypeVar("ModelT")


def remat(model: ModelT) -> ModelT:
    """Let gradients compute the blocks of a network again, rather than keep all that they computed.

    Between the two passes a gradient then holds what goes into each residual block, attention and transformer block,
    and of all else what one block needs. It takes another forward pass of the network that is trained. Values and
    gradients are the same, and so are forward derivatives.

    Args:
      model: a network, or any pytree of some.

    Returns:
      The model with the same arrays.

    Raises:
      ValueError: no network in it has such blocks.

    Example:
      >>> import cmjax
      >>> network, _ = cmjax.load("fashion-mnist-cm", abstract=True)
      >>> remat(network)
      Network(UNet, 1,618,897 parameters)

    References:
      Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    found = 0

    def turned(part: Any) -> Any:
        nonlocal found
        module = part.module if isinstance(part, Network) else None
        if not isinstance(part, Network) or not isinstance(module, nnx.Module):
            return part
        blocks = [one for _, one in nnx.iter_modules(module) if isinstance(one, Block)]
        for block in blocks:
            block.remat = True
        found += len(blocks)
        return rebuilt(part, module)

    model = jax.tree.map(turned, model, is_leaf=lambda node: isinstance(node, Network))
    if not found:
        raise ValueError(
            "remat needs a network with blocks that can be computed again, such as models.UNet, and found none: wrap "
            "the blocks of your own module in nnx.remat or nn.remat, and leave it out."
        )
    return model
