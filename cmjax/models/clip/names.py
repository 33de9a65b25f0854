"""What files of this family call things. The rule that gives all other weights their names is in `cmjax.io.weights`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CLASSES",
    "FOLDER",
    "STEM",
    "VISION_CLASSES",
    "VISION_FOLDER",
    "VISION_PROJECTION",
    "WHOLE",
    "WITH_PROJECTION",
    "current",
    "current_vision",
    "has_projection",
]

FOLDER = "text_encoder"  # of a pipeline's folder
STEM = "model"  # of its weights' files
WITH_PROJECTION = "CLIPTextModelWithProjection"
WHOLE = "CLIPModel"  # has both encoders, with their projections
CLASSES = ("CLIPTextModel", WITH_PROJECTION, WHOLE)

VISION_FOLDER = "image_encoder"
VISION_CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
VISION_PROJECTION = "visual_projection.weight"

_BARE = ("embeddings.", "encoder.", "final_layer_norm.")
_PICTURES = ("vision_model.", "visual_projection.")
_BARE_VISION = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_TEXTS = ("text_model.", "text_projection.")


def current(name: str) -> str | None:
    """Map a tensor's name in a file, old or new, to its name today; to None for a tensor that is not a weight.

    Files of transformers from 5.6 on lack the prefix "text_model.", unless they have a projection. cmjax writes it,
    since every version reads it. Files of a whole CLIP hold an encoder of pictures too.

    Example:
      >>> current("final_layer_norm.weight"), current("text_model.final_layer_norm.weight")
      ('text_model.final_layer_norm.weight', 'text_model.final_layer_norm.weight')
    """
    if name.endswith("position_ids") or name == "logit_scale" or name.startswith(_PICTURES):
        return None
    return f"text_model.{name}" if name.startswith(_BARE) else name


def has_projection(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names holds the projection of the pooled output."""
    return "text_projection.weight" in names


def current_vision(name: str) -> str | None:
    """Map a tensor's name in a file of an encoder of pictures to its name today; to None for what belongs elsewhere.

    Example:
      >>> current_vision("post_layernorm.weight"), current_vision("text_model.final_layer_norm.weight")
      ('vision_model.post_layernorm.weight', None)
    """
    if name.endswith("position_ids") or name == "logit_scale" or name.startswith(_TEXTS):
        return None
    return f"vision_model.{name}" if name.startswith(_BARE_VISION) else name
