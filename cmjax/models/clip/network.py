"""The text encoder: a causal transformer over tokens, in flax.nnx."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from cmjax._numerics import f32
from cmjax.models.clip.config import TextConfig
from cmjax.models.clip.transformer import Encoder
from cmjax.models.layers import ClassEmbedding, Dtype, LayerNorm, Linear
from cmjax.types import Array

__all__ = ["TextEncoder", "TextOutput"]

_ADDED = 49408  # the first id behind CLIP's own vocabulary


class TextOutput(NamedTuple):
    """What a text encoder computes.

    Attributes:
      last: f32[B, N, D], after the final norm: the context of Stable Diffusion 1 and 2.
      pooled: f32[B, D], its row at the token that ends the text.
      hidden: the states between layers, f32[B, N, D] each, num_hidden_layers + 1 of them; the last is before the norm.
      projected: f32[B, projection_dim], the pooled output projected: the pooled text of Stable Diffusion XL. None for
        an encoder without a projection.
    """

    last: Array
    pooled: Array
    hidden: tuple[Array, ...]
    projected: Array | None = None


class _Embeddings(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.token_embedding = ClassEmbedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position_embedding = ClassEmbedding(config.max_position_embeddings, config.hidden_size, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        return self.token_embedding(tokens) + self.position_embedding(jnp.arange(tokens.shape[1]))


class _Transformer(nnx.Module):
    def __init__(self, config: TextConfig, dtype: Dtype, rngs: nnx.Rngs):
        self.embeddings = _Embeddings(config, rngs)
        self.encoder = Encoder(config, dtype, rngs, causal=True)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class TextEncoder(nnx.Module):
    """A causal transformer over tokens, with learned positions.

    It computes what transformers' `CLIPTextModel` computes, or `CLIPTextModelWithProjection` with
    `config.projection`. Tokens that fill a text's end are attended to as others.

    Args:
      config: what to build.
      rngs: keys of the initial weights.
      dtype: of matrix products; norms and softmax are float32.

    Example:
      >>> config = TextConfig(vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
      ...                     num_attention_heads=2, max_position_embeddings=6, eos_token_id=49)
      >>> encoder = TextEncoder(config, rngs=nnx.Rngs(0))
      >>> out = encoder(jnp.array([[48, 7, 49, 49]]))
      >>> out.last.shape, len(out.hidden), out.projected
      ((1, 4, 8), 2, None)

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.4.

    Differs from transformers: where `eos_token_id` is 2, tokens from 49408 on, which textual inversion adds, do not
    count as the largest, so that the pooled row stays at the end of the text.
    """

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        self.text_model = _Transformer(config, dtype, rngs)
        if config.projection:
            width, projected = config.hidden_size, config.projection_dim or config.hidden_size
            self.text_projection = Linear(width, projected, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Array) -> TextOutput:
        """Encode texts.

        Args:
          tokens: i32[B, N], N at most `config.max_position_embeddings`.

        Returns:
          The outputs. A token that does not exist gives NaN.

        Raises:
          ValueError: the shape does not fit, or tokens are not whole numbers.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be whole numbers of shape (batch, N), got {tokens.dtype}{tokens.shape}.")
        if tokens.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"tokens may be {self.config.max_position_embeddings} for each text at most, got {tokens.shape[1]}."
            )
        hidden = self.text_model.encoder(self.text_model.embeddings(tokens))
        last = self.text_model.final_layer_norm(hidden[-1])
        pooled = jnp.take_along_axis(last, self._end(tokens)[:, None, None], axis=1)[:, 0]
        projected = f32(self.text_projection(pooled)) if self.config.projection else None
        return TextOutput(last, pooled, hidden, projected)

    def _end(self, tokens: Array) -> Array:
        """Find the row of each text where the pooled output is read."""
        eos = self.config.eos_token_id
        return jnp.argmax(jnp.where(tokens < _ADDED, tokens, -1) if eos == 2 else tokens == eos, axis=-1)

    def context(self, output: TextOutput, clip_skip: int = 0, *, normed: bool = True) -> Array:
        """Choose what cross-attention reads of an output.

        Stable Diffusion 1 and 2 read `context(output, k)` for a clip skip of k, Stable Diffusion XL
        `context(output, k + 1, normed=False)`. Some interfaces count from 1: their "clip skip 2" is k = 1.

        Args:
          output: of this encoder.
          clip_skip: number of last layers to leave out.
          normed: whether the final norm comes after the layer.

        Returns:
          f32[B, N, D].

        Raises:
          ValueError: there are not as many layers.

        References:
          Podell et al., SDXL, 2023, section 2.1 (the penultimate layer).
        """
        layers = self.config.num_hidden_layers
        if isinstance(clip_skip, bool) or clip_skip not in range(layers + 1):
            raise ValueError(f"clip_skip must leave out 0 to {layers} layers of this encoder, got {clip_skip!r}.")
        if normed and not clip_skip:
            return output.last
        x = output.hidden[layers - clip_skip]
        return self.text_model.final_layer_norm(x) if normed else x
