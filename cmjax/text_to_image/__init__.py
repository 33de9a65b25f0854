"""Texts to pictures."""

from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype
from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["LatentCoder", "Tokenizer", "compute_dtype"]
