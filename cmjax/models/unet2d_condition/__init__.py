"""The family of diffusers' `UNet2DConditionModel`."""

from cmjax.models.unet2d_condition import names
from cmjax.models.unet2d_condition.config import UNetConditionConfig
from cmjax.models.unet2d_condition.network import UNetCondition

__all__ = ["UNetCondition", "UNetConditionConfig", "names"]
