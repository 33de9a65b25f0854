"""Whether the parts of a text-to-image model fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["check_fit", "is_told_score"]


def is_told_score(unet: Any, encoder: Any) -> bool:
    """Whether a network is told an aesthetic score in place of a target size: Stable Diffusion XL's refiner.

    Args:
      unet: its config.
      encoder: the config of the last text encoder, whose pooled text it is told too.
    """
    if unet.addition_embed_type != "text_time":
        return False
    return (unet.projection_class_embeddings_input_dim - encoder.projection_dim) // unet.addition_time_embed_dim == 5


def check_fit(unet: Any, autoencoder: Any, encoders: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer]) -> None:
    """Refuse parts that do not fit each other.

    Args:
      unet: the network's config.
      autoencoder: its config.
      encoders: the configs of the text encoders, by the parts' names.
      tokenizers: in the order of the encoders, by the parts' names; or none, which are not checked.

    Raises:
      ValueError: the text's width is not what cross-attention reads, latents have another number of channels, or a
        tokenizer has tokens or a length that its encoder has no row for.
    """
    width, read = sum(config.hidden_size for config in encoders.values()), unet.cross_attention_dim
    if not all(one == width for one in (read if isinstance(read, tuple) else (read,))):
        raise ValueError(
            f"unet/ attends to a context of width {read} (cross_attention_dim), but {_names(encoders)} makes one of "
            f"width {width}: they are of different models."
        )
    latents = autoencoder.latent_channels
    if unet.in_channels not in (latents, 2 * latents, 2 * latents + 1) or unet.out_channels != latents:
        raise ValueError(
            f"unet/ maps {unet.in_channels} channels to {unet.out_channels}, but vae/ makes latents of {latents}: "
            "they are of different models."
        )
    if unet.addition_embed_type == "text_time":
        _check_pooled(unet, encoders)
    elif len(encoders) != 1:
        raise ValueError(f"unet/ reads one text encoder, but there are {_names(encoders)}.")
    for (name, config), (part, tokenizer) in zip(encoders.items(), tokenizers.items(), strict=bool(tokenizers)):
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{part}/ has {len(tokenizer)} tokens, but {name}/ knows {config.vocab_size}: it is the tokenizer of "
                "another model."
            )
        if tokenizer.max_length > config.max_position_embeddings:
            raise ValueError(
                f"{part}/ makes texts of {tokenizer.max_length} tokens, but {name}/ reads "
                f"{config.max_position_embeddings}: set model_max_length in its tokenizer_config.json."
            )


def _check_pooled(unet: Any, encoders: Mapping[str, Any]) -> None:
    """The pooled text and the embedded sizes, in one row, must have the width that the network reads."""
    name, config = list(encoders.items())[-1]
    pooled = config.projection_dim
    if pooled is None or not config.projection:
        raise ValueError(f"unet/ reads a pooled text, but {name}/ has no projection: it is of another model.")
    wanted, each = unet.projection_class_embeddings_input_dim, unet.addition_time_embed_dim
    if wanted not in (pooled + 6 * each, pooled + 5 * each):
        raise ValueError(
            f"unet/ reads a row of {wanted} (projection_class_embeddings_input_dim), but the pooled text of "
            f"{name}/ has {pooled} and five or six sizes {each} each: they are of different models."
        )


def _names(parts: Mapping[str, Any]) -> str:
    return " and ".join(f"{name}/" for name in parts)
