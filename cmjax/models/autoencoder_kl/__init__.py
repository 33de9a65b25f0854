"""The family of diffusers' `AutoencoderKL`."""

from cmjax.models.autoencoder_kl import names
from cmjax.models.autoencoder_kl.config import AutoencoderConfig
from cmjax.models.autoencoder_kl.network import Autoencoder

__all__ = ["Autoencoder", "AutoencoderConfig", "names"]
