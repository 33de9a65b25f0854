"""Checkpoints that are one file, without a config: what the shapes of their tensors say, and their names here."""

from cmjax.io.single_files.consistency_models import load_original, read_original
from cmjax.io.single_files.published import PUBLISHED, Published, published

__all__ = ["PUBLISHED", "Published", "load_original", "published", "read_original"]
