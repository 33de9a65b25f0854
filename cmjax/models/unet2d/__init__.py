"""The family of diffusers' `UNet2DModel`."""

from cmjax.models.unet2d import names
from cmjax.models.unet2d.config import UNetConfig
from cmjax.models.unet2d.network import UNet

__all__ = ["UNet", "UNetConfig", "names"]
