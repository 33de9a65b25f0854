"""LoRAs: how the kernels of a network change, written with few numbers, and layers that compute with them."""

from cmjax.models.lora.adapted import Factor, attach, attached, detach, kernels
from cmjax.models.lora.factors import Factors, Hadamard, Kronecker, Product

__all__ = ["Factor", "Factors", "Hadamard", "Kronecker", "Product", "attach", "attached", "detach", "kernels"]
