"""The network: a UNet in flax.nnx on NHWC pictures, built from a diffusers `UNet2DModel` config."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax._numerics import f32, is_traced
from cmjax.models.layers import (
    ClassEmbedding,
    Conv,
    Dtype,
    FourierProjection,
    GroupNorm,
    TimestepEmbedding,
    dropout_keys,
    positional,
)
from cmjax.models.unet2d.blocks import DownBlock, Maker, MidBlock, UpBlock
from cmjax.models.unet2d.config import UNetConfig
from cmjax.models.unet2d.k_blocks import KDownBlock, KUpBlock
from cmjax.models.unet2d.skip_blocks import SkipDownBlock, SkipUpBlock
from cmjax.types import Array, Key

__all__ = ["UNet"]

_DOWN = {"SkipDownBlock2D": SkipDownBlock, "AttnSkipDownBlock2D": SkipDownBlock, "KDownBlock2D": KDownBlock}
_UP = {"SkipUpBlock2D": SkipUpBlock, "AttnSkipUpBlock2D": SkipUpBlock, "KUpBlock2D": KUpBlock}


class UNet(nnx.Module):
    """A UNet of residual and attention blocks; `unet(x, t, cond)` is a `ModelFn`.

    It computes what diffusers' `UNet2DModel` computes, with channels last. Dropout is functional: it acts exactly when
    the call is given a key, so there is no training mode and no state of random numbers. Three sets of initial weights
    are zero (the end of every residual block and attention, and of the network), unlike in diffusers: a new network
    returns 0.

    Args:
      config: what to build.
      rngs: keys of the initial weights.
      dtype: of convolutions and matrix products. Weights are stored in float32; norms, softmax, activations and the
        time embedding are computed in float32.

    Example:
      >>> import jax
      >>> config = UNetConfig(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
      ...                     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
      ...                     layers_per_block=1, num_class_embeds=10)
      >>> unet = UNet(config, rngs=nnx.Rngs(0))
      >>> jax.jit(lambda unet, *inputs: unet(*inputs))(unet, jnp.ones((2, 8, 8, 1)), 3.0, jnp.array([1, 7])).shape
      (2, 8, 8, 1)

    References:
      Ronneberger et al., U-Net, 2015; Ho et al., Denoising Diffusion Probabilistic Models, 2020, appendix B;
      Dhariwal and Nichol, Diffusion Models Beat GANs, 2021, section 3.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        channels = config.block_out_channels
        self.conv_in = Conv(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self._make_embeddings(config, rngs)
        make, last, rising = Maker(config, dtype, rngs), len(channels) - 1, channels[::-1]
        self.down_blocks = nnx.List(
            [
                _DOWN.get(kind, DownBlock)(make, kind, channels[max(i - 1, 0)], channels[i], halve=i < last)
                for i, kind in enumerate(config.down_kinds)
            ]
        )
        self.mid_block = MidBlock(make) if config.mid_block_type is not None else None
        self.up_blocks = nnx.List(
            [
                _UP.get(kind, UpBlock)(
                    make, kind, rising[max(i - 1, 0)], rising[min(i + 1, last)], rising[i], double=i < last
                )
                for i, kind in enumerate(config.up_kinds)
            ]
        )
        self.conv_norm_out = GroupNorm(channels[0], config.num_groups(channels[0]), eps=config.norm_eps)
        self.conv_out = Conv(channels[0], config.out_channels, zero=True, dtype=dtype, rngs=rngs)

    def _make_embeddings(self, config: UNetConfig, rngs: nnx.Rngs):
        width = config.block_out_channels[0]
        self.time_proj = _time_projection(config, rngs)
        width = 2 * width if config.time_embedding_type == "fourier" else width
        self.time_embedding = TimestepEmbedding(width, config.time_width, rngs=rngs)
        if config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(width, config.time_width, rngs=rngs)
        elif config.class_embed_type is None and config.num_class_embeds is not None:
            self.class_embedding = ClassEmbedding(config.num_class_embeds, config.time_width, rngs=rngs)
        else:
            self.class_embedding = None
        if config.target_embed_type is None:
            self.target_embedding = None
        else:  # begins as 0: a network that is given one computes what it did
            self.target_embedding = TimestepEmbedding(width, config.time_width, zero=True, rngs=rngs)

    def _time(self, t: Array) -> Array:
        """Show times f[B] to the network: f32[B, D]."""
        c = self.config
        if isinstance(self.time_proj, FourierProjection):
            return self.time_proj(t)
        if isinstance(self.time_proj, ClassEmbedding):
            return self.time_proj(t.astype(jnp.int32))
        return positional(t, c.block_out_channels[0], flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift)

    def _embed(self, t: Array, cond: Array | None, s: Array | None) -> Array:
        """The sum of the time's, the target's and the class's embedding: f32[B, E]."""
        emb = self.time_embedding(self._time(t))
        if self.target_embedding is not None:
            assert s is not None
            emb = emb + self.target_embedding(self._time(s))
        if cond is None:
            return emb
        if isinstance(self.class_embedding, ClassEmbedding):
            return emb + self.class_embedding(cond)
        if isinstance(self.class_embedding, TimestepEmbedding):
            return emb + self.class_embedding(self._time(cond))
        return emb + f32(cond)

    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, *, s: Array | None = None, key: Key | None = None
    ) -> Array:
        """Compute the network's output.

        Args:
          x: f[B, H, W, in_channels], with H and W multiples of `config.downsampling`.
          t: what the network is told of the noise: f[] or f[B].
          cond: class labels, i32[B] or i32[] for all, or how much of each class, f[B, classes], rows that sum to 1 (a
            mixture of their embeddings, to go from one to another); or what `config.class_embed_type` says. None
            exactly for an unconditional network. A traced label out of range gives NaN.
          s: what the network is told of where a step lands: f[] or f[B]. None exactly for networks that are not told.
          key: a key for the dropout; None for none.

        Returns:
          f[B, H, W, out_channels] in the dtype of x.

        Raises:
          ValueError: a shape does not fit, a condition is missing or not wanted, or a concrete label is out of range.
        """
        x_dtype, t = x.dtype, jnp.asarray(t)
        _check_x(self.config, x, t)
        s = _check_target(self.config, s, x.shape[0])
        if s is not None and self.target_embedding is None:
            cond, s = _as_class(s, cond), None
        cond = _check_cond(self.config, cond, x.shape[0])
        t = jnp.broadcast_to(t, x.shape[:1])
        emb, keys = self._embed(t, cond, s), dropout_keys(key, self.config.dropout)
        h = 2 * x - 1 if self.config.center_input_sample else x
        h, picture = self.conv_in(h), h  # skip blocks carry a small picture past the others
        skips = [h]
        for down in self.down_blocks:
            if isinstance(down, SkipDownBlock):
                h, more, picture = down(h, emb, keys, picture)
            else:
                h, more = down(h, emb, keys)
            skips += more
        if self.mid_block is not None:
            h = self.mid_block(h, emb, keys)
        picture = None
        for up in self.up_blocks:
            if isinstance(up, SkipUpBlock):
                h, picture = up(h, emb, skips, keys, picture)
            else:
                h = up(h, emb, skips, keys)
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        h = h if picture is None else f32(h) + picture
        if self.config.time_embedding_type == "fourier":
            h = f32(h) / f32(t)[:, None, None, None]
        return h.astype(x_dtype)


