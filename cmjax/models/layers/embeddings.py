"""Embeddings of the time and the class."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax._numerics import f32, read
from cmjax.models.layers.activation import activation
from cmjax.models.layers.initial import fan_in_uniform, normal
from cmjax.models.layers.layout import Layout, Stored
from cmjax.models.layers.linear import Linear
from cmjax.types import Array

__all__ = ["ClassEmbedding", "FourierProjection", "TimestepEmbedding", "guidance_embedding", "positional"]


def positional(t: Array, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Array:
    """Embed times as sines and cosines of `dim // 2` frequencies between 1 and 1 / 10000.

    omega_i = 10000^(-i / (dim // 2 - freq_shift)), and the embedding is (cos omega t, sin omega t).

    Args:
      t: times, f32[B]; they may be negative or fractional.
      dim: width of the embedding; an odd one ends in a zero.
      flip_sin_to_cos: cosines first.
      freq_shift: subtracted from the number of frequencies when they are spaced.

    Returns:
      f32[B, dim].

    Example:
      >>> positional(jnp.zeros(1), 4).tolist()
      [[1.0, 1.0, 0.0, 0.0]]

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, 2020, appendix B; Vaswani et al., 2017, section 3.5.
    """
    half = dim // 2
    omega = np.exp(-math.log(10000.0) * np.arange(half) / (half - freq_shift)).astype(np.float32)
    phase = f32(t)[:, None] * omega[None, :]
    waves = [jnp.cos(phase), jnp.sin(phase)] if flip_sin_to_cos else [jnp.sin(phase), jnp.cos(phase)]
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, dim % 2)))


def guidance_embedding(w: Array, dim: int = 256) -> Array:
    """Embed a guidance scale for a network that is distilled for many: (sin 1000 ω w, cos 1000 ω w).

    omega_i = 10000^(-i / (dim // 2 - 1)). Published latent consistency models embed the w of their paper,
    out = cond + w (cond - uncond), which is one less than a guidance scale (`guidance.classifier_free`).

    Args:
      w: guidance scales, f32[B].
      dim: width of the embedding; an odd one ends in a zero.

    Returns:
      f32[B, dim].

    Example:
      >>> guidance_embedding(jnp.zeros(1), 4).tolist()
      [[0.0, 0.0, 1.0, 1.0]]

    References:
      Luo et al., Latent Consistency Models, 2023, section 4.2; Meng et al., On Distillation of Guided Diffusion
      Models, 2023, section 3.
    """
    return positional(1000.0 * f32(w), dim, flip_sin_to_cos=False, freq_shift=1)


class FourierProjection(nnx.Module):
    """Embed ln t as sines and cosines of random, fixed frequencies.

    (sin(2 pi w ln t), cos(2 pi w ln t)) with w ~ N(0, 16^2) drawn once. The frequencies are stored with the weights,
    and get no gradient.

    References:
      Song et al., Score-Based Generative Modeling through SDEs, 2021, appendix C.2; Tancik et al., 2020, section 4.
    """

    layout: ClassVar[Layout] = {"weight": Stored("weight")}

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(16.0 * normal(rngs.params(), (dim,)))

    def __call__(self, t: Array) -> Array:
        """Embed t f32[B], above 0, to f32[B, 2 dim]."""
        w = jax.lax.stop_gradient(self.weight[...])
        phase = jnp.log(f32(t))[:, None] * w[None, :] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two linear layers, an activation between them, always in float32: times reach 1e3, and bfloat16 has three digits.

    Args:
      dim: width of the input.
      width: width of the embedding.
      act: the activation's name.
      also: width of a second embedding, such as that of a guidance scale, which is projected and added to the input;
        None for none. Its projection begins as 0.
      zero: whether the second layer's kernel begins as 0.
      rngs: keys of the initial weights.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        act: str = "silu",
        also: int | None = None,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        self.act = activation(act)
        self.linear_1 = Linear(dim, width, rngs=rngs)
        self.cond_proj = None if also is None else Linear(also, dim, bias=False, zero=True, rngs=rngs)
        self.linear_2 = Linear(width, width, zero=zero, rngs=rngs)

    def __call__(self, emb: Array, also: Array | None = None) -> Array:
        """Map f32[B, dim], and the second embedding f32[B, also], to f32[B, width]."""
        if self.cond_proj is not None:
            assert also is not None
            emb = emb + self.cond_proj(also)
        return self.linear_2(self.act(self.linear_1(emb)))


class ClassEmbedding(nnx.Module):
    """A table with one row for each class (or each time), of variance 1; a row that does not exist is NaN."""

    layout: ClassVar[Layout] = {"embedding": Stored("weight")}

    def __init__(self, num: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(fan_in_uniform(rngs.params(), (1, num * width)).reshape(num, width))

    def __call__(self, index: Array) -> Array:
        """Map i32[B] to f32[B, width]; or f[B, num], how much of each row, to their mixture."""
        if jnp.issubdtype(index.dtype, jnp.floating):
            return jnp.matmul(f32(index), f32(self.embedding[...]), precision="highest")
        return read(self.embedding[...], index)
