"""Networks that are told two times: the one that x is at, and the one where a step lands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from cmjax._struct import Struct
from cmjax.models.network import Network, from_nnx
from cmjax.models.unet2d import UNet
from cmjax.types import Array, Cond

__all__ = ["ToldLength", "told_length", "with_target"]


def with_target(network: Network, *, seed: int = 0) -> Network:
    """Give a UNet an embedding of where a step lands; at first it adds 0, so that the network computes what it did.

    A consistency trajectory model begins as such a copy of its teacher.

    Args:
      network: `models.from_nnx` of a `UNet`, such as `cmjax.load` returns.
      seed: of the new embedding's first layer.

    Returns:
      The network, which takes `s=`; its weights are the same arrays. One that takes it already is returned as it is.

    Raises:
      TypeError: network is not of a `UNet`.

    Example:
      >>> import cmjax
      >>> config = cmjax.models.UNetConfig(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
      ...                                  down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
      >>> net = with_target(from_nnx(UNet(config, rngs=nnx.Rngs(0))))
      >>> net(jnp.ones((2, 8, 8, 1)), jnp.float32(500.0), s=jnp.float32(250.0)).shape
      (2, 8, 8, 1)

    References:
      Kim et al. 2023, section 5.1.
    """
    module = getattr(network, "module", None)
    if not isinstance(module, UNet):
        raise TypeError(f"network must be models.from_nnx of a UNet, got {network!r:.60}.")
    if module.config.target_embed_type is not None:
        return network
    config = dataclasses.replace(module.config, target_embed_type="timestep")
    told = from_nnx(UNet(config, rngs=nnx.Rngs(seed), dtype=module.dtype))
    return told.replace(network.leaves())


class ToldLength(Struct):
    """A network that is told how far a step goes; see `told_length`."""

    model: Callable[..., Array]

    def __call__(self, x: Array, t: Array, cond: Cond = None, *, s: Array, **options: Any) -> Array:
        """Call it with d = t - s, f[] or f[B]."""
        return self.model(x, t, cond, d=jnp.asarray(t) - s, **options)


def told_length(model: Any) -> ToldLength:
    """Present a network that is told a step's length, `model(x, t, cond, d=...)`, as one that is told where it lands.

    Args:
      model: a callable pytree.

    Returns:
      A model `model(x, t, cond, s=...)`, which calls the network with d = t - s, in the units of t. A pytree: its
      leaves are the network's.

    Example:
      >>> net = told_length(lambda x, t, cond, d: d * x)
      >>> net(jnp.ones((1, 2)), jnp.float32(1000.0), s=jnp.float32(750.0))
      Array([[250., 250.]], dtype=float32)

    References:
      Frans et al. 2025 (shortcut models), section 3.
    """
    return ToldLength(model)
