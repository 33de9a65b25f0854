"""What a network is told, held to what its config reads: nothing is missing, and nothing is dropped in silence."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from cmjax.models.text_cond import TextCond
from cmjax.models.unet2d_condition.config import UNetConditionConfig
from cmjax.types import Array

__all__ = ["checked"]


def checked(config: UNetConditionConfig, x: Array, t: Array, cond: Any) -> tuple[Array, TextCond]:
    """Check the inputs of a network, and append further channels to x.

    Args:
      config: of the network.
      x: f[B, H, W, C].
      t: f[] or f[B].
      cond: a `TextCond`, or a context alone.

    Returns:
      x with all `config.in_channels`, and the conditioning.

    Raises:
      ValueError: a shape does not fit, something that the network reads is missing, or it is told a guidance scale or
        channels that it does not read. (A text in one row and sizes describe a picture for any network, so that one
        `TextCond` serves several: a network that reads none leaves them.)
    """
    cond = cond if isinstance(cond, TextCond) else TextCond(cond)
    x = _with_all_channels(config, x, cond.extra_channels)
    batch = x.shape[0]
    if config.downsample_padding == 0 and min(x.shape[1:3]) < config.downsampling:
        raise ValueError(
            f"x must have a height and width of at least {config.downsampling} (the network halves them, rounding "
            f"down), got {x.shape[1]} x {x.shape[2]}."
        )
    if t.shape not in ((), (batch,)):
        raise ValueError(f"t must have shape () or ({batch},) for x of shape {x.shape}, got {t.shape}.")
    context, width = cond.context, config.cross_attention_dim
    if context is None:
        raise ValueError("cond is missing: the network attends to a context, such as the output of a text encoder.")
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != width:
        raise ValueError(f"cond must have a context of shape ({batch}, tokens, {width}), got {context.shape}.")
    _check_guidance(config, batch, cond.guidance)
    if config.addition_embed_type == "text_time":
        _check_text_and_sizes(config, batch, cond)
    return x, cond


def _with_all_channels(config: UNetConditionConfig, x: Array, extra: Array | None) -> Array:
    wanted = config.in_channels
    if x.ndim != 4 or (extra is None and x.shape[-1] != wanted):
        hint = ""
        if x.ndim == 4 and x.shape[-1] == config.out_channels < wanted:
            hint = f" Or give the other {wanted - x.shape[-1]} as cond.extra_channels."
        raise ValueError(
            f"x must have shape (batch, height, width, {wanted}), got {x.shape}; channels come last.{hint}"
        )
    if extra is None:
        return x
    if x.shape[-1] >= wanted:
        raise ValueError(
            f"cond.extra_channels must be None: x has all the {wanted} channels that the network reads, got "
            f"{extra.shape}."
        )
    shape = (*x.shape[:3], wanted - x.shape[-1])
    if extra.shape != shape:
        raise ValueError(
            f"cond.extra_channels must have shape {shape}: the size of x, and the rest of {wanted} channels, got "
            f"{extra.shape}."
        )
    return jnp.concatenate([x, extra.astype(x.dtype)], axis=-1)


def _check_guidance(config: UNetConditionConfig, batch: int, guidance: Array | None) -> None:
    if config.time_cond_proj_dim is None:
        if guidance is not None:
            raise ValueError(
                "cond.guidance must be None: the network is not told a guidance scale (time_cond_proj_dim is null). "
                "Take cmjax.guidance.classifier_free instead."
            )
    elif guidance is None:
        raise ValueError(
            f"cond.guidance is missing: the network is told the guidance scale. Give f32[{batch}], such as "
            f"cond.replace(guidance=jnp.full({batch}, 8.0))."
        )
    elif jnp.shape(guidance) not in ((), (batch,)):
        raise ValueError(f"cond.guidance must have shape ({batch},) or (), got {jnp.shape(guidance)}.")


def _check_text_and_sizes(config: UNetConditionConfig, batch: int, cond: TextCond) -> None:
    """Both widths stand in the config as one sum: six sizes and 1280 of the text in Stable Diffusion XL."""
    each, total = config.addition_time_embed_dim, config.projection_class_embeddings_input_dim
    assert each is not None and total is not None
    rule = f"({batch}, P) for cond.pooled and ({batch}, n) for cond.sizes, with P + {each} n = {total}"
    if cond.pooled is None or cond.sizes is None:
        raise ValueError(
            f"cond.{'pooled' if cond.pooled is None else 'sizes'} is missing: the network reads a text in one row and "
            "the sizes of the picture, of "
            f"shapes {rule}. Give TextCond(context, pooled, sizes)."
        )
    pooled, sizes = jnp.shape(cond.pooled), jnp.shape(cond.sizes)
    fits = len(pooled) == len(sizes) == 2 and pooled[0] == sizes[0] == batch and pooled[1] + each * sizes[1] == total
    if not fits:
        raise ValueError(f"cond must have shapes {rule}, got {pooled} and {sizes}.")
