"""Texts to pictures."""

from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype
from cmjax.text_to_image.tokenizer import Tokenizer
from cmjax.text_to_image.windows import Tokens, apply_weights, tokenize_windows

__all__ = ["LatentCoder", "Tokenizer", "Tokens", "apply_weights", "compute_dtype", "tokenize_windows"]
