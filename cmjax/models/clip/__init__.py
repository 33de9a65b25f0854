"""The family of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`."""

from cmjax.models.clip import names
from cmjax.models.clip.config import TextConfig
from cmjax.models.clip.network import TextEncoder, TextOutput

__all__ = ["TextConfig", "TextEncoder", "TextOutput", "names"]