def _time_projection(config: UNetConfig, rngs: nnx.Rngs) -> FourierProjection | ClassEmbedding | None:
    """The layer that first sees t, where it has weights."""
    if config.time_embedding_type == "fourier":
        return FourierProjection(config.block_out_channels[0], rngs=rngs)
    if config.time_embedding_type == "learned":
        assert config.num_train_timesteps is not None  # UNetConfig has refused this
        return ClassEmbedding(config.num_train_timesteps, config.block_out_channels[0], rngs=rngs)
    return None


def _check_x(config: UNetConfig, x: Array, t: Array):
    if x.ndim != 4 or x.shape[-1] != config.in_channels:
        raise ValueError(
            f"x must have shape (batch, height, width, {config.in_channels}), got {x.shape}; channels come last."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must hold floating-point numbers, got {x.dtype}.")
    factor = config.downsampling
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"x must have a height and width that are multiples of {factor} (the network halves them "
            f"{len(config.block_out_channels) - 1} times), got {x.shape[1]} x {x.shape[2]}."
        )
    if t.shape not in ((), x.shape[:1]):
        raise ValueError(f"t must have shape () or ({x.shape[0]},) for x of shape {x.shape}, got {t.shape}.")


def _check_target(config: UNetConfig, s: Array | None, batch: int) -> Array | None:
    """Refuse a target that the network is not told, and the lack of one; broadcast one target over the batch."""
    if s is None:
        if config.target_embed_type is not None:
            raise ValueError(
                "s is missing: the network is told where a step lands (target_embed_type), as by the samplers ctm and "
                "meanflow."
            )
        return None
    if not config.is_told_target:
        raise ValueError(
            "s must be None: the network is told one time only (its target_embed_type is None). Take another sampler, "
            "or give the network the embedding: cmjax.models.with_target."
        )
    s = jnp.asarray(s)
    if s.shape not in ((), (batch,)):
        raise ValueError(f"s must have shape () or ({batch},) for a batch of {batch}, got {s.shape}.")
    return jnp.broadcast_to(s, (batch,))


