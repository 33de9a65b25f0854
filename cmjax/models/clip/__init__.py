"""The families of transformers' CLIP: encoders of texts and of pictures, with a projection or without."""

from cmjax.models.clip import names
from cmjax.models.clip.config import TextConfig, VisionConfig
from cmjax.models.clip.network import TextEncoder, TextOutput
from cmjax.models.clip.preprocessing import Preprocessing
from cmjax.models.clip.vision import VisionEncoder, VisionOutput

__all__ = [
    "Preprocessing",
    "TextConfig",
    "TextEncoder",
    "TextOutput",
    "VisionConfig",
    "VisionEncoder",
    "VisionOutput",
    "names",
]
