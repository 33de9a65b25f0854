"""LoRAs of every published form: read, merge into a model's weights, attach beside them, write, extract.

pipe = cmjax.text_to_image.load("stabilityai/stable-diffusion-xl-base-1.0")
pipe = cmjax.lora.merge(pipe, cmjax.lora.read("h1t/TCD-SDXL-LoRA"))
"""

from cmjax.lora.attach import attach, attached, detach
from cmjax.lora.extract import extract
from cmjax.lora.files import read, write
from cmjax.lora.merge import merge
from cmjax.lora.new import TARGETS, new
from cmjax.lora.published import PUBLISHED, Published, published
from cmjax.lora.recommended import recommend, recommended
from cmjax.lora.resolve import base_of, resolve
from cmjax.models.lora import Factors, Hadamard, Kronecker, LoRA, Product

__all__ = [
    "PUBLISHED",
    "TARGETS",
    "Factors",
    "Hadamard",
    "Kronecker",
    "LoRA",
    "Product",
    "Published",
    "attach",
    "attached",
    "base_of",
    "detach",
    "extract",
    "merge",
    "new",
    "published",
    "read",
    "recommend",
    "recommended",
    "resolve",
    "write",
]
