"""Models: the UNet, and wrappers that make a `ModelFn` of anything that computes."""

from cmjax.models.config import UNetConfig
from cmjax.models.embeddings import guidance_embedding
from cmjax.models.unet import UNet
from cmjax.models.vp import VPModel, vp_from_sigma
from cmjax.models.wrappers import Network, from_function, from_linen, from_nnx

__all__ = [
    "Network",
    "UNet",
    "UNetConfig",
    "VPModel",
    "from_function",
    "from_linen",
    "from_nnx",
    "guidance_embedding",
    "vp_from_sigma",
]
