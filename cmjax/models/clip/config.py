"""The config.json of transformers' CLIP encoders, of texts and of pictures, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from cmjax._bounds import at_least, at_most, one_of, positive
from cmjax._typed import check_fields
from cmjax.models.clip import names as file_names

__all__ = ["TextConfig", "VisionConfig"]

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
      projection_dim: width of the projection.
      bos_token_id: the token that begins a text.
      eos_token_id: the token that ends a text, where the pooled output is read. 2, in old files, means the largest
        token of each text.
      pad_token_id: the token that fills the rest.
      projection: whether the pooled output is projected too. That is no key of a file, but what
        `CLIPTextModelWithProjection` has and `CLIPTextModel` has not.

    Raises:
      ValueError: a value is out of range, heads do not divide the width, or a projection has no width.

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
    projection_dim: Annotated[int | None, _POSITIVE, _MOST] = 512
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    pad_token_id: int | None = 1
    projection: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}."
            )
        if self.projection and not self.projection_dim:
            raise ValueError("projection_dim must be a positive integer where there is a projection, got None.")

    @property
    def class_name(self) -> str:
        """The class of transformers that this describes."""
        return file_names.WITH_PROJECTION if self.projection else file_names.CLASSES[0]

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> TextConfig:
        """Read the content of a transformers config.json.

        Keys that are no numbers of the network are skipped, and null means the default. `architectures` says whether
        there is a projection. Of a whole CLIP, whose file holds an encoder of pictures too, the text's part is read.

        Raises:
          ValueError: it is for a network of another kind, or a value is out of range.

        Example:
          >>> whole = {"model_type": "clip", "text_config": {"hidden_size": 64, "torch_dtype": None}}
          >>> TextConfig.from_dict(whole).hidden_size
          64
        """
        said = _part(d, "text", "the text encoder's config.json")
        values = {f.name: said[f.name] for f in dataclasses.fields(cls) if said.get(f.name) is not None}
        values["projection"] = file_names.WITH_PROJECTION in _architectures(d)
        for name in ("projection_dim", "bos_token_id", "pad_token_id"):
            if name in said and said[name] is None:
                values[name] = None
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a transformers config.json."""
        values = dataclasses.asdict(self)
        del values["projection"]
        return {"architectures": [self.class_name], "model_type": "clip_text_model", **values}

    def adapted(self, names: Iterable[str]) -> TextConfig:
        """Correct this by the names of a file's tensors: one that holds a projection has one, whatever its class."""
        return dataclasses.replace(self, projection=True) if file_names.has_projection(names) else self


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Describe a `VisionEncoder`; names and defaults are the keys of a transformers `CLIPVisionModel` config.json.

    Args:
      hidden_size: width of the encoder.
      intermediate_size: width inside of the feed-forward layers.
      num_hidden_layers: number of layers.
      num_attention_heads: heads of each attention; they divide hidden_size.
      num_channels: of the pictures.
      image_size: pixels a side of the pictures.
      patch_size: pixels a side of a patch, each of which is a token.
      hidden_act: "quick_gelu" or "gelu".
      layer_norm_eps: epsilon of the norms.
      projection_dim: width of the projection.
      projection: whether the pooled output is projected too. That is no key of a file, but what
        `CLIPVisionModelWithProjection` has and `CLIPVisionModel` has not.

    Raises:
      ValueError: a value is out of range, heads do not divide the width, or a patch is larger than a picture.

    Example:
      >>> VisionConfig.from_dict({"hidden_size": 64, "num_attention_heads": 4, "patch_size": 16}).patches
      196
    """

    hidden_size: Annotated[int, _POSITIVE, _MOST] = 768
    intermediate_size: Annotated[int, _POSITIVE, _MOST] = 3072
    num_hidden_layers: Annotated[int, _POSITIVE, at_most(256)] = 12
    num_attention_heads: Annotated[int, _POSITIVE, _MOST] = 12
    num_channels: Annotated[int, _POSITIVE, _MOST] = 3
    image_size: Annotated[int, _POSITIVE, _MOST] = 224
    patch_size: Annotated[int, _POSITIVE, _MOST] = 32
    hidden_act: Annotated[str, one_of("quick_gelu", "gelu")] = "quick_gelu"
    layer_norm_eps: Annotated[float, at_least(0, says="not be negative")] = 1e-5
    projection_dim: Annotated[int, _POSITIVE, _MOST] = 512
    projection: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}."
            )
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size = {self.patch_size} must be at most image_size = {self.image_size}.")

    @property
    def patches(self) -> int:
        """The number of patches; what is left of a picture at its right and bottom belongs to none."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def class_name(self) -> str:
        """The class of transformers that this describes."""
        return file_names.VISION_CLASSES[self.projection]

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> VisionConfig:
        """Read the content of a transformers config.json.

        Keys that are no numbers of the network are skipped, and null means the default. `architectures` says whether
        there is a projection. Of a whole CLIP, whose file holds an encoder of texts too, the pictures' part is read.

        Raises:
          ValueError: it is for a network of another kind, or a value is out of range.

        Example:
          >>> whole = {"model_type": "clip", "projection_dim": 8, "vision_config": {"patch_size": 16}}
          >>> VisionConfig.from_dict(whole).projection_dim
          8
        """
        said = _part(d, "vision", "the picture encoder's config.json")
        values = {f.name: said[f.name] for f in dataclasses.fields(cls) if said.get(f.name) is not None}
        for name in ("image_size", "patch_size"):
            if isinstance(sides := values.get(name), list) and len(sides) == 2 and sides[0] == sides[1]:
                values[name] = sides[0]
        values["projection"] = file_names.VISION_CLASSES[1] in _architectures(d)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Write the mapping of a transformers config.json."""
        values = dataclasses.asdict(self)
        del values["projection"]
        return {"architectures": [self.class_name], "model_type": "clip_vision_model", **values}

    def adapted(self, names: Iterable[str]) -> VisionConfig:
        """Correct this by the names of a file's tensors: one that holds a projection has one, whatever its class."""
        return dataclasses.replace(self, projection=True) if file_names.VISION_PROJECTION in names else self


def _part(d: Any, kind: str, what: str) -> dict[str, Any]:
    """Read what a config.json says of one encoder: all of it, or that part of a whole CLIP's."""
    if not isinstance(d, Mapping):
        raise ValueError(f"{what} must hold a JSON object, got a {type(d).__name__}.")
    own = f"clip_{kind}_model"
    if (model_type := d.get("model_type", own)) not in (own, "clip"):
        raise ValueError(f"{what} is for {model_type!r}; cmjax reads {own!r}.")
    name = f"{kind}_config"
    if not isinstance(d.get(name), Mapping):
        return dict(d)
    parts = [part for word in (name, f"{name}_dict") if isinstance(part := d.get(word), Mapping)]
    whole = {"projection_dim": d.get("projection_dim")}
    return {key: value for part in (whole, *parts, whole) for key, value in part.items() if value is not None}


def _architectures(d: Mapping[str, Any]) -> list[Any]:
    found = d.get("architectures")
    return found if isinstance(found, list) else []
