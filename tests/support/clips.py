"""Tiny folders of a whole CLIP with random weights, as transformers writes them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from texts import tokenizer

from cmjax.io.configs import write_json
from cmjax.io.safetensors_files import write_safetensors
from cmjax.io.weights import file_tensors
from cmjax.models.clip import Preprocessing, TextConfig, TextEncoder, VisionConfig, VisionEncoder

__all__ = ["clip_folder"]

_SIZE = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}


@functools.cache
def _tensors() -> tuple[Any, Any, dict[str, np.ndarray]]:
    ends = len(tokenizer()) - 2, len(tokenizer()) - 1
    projected: dict[str, Any] = {**_SIZE, "projection_dim": 6, "projection": True}
    words = {"vocab_size": len(tokenizer()), "bos_token_id": ends[0], "eos_token_id": ends[1]}
    texts = TextConfig(**projected, **words, max_position_embeddings=10)  # pyright: ignore[reportArgumentType]
    pictures = VisionConfig(**projected, image_size=8, patch_size=4)
    rng, found = np.random.default_rng(0), {"logit_scale": np.array(2.6, np.float32)}
    for network, config in ((TextEncoder, texts), (VisionEncoder, pictures)):
        module = nnx.eval_shape(lambda network=network, config=config: network(config, rngs=nnx.Rngs(0)))
        empty = file_tensors(jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), module))
        found |= {name: rng.normal(size=value.shape).astype(np.float32) for name, value in empty.items()}
    return texts, pictures, found


def clip_folder(folder: Path, **content: Any) -> Path:
    """Write one; `content` replaces keys of its config.json."""
    texts, pictures, tensors = _tensors()
    folder.mkdir()
    said = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 6}
    said |= {"text_config": texts.to_dict(), "vision_config": pictures.to_dict(), **content}
    write_json(said, folder / "config.json")
    write_json(Preprocessing(size=8, crop=8).to_dict(), folder / "preprocessor_config.json")
    write_safetensors(tensors, folder / "model.safetensors")
    tokenizer().write(folder)
    return folder
