"""The content of a transformers `CLIPTextModel` config.json as one frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from cmjax._bounds import at_least, at_most, one_of, positive
from cmjax._typed import check_fields

__all__ = ["TextConfig"]

_POSITIVE, _MOST, _MOST_ROWS = positive("be a positive integer"), at_most(1 << 16), at_most(1 << 24)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Describe a `TextEncoder`; names and defaults are the keys of a transformers `CLIPTextModel` config.json.

    Args:
      vocab_size: number of tokens.
      hidden_size: width of the encoder.
      intermediate_size: width inside of the feed-forward layers.
      num_hidden_layers: number of layers.
      num_attention_heads: heads of each attention; they divide hidden_size.
      max_position_embeddings: tokens of the longest text.
      hidden_act: "quick_gelu" or "gelu".
      layer_norm_eps: epsilon of the norms.
      projection_dim: width of the projection, which only other classes have.
      bos_token_id: the token that begins a text.
      eos_token_id: the token that ends a text, where the pooled output is read. 2, in old files, means the largest
        token of each text.
      pad_token_id: the token that fills the rest.

    Raises:
      ValueError: a value is out of range, or heads do not divide the width.

    Example:
      >>> TextConfig.from_dict({"hidden_size": 64, "num_attention_heads": 4, "attention_dropout": 0.0}).hidden_size
      64
    """

    vocab_size: Annotated[int, _POSITIVE, _MOST_ROWS] = 49408
    hidden_size: Annotated[int, _POSITIVE, _MOST] = 512
    intermediate_size: Annotated[int, _POSITIVE, _MOST] = 2048
    num_hidden_layers: Annotated[int, _POSITIVE, at_most(256)] = 12
    num_attention_heads: Annotated[int, _POSITIVE, _MOST] = 8
    max_position_embeddings: Annotated[int, _POSITIVE, _MOST] = 77
    hidden_act: Annotated[str, one_of("quick_gelu", "gelu")] = "quick_gelu"
    layer_norm_eps: Annotated[float, at_least(0, says="not be negative")] = 1e-5
    projection_dim: int | None = 512
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    pad_token_id: int | None = 1

    def __post_init__(self):
        check_fields(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}."
            )

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> TextConfig:
        """Read the content of a transformers config.json; keys that are no numbers of the network are skipped.

        Raises:
          ValueError: it is for a network of another kind, or a value is out of range.
        """
        kind = d.get("model_type", "clip_text_model")
        if kind != "clip_text_model":
            raise ValueError(f"the text encoder's config.json is for {kind!r}; cmjax reads 'clip_text_model'.")
        return cls(**{field.name: d[field.name] for field in dataclasses.fields(cls) if field.name in d})

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a transformers config.json."""
        return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **dataclasses.asdict(self)}
