"""What files of this family call things."""

from __future__ import annotations

__all__ = ["FOLDER", "STEM", "current"]

FOLDER = "text_encoder"  # of a pipeline's folder
STEM = "model"  # of its weights' files


def current(name: str) -> str | None:
    """Map a tensor's name in a file, old or new, to its name today; to None for a tensor that is not a weight.

    Example:
      >>> current("text_model.final_layer_norm.weight")
      'final_layer_norm.weight'
    """
    return None if name.endswith("position_ids") else name.removeprefix("text_model.")
