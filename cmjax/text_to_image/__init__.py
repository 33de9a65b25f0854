"""Texts to pictures."""

from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
