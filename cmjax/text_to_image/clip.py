"""A whole CLIP: texts and pictures as unit vectors of one space, which are near each other where they fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cmjax._struct import Struct, static
from cmjax.io.assembly import assemble, check_dtype
from cmjax.io.configs import read_json
from cmjax.io.locate import resolve
from cmjax.io.pieces import of_variant, read_weights
from cmjax.io.torch_files.reader import read_pt
from cmjax.models import Network
from cmjax.models.clip import Preprocessing, TextConfig, VisionConfig, names
from cmjax.text_to_image.clip_vocabulary import REMEDY, installed_vocabulary, read_vocabulary
from cmjax.text_to_image.tokenizer import Tokenizer
from cmjax.types import Array

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["Clip", "load_clip"]

_OLD = "pytorch_model.bin"
_FILES = ("*.json", "merges.txt")


class Clip(Struct):
    """CLIP's two encoders, as `load_clip` reads them; their weights are leaves, so it crosses `jit` as an argument.

    Attributes:
      texts: the encoder of texts, with its projection.
      pictures: the encoder of pictures, with its projection.
      tokenizer: of the texts.
      preprocessing: of the pictures.
    """

    texts: Network
    pictures: Network
    tokenizer: Tokenizer = static()
    preprocessing: Preprocessing = static()

    @property
    def features(self) -> int:
        """The length of the vectors."""
        return self.pictures.config.projection_dim

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Turn texts into tokens, i32[B, L]; a longer text is cut, and a warning says which words fell off."""
        return self.tokenizer(prompts)

    def embed_texts(self, tokens: Array) -> Array:
        """Embed texts.

        Args:
          tokens: i32[B, L], from `tokenize`.

        Returns:
          f32[B, features], of length 1.
        """
        return _unit(self.texts.module(tokens).projected)

    def embed_images(self, images: Array) -> Array:
        """Embed pictures.

        Args:
          images: f[B, H, W, 3] in [-1, 1], of any size; they are preprocessed here.

        Returns:
          f32[B, features], of length 1.
        """
        return _unit(self.pictures.module(self.preprocessing(images)).projected)


def load_clip(
    path_or_name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
    variant: str | None = None,
    abstract: bool = False,
) -> Clip:
    """Load a whole CLIP, such as "openai/clip-vit-base-patch32" or "laion/CLIP-ViT-H-14-laion2B-s32B-b79K".

    Args:
      path_or_name: a folder or hub id, as transformers' `CLIPModel` has it: config.json, the weights
        (model.safetensors, in pieces, or pytorch_model.bin, of which nothing is executed), the tokenizer's files, and
        preprocessor_config.json. Without the last, pictures are prepared as for OpenAI's models.
      dtype: the dtype that the encoders compute in.
      param_dtype: the dtype that their matrices are stored in; vectors stay float32.
      revision: a branch, tag or commit of the hub's repository.
      variant: which weights to read, such as "fp16".
      abstract: check the files, but read no weights: each is a `jax.ShapeDtypeStruct`.

    Raises:
      FileNotFoundError: there is no such folder, or a file is missing.
      TypeError: dtype or param_dtype is not a float dtype.
      ValueError: a file is damaged, or it is no whole CLIP, or its parts do not fit each other.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.3.
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        check_dtype(name, value)
    weights = [f"{of_variant(names.STEM, variant)}{end}" for end in (".safetensors", "-*.safetensors")]
    folder = resolve(path_or_name, revision=revision, variant=variant, files=(*_FILES, *weights))
    if not folder.is_dir() or not (folder / "config.json").is_file():
        what = "is a file" if folder.is_file() else "has no config.json"
        raise FileNotFoundError(f"{folder} {what}: {_WANTED}")
    content = read_json(folder / "config.json")
    texts, pictures = _configs(content, folder)
    tokenizer, preprocessing = _tokenizer(folder, texts), _preprocessing(folder, pictures)
    if not any(folder.glob(f"{names.STEM}*.safetensors")) and not (folder / _OLD).is_file():
        folder = resolve(path_or_name, revision=revision, files=(*_FILES, _OLD))  # of a repository without safetensors
    tensors = _tensors(folder, variant)
    for kind, start in (("texts", "text_model."), ("pictures", "vision_model.")):
        if not any(name.startswith(start) for name in tensors):
            raise ValueError(f"{folder} has no weights of an encoder of {kind}: {_WANTED}")
    options: Any = {"dtype": dtype, "param_dtype": param_dtype, "abstract": abstract}
    encoders = (assemble(config, tensors, **options) for config in (texts, pictures))
    return Clip(*encoders, tokenizer=tokenizer, preprocessing=preprocessing)


_WANTED = (
    "give the folder or hub id of a whole CLIP, with encoders of texts and of pictures, such as "
    "openai/clip-vit-base-patch32."
)


def _configs(content: Any, folder: Path) -> tuple[TextConfig, VisionConfig]:
    """Read both configs of a whole CLIP, with their projections."""
    said = content.get("architectures") if isinstance(content, Mapping) else None
    parts = ("text_config", "vision_config")
    if not isinstance(content, Mapping) or not any(isinstance(content.get(part), Mapping) for part in parts):
        kind = said[0] if isinstance(said, list) and said else "no class"
        raise ValueError(f"{folder / 'config.json'} is for {kind}, half a CLIP or none: {_WANTED}")
    # A part that is all defaults may be missing.
    whole = {**{part: {} for part in parts}, **{key: value for key, value in content.items() if value is not None}}
    try:
        texts, pictures = TextConfig.from_dict(whole), VisionConfig.from_dict(whole)
        texts, pictures = dataclasses.replace(texts, projection=True), dataclasses.replace(pictures, projection=True)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if texts.projection_dim != pictures.projection_dim:
        raise ValueError(
            f"{folder / 'config.json'} must project texts and pictures to one width, got {texts.projection_dim} and "
            f"{pictures.projection_dim}."
        )
    return texts, pictures


def _tokenizer(folder: Path, config: TextConfig) -> Tokenizer:
    if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        tokenizer = Tokenizer.read(folder)
    elif (file := installed_vocabulary()) is not None:
        tokenizer = read_vocabulary(file)
    else:
        raise FileNotFoundError(f"{folder} has no vocab.json: copy the tokenizer's files there, or {_INSTALL}")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, but the encoder of texts only {config.vocab_size}: "
            "take the tokenizer's files from where the weights came from."
        )
    return dataclasses.replace(tokenizer, max_length=min(tokenizer.max_length, config.max_position_embeddings))


_INSTALL = REMEDY.partition(", or ")[2]


def _preprocessing(folder: Path, config: VisionConfig) -> Preprocessing:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return Preprocessing(size=config.image_size, crop=config.image_size)
    try:
        found = Preprocessing.from_dict(read_json(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if found.crop != config.image_size:
        raise ValueError(
            f"{file} cuts pictures to {found.crop} pixels, but the encoder sees {config.image_size}: one of the two "
            "files is of another model."
        )
    return found


def _tensors(folder: Path, variant: str | None) -> dict[str, np.ndarray]:
    safe = any(folder.glob(f"{names.STEM}*.safetensors"))
    if variant is None and not safe and (folder / _OLD).is_file():
        return read_pt(folder / _OLD)
    return read_weights(folder, variant, stem=names.STEM)


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
