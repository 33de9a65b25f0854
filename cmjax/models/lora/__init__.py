"""LoRAs: how the kernels of a network change, written with few numbers, and layers that compute with them."""

from cmjax.models.lora.adapted import Factor, attach, attached, detach, kernels, pixel_layers
from cmjax.models.lora.factors import Factors, Hadamard, Kronecker, Product
from cmjax.models.lora.lora import LoRA

__all__ = [
    "Factor",
    "Factors",
    "Hadamard",
    "Kronecker",
    "LoRA",
    "Product",
    "attach",
    "attached",
    "detach",
    "kernels",
    "pixel_layers",
]