def _as_class(s: Array, cond: Array | None) -> Array:
    """Tell the target by the class embedding of numbers, where there is one."""
    if cond is not None:
        raise ValueError("cond must be None where s is given: this network has one embedding for either.")
    return s


def _check_cond(config: UNetConfig, cond: Array | None, batch: int) -> Array | None:
    """Refuse what does not fit the network; broadcast one label over the batch."""
    if not config.conditional:
        if cond is not None:
            raise ValueError("cond must be None: the network is unconditional (its num_class_embeds is None).")
        return None
    if cond is None:
        raise ValueError(f"cond is missing: the network is conditional (num_class_embeds = {config.num_class_embeds}).")
    value = cond
    cond = jnp.asarray(cond)
    shape = (batch, config.time_width) if config.class_embed_type == "identity" else (batch,)
    if config.class_embed_type is None and jnp.issubdtype(cond.dtype, jnp.floating) and cond.ndim == 2:
        return _check_mixture(value, cond, batch, config.num_class_embeds or 0)
    if cond.shape not in (shape, shape[1:]):
        raise ValueError(f"cond must have shape {shape} or {shape[1:]} for a batch of {batch}, got {cond.shape}.")
    if config.class_embed_type is None:
        if not jnp.issubdtype(cond.dtype, jnp.integer):
            raise ValueError(
                f"cond must hold integer class labels, got {cond.dtype} (mixtures are f[B, {config.num_class_embeds}])."
            )
        if not is_traced(value):
            _check_range(np.asarray(value), config.num_class_embeds or 0)
    return jnp.broadcast_to(cond, shape)


def _check_mixture(value: Array, cond: Array, batch: int, num: int) -> Array:
    if cond.shape != (batch, num):
        raise ValueError(f"mixtures of classes must have shape ({batch}, {num}), got {cond.shape}.")
    if not is_traced(value):
        parts = np.asarray(value, np.float32)
        if not ((parts >= 0).all() and np.allclose(parts.sum(1), 1, atol=1e-3)):
            raise ValueError("mixtures of classes must have rows that are not negative and sum to 1.")
    return cond


def _check_range(labels: np.ndarray, num: int):
    wrong = labels[(labels < 0) | (labels >= num)]
    if wrong.size:
        raise ValueError(f"class labels must lie in 0 ... {num - 1} (num_class_embeds = {num}), got {wrong[0]}.")
