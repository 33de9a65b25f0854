"""The family of diffusers' `AutoencoderTiny` (TAESD)."""

from cmjax.models.autoencoder_tiny import names
from cmjax.models.autoencoder_tiny.config import AutoencoderTinyConfig
from cmjax.models.autoencoder_tiny.network import AutoencoderTiny

__all__ = ["AutoencoderTiny", "AutoencoderTinyConfig", "names"]
