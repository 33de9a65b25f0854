"""The encoder of pictures: a transformer over patches, in flax.nnx."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.clip.config import VisionConfig
from cmjax.models.clip.transformer import Encoder
from cmjax.models.layers import ClassEmbedding, Conv, Dtype, LayerNorm, Layout, Linear, Stored
from cmjax.types import Array

__all__ = ["VisionEncoder", "VisionOutput"]


class VisionOutput(NamedTuple):
    """What an encoder of pictures computes; the first of the N tokens stands for the whole picture.

    Attributes:
      last: f32[B, N, D], the state after the last layer, before the final norm.
      pooled: f32[B, D], its first row after the final norm.
      hidden: the states between layers, f32[B, N, D] each, num_hidden_layers + 1 of them.
      projected: f32[B, projection_dim], the pooled output projected; None for an encoder without a projection.
    """

    last: Array
    pooled: Array
    hidden: tuple[Array, ...]
    projected: Array | None = None


class _Patches(Conv):
    """A convolution whose windows do not overlap: one product of the patches."""

    def __init__(self, config: VisionConfig, dtype: Dtype, rngs: nnx.Rngs):
        size = config.patch_size
        super().__init__(
            config.num_channels, config.hidden_size, size, strides=size, padding=0, bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Array) -> Array:
        """Map f[B, H, W, c_in] to f[B, patches, c_out], row by row."""
        b, h, w, c = x.shape
        kernel = self.kernel[...].astype(self.dtype)
        size = kernel.shape[0]
        rows, columns = h // size, w // size
        x = x[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
        patches = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, size * size * c)
        return patches.astype(self.dtype) @ kernel.reshape(-1, kernel.shape[-1])


class _Embeddings(nnx.Module):
    layout: ClassVar[Layout] = {"class_embedding": Stored("class_embedding")}

    def __init__(self, config: VisionConfig, dtype: Dtype, rngs: nnx.Rngs):
        self.class_embedding = nnx.Param(jnp.zeros((config.hidden_size,), jnp.float32))
        self.patch_embedding = _Patches(config, dtype, rngs)
        self.position_embedding = ClassEmbedding(config.patches + 1, config.hidden_size, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        patches = f32(self.patch_embedding(images))
        first = jnp.broadcast_to(self.class_embedding[...], (len(images), 1, patches.shape[2]))
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))


class _Transformer(nnx.Module):
    def __init__(self, config: VisionConfig, dtype: Dtype, rngs: nnx.Rngs):
        self.embeddings = _Embeddings(config, dtype, rngs)
        self.pre_layrnorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # so spelled in files
        self.encoder = Encoder(config, dtype, rngs, causal=False)
        self.post_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionEncoder(nnx.Module):
    """A transformer over the patches of a picture and one token more.

    It computes what transformers' `CLIPVisionModel` computes, or `CLIPVisionModelWithProjection` with
    `config.projection`. `cmjax.models.clip.Preprocessing` gives pictures the size and the scale that it was trained on.

    Args:
      config: what to build.
      rngs: keys of the initial weights.
      dtype: of matrix products; norms and softmax are float32.

    Example:
      >>> config = VisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
      ...                       image_size=8, patch_size=4, projection_dim=6, projection=True)
      >>> encode = lambda images: VisionEncoder(config, rngs=nnx.Rngs(0))(images)
      >>> out = nnx.eval_shape(encode, jnp.zeros((2, 8, 8, 3)))  # computes shapes alone
      >>> out.last.shape, out.projected.shape
      ((2, 5, 8), (2, 6))

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.4;
      Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, equations 1 to 4.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        self.vision_model = _Transformer(config, dtype, rngs)
        if config.projection:
            self.visual_projection = Linear(
                config.hidden_size, config.projection_dim, bias=False, dtype=dtype, rngs=rngs
            )

    def __call__(self, images: Array) -> VisionOutput:
        """Encode pictures.

        Args:
          images: f[B, S, S, C], S = `config.image_size`, preprocessed.

        Raises:
          ValueError: they have another shape.
        """
        side = self.config.image_size
        if images.shape[1:] != (side, side, self.config.num_channels):
            raise ValueError(
                f"images must be f[B, {side}, {side}, {self.config.num_channels}], got {list(images.shape)}: give them "
                "that size with cmjax.models.clip.Preprocessing."
            )
        network = self.vision_model
        hidden = network.encoder(network.pre_layrnorm(network.embeddings(images)))
        pooled = network.post_layernorm(hidden[-1][:, 0])
        projected = f32(self.visual_projection(pooled)) if self.config.projection else None
        return VisionOutput(hidden[-1], pooled, hidden, projected)
