"""Tiny text-to-image models with random weights: one like Stable Diffusion 1, one like XL, and others by options."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

import cmjax
from cmjax.models import from_nnx
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.clip import TextConfig, TextEncoder
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig
from cmjax.text_to_image import LatentCoder, TextToImage, Tokenizer

__all__ = ["PROMPTS", "text_model", "tokenizer"]

PROMPTS = ["red fox", "blue fox blue", "a"]
WIDTH, LENGTH = 8, 10


@functools.cache
def tokenizer(pad_token: str = "<|endoftext|>") -> Tokenizer:
    """A tokenizer of single letters."""
    letters = [*"!abcdefghijklmnopqrstuvwxyz"]
    vocab = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    merges = [("r", "e"), ("re", "d</w>"), ("f", "o"), ("fo", "x</w>"), ("b", "l"), ("u", "e</w>"), ("bl", "ue</w>")]
    whole = [a + b for a, b in merges]
    vocab[-2:-2] = whole
    return Tokenizer(vocab, merges, pad_token=pad_token, max_length=LENGTH)


def _shaken(module: nnx.Module, seed: int) -> Any:
    """The network with every weight moved, since a new one returns zeros."""
    rng = np.random.default_rng(seed)
    shake = lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(shake, from_nnx(module))


def _encoder(seed: int, *, projection: bool) -> Any:
    words = len(tokenizer())
    config = TextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        projection_dim=WIDTH,
        projection=projection,
    )
    return _shaken(TextEncoder(config, rngs=nnx.Rngs(seed)), seed)


@functools.cache
def text_model(*, xl: bool = False, **options: Any) -> TextToImage:
    """Make a model.

    Args:
      xl: whether it has two text encoders, pooled text and sizes.
      **options: of the network's config.
    """
    unet = UNetConditionConfig(
        **{
            "sample_size": 4,
            "block_out_channels": (8,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
            "mid_block_type": None,
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 2 * WIDTH if xl else WIDTH,
        }
        | (_XL if xl else {})
        | options
    )
    autoencoder = AutoencoderConfig(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    return TextToImage(
        unet=_shaken(UNetCondition(unet, rngs=nnx.Rngs(0)), 0),
        text_encoders=tuple(_encoder(i + 1, projection=i == 1) for i in range(2 if xl else 1)),
        autoencoder=LatentCoder(_shaken(Autoencoder(autoencoder, rngs=nnx.Rngs(3)), 3)),
        tokenizers=(tokenizer(), tokenizer("!"))[: 2 if xl else 1],
        config=cmjax.tcd.TCDConfig(clip_sample=False),
        pipeline="StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        zeros_for_empty=xl,
    )


_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
}
