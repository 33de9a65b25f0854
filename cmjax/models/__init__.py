"""Models: the UNet, and wrappers that make a `ModelFn` of anything that computes."""

import importlib
from typing import TYPE_CHECKING, Any

from cmjax.models.layers import guidance_embedding
from cmjax.models.network import Network, combine, from_function, from_linen, from_nnx, partition, train_only
from cmjax.models.remat import remat
from cmjax.models.tensor_sharding import tensor_sharding
from cmjax.models.two_times import told_length, with_target
from cmjax.models.unet2d import UNet, UNetConfig

if TYPE_CHECKING:
    from cmjax.vp_model import TrigFlowOfVP, VPModel, trigflow_of_vp, vp_from_sigma

__all__ = [
    "Network",
    "TrigFlowOfVP",
    "UNet",
    "UNetConfig",
    "VPModel",
    "combine",
    "from_function",
    "from_linen",
    "from_nnx",
    "guidance_embedding",
    "partition",
    "remat",
    "tensor_sharding",
    "train_only",
    "told_length",
    "trigflow_of_vp",
    "vp_from_sigma",
    "with_target",
]


def __getattr__(name: str) -> Any:
    """Look up what needs samplers too, so that models never import them."""
    if name in ("TrigFlowOfVP", "VPModel", "trigflow_of_vp", "vp_from_sigma"):
        return getattr(importlib.import_module("cmjax.vp_model"), name)
    raise AttributeError(f"module 'cmjax.models' has no attribute {name!r}")
