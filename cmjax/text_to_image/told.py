"""A network that is told the guidance scale, made of one that is not, for latent consistency distillation."""

from __future__ import annotations

import dataclasses

from flax import nnx

from cmjax._numerics import whole
from cmjax.models import from_nnx
from cmjax.models.layers import Linear
from cmjax.text_to_image.pipeline import TextToImage

__all__ = ["tell_guidance"]


def tell_guidance(pipe: TextToImage, dim: int = 256) -> TextToImage:
    """Let the network of a text-to-image model be told the guidance scale, at no effect yet.

    The network gets a projection of zeros, from an embedding of the scale into that of the time, which training then
    changes (`training.LatentConsistencyDistillation(tell_guidance=True)`); its other weights are shared. The model is
    drawn with `pipe.encode(..., guidance=8.0)`, whatever the scale, in one call of the network a step.

    Args:
      pipe: the model.
      dim: the width of the embedding, an even number.

    Returns:
      The model, one whose `guidance` the network reads (a `LatentConsistencyModelPipeline` in diffusers).

    Raises:
      ValueError: the network is told already, dim is odd or below 4, or the network has frozen parts or LoRAs.

    Example:
      >>> import cmjax
      >>> told = tell_guidance(cmjax.text_to_image.load("emoji"))
      >>> told.encode(told.tokenize(["a fox"]), guidance=8.0).guidance
      Array([8.], dtype=float32)

    References:
      Luo et al. 2023, section 4.2; Meng et al. 2023 (On distillation of guided diffusion models), section 3.
    """
    config = pipe.unet.config
    dim = whole("dim", dim, least=4)
    if dim % 2:
        raise ValueError(f"dim must be even, sines and cosines, got {dim}.")
    if config.time_cond_proj_dim is not None:
        raise ValueError("pipe must have a network that is not told the guidance scale, but its network is.")
    if not all(pipe.unet.is_trained):
        raise ValueError("pipe must have a whole network, without LoRAs and frozen parts: cmjax.lora.merge adds them.")
    module = pipe.unet.module
    module.config = dataclasses.replace(config, time_cond_proj_dim=dim)
    projection = Linear(dim, config.block_out_channels[0], bias=False, zero=True, rngs=nnx.Rngs(0))
    module.time_embedding.cond_proj = nnx.data(projection)
    pipeline = "LatentConsistencyModelPipeline" if pipe.pipeline == "StableDiffusionPipeline" else pipe.pipeline
    return pipe.replace(unet=from_nnx(module), pipeline=pipeline)
