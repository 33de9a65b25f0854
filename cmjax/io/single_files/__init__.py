"""Checkpoints in one file without a config: the config is inferred from the shapes, and names are mapped."""

from cmjax.io.single_files.consistency_models import load_original, read_original
from cmjax.io.single_files.published import PUBLISHED, Published, published

__all__ = ["PUBLISHED", "Published", "load_original", "published", "read_original"]
