"""Text-to-image models in their published sizes, without weights or with random ones: for benchmarks and lowering.

"sd15" is Stable Diffusion 1.5, "sd21" is 2.1 for pictures of 768 pixels, "sdxl" is Stable Diffusion XL; "tiny" and
"tiny-xl" have the same parts, and compile in seconds.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import cmjax
from cmjax.models import from_nnx
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.clip import TextConfig, TextEncoder
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig
from cmjax.text_to_image import LatentCoder, TextCond, TextToImage, compute_dtype

__all__ = ["MODELS", "FullSize", "abstract", "given", "random"]


class FullSize(NamedTuple):
    """The configs of a model, and how many parameters its network has."""

    unet: UNetConditionConfig
    encoders: tuple[TextConfig, ...]
    autoencoder: AutoencoderConfig
    parameters: int | None = None


def _autoencoder(scaling_factor: float, channels: tuple[int, ...] = (128, 256, 512, 512), **more: Any) -> Any:
    levels = len(channels)
    return AutoencoderConfig(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=scaling_factor,
        **{"layers_per_block": 2} | more,
    )


def _encoder(width: int, layers: int, heads: int, act: str, *, projection: bool = False, words: int = 49408) -> Any:
    return TextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        hidden_act=act,
        eos_token_id=2,
        projection_dim=width,
        projection=projection,
    )


_XL = {"addition_embed_type": "text_time", "use_linear_projection": True}
_PLAIN, _CROSS, _PLAIN_UP, _CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
_TINY = {"sample_size": 8, "block_out_channels": (16, 16), "norm_num_groups": 8, "layers_per_block": 1}
_TINY_AUTOENCODER = {"channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}

MODELS = {
    "sd15": FullSize(
        UNetConditionConfig(sample_size=64, cross_attention_dim=768),
        (_encoder(768, 12, 12, "quick_gelu"),),
        _autoencoder(0.18215),
        859_520_964,
    ),
    "sd21": FullSize(
        UNetConditionConfig(
            sample_size=96,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        ),
        (_encoder(1024, 23, 16, "gelu"),),
        _autoencoder(0.18215),
        865_910_724,
    ),
    "sdxl": FullSize(
        UNetConditionConfig(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=(_PLAIN, _CROSS, _CROSS),
            up_block_types=(_CROSS_UP, _CROSS_UP, _PLAIN_UP),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            **_XL,
        ),
        (_encoder(768, 12, 12, "quick_gelu"), _encoder(1280, 32, 20, "gelu", projection=True)),
        _autoencoder(0.13025, force_upcast=True),
        2_567_463_684,
    ),
    "tiny": FullSize(
        UNetConditionConfig(
            down_block_types=(_CROSS, _PLAIN),
            up_block_types=(_PLAIN_UP, _CROSS_UP),
            attention_head_dim=2,
            cross_attention_dim=16,
            **_TINY,
        ),
        (_encoder(16, 2, 2, "quick_gelu", words=99),),
        _autoencoder(0.18215, **_TINY_AUTOENCODER),
    ),
    "tiny-xl": FullSize(
        UNetConditionConfig(
            down_block_types=(_PLAIN, _CROSS),
            up_block_types=(_CROSS_UP, _PLAIN_UP),
            attention_head_dim=(2, 2),
            cross_attention_dim=32,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            **_XL,
            **_TINY,
        ),
        (_encoder(16, 2, 2, "quick_gelu", words=99), _encoder(16, 2, 2, "gelu", projection=True, words=99)),
        _autoencoder(0.13025, **_TINY_AUTOENCODER),
    ),
}


def _network(kind: Any, config: Any, dtype: Any, param_dtype: Any) -> Any:
    no_keys = cast(nnx.Rngs, SimpleNamespace(params=lambda: None))  # only the shapes are made
    network = from_nnx(nnx.eval_shape(lambda: kind(config, rngs=no_keys, dtype=jnp.dtype(dtype))))

    def stored(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, param_dtype if leaf.ndim > 1 else jnp.float32)

    return jax.tree.map(stored, network)


def abstract(name: str, *, dtype: Any = "float32", param_dtype: Any = "float32") -> TextToImage:
    """Make a model without weights and tokenizers: each weight is a `jax.ShapeDtypeStruct`.

    Args:
        name: of `MODELS`.
        dtype: what the networks compute in.
        param_dtype: what matrices are stored in.
    """
    full = MODELS[name]
    is_xl = full.unet.addition_embed_type is not None
    unet = _network(UNetCondition, full.unet, dtype, param_dtype)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(unet))
    assert full.parameters in (None, parameters), f"{name} has {parameters:,} parameters"
    by = compute_dtype(full.autoencoder, dtype)
    return TextToImage(
        unet=unet,
        text_encoders=tuple(_network(TextEncoder, config, dtype, param_dtype) for config in full.encoders),
        autoencoder=LatentCoder(_network(Autoencoder, full.autoencoder, by, param_dtype)),
        tokenizers=(),
        config=cmjax.tcd.TCDConfig(clip_sample=False),
        pipeline="StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline",
        zeros_for_empty=is_xl,
    )


def random(name: str, *, dtype: Any = "float32", param_dtype: Any = "float32", seed: int = 0) -> TextToImage:
    """Make a model with random weights that keep values at about their size, from layer to layer.

    Args:
        name: of `MODELS`.
        dtype: what the networks compute in.
        param_dtype: what matrices are stored in.
        seed: of the weights; a million numbers are drawn, and repeated.
    """
    numbers = np.random.default_rng(seed).standard_normal((1 << 20) + 7, np.float32)

    def weight(path: Any, leaf: Any) -> Any:
        last = jax.tree_util.keystr(path)
        if len(leaf.shape) == 1:
            value = np.ones(leaf.shape, np.float32) if "scale" in last else 0.1 * np.resize(numbers, leaf.shape)
        else:
            fan_in = 1 if "embedding" in last else math.prod(leaf.shape[:-1])
            value = np.resize(numbers, leaf.shape) / np.float32(math.sqrt(fan_in))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(weight, abstract(name, dtype=dtype, param_dtype=param_dtype))


def given(name: str, batch: int, dtype: Any = "float32") -> TextCond:
    """The shapes of what a network is told, as `pipe.encode` makes it."""
    unet = MODELS[name].unet
    cond = TextCond(jax.ShapeDtypeStruct((batch, 77, unet.cross_attention_dim), dtype))
    if unet.addition_embed_type is None:
        return cond
    pooled = jax.ShapeDtypeStruct((batch, MODELS[name].encoders[-1].hidden_size), dtype)
    return cond.replace(pooled=pooled, sizes=jax.ShapeDtypeStruct((batch, 6), jnp.float32))
