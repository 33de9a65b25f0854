"""A text-to-image model: tokenizers, text encoders, a network and an autoencoder, as one pytree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax._numerics import f32
from cmjax._struct import Struct, static
from cmjax.io.parts import TEXT_ENCODERS, UNET
from cmjax.models import Network
from cmjax.models.text_cond import TextCond
from cmjax.samplers.base import SamplerConfig
from cmjax.text_to_image.autoencoder import LatentCoder
from cmjax.text_to_image.fit import is_told_score
from cmjax.text_to_image.tokenizer import Tokenizer
from cmjax.text_to_image.windows import Tokens, apply_weights, tokenize_windows
from cmjax.types import Array, ModelFn

__all__ = ["PromptTokens", "TextToImage"]

# Of each text encoder: i32[B, L], or windows and weights.
PromptTokens = tuple[Array | np.ndarray | Tokens, ...]

# What the refiner of Stable Diffusion XL is told of a picture that it should make, and of one to lead away from.
_AESTHETIC_SCORE, _NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


class TextToImage(Struct):
    """A text-to-image model, as `load` makes it; its weights are leaves, so it crosses `jit` as an argument.

    Attributes:
      unet: the network, which `model` gives.
      text_encoders: in the folder's order.
      autoencoder: between pictures f[B, H, W, 3] in [-1, 1] and latents.
      tokenizers: one for each text encoder. Static, as are the others.
      config: of the folder's own sampler, such as a `DDIMConfig` or a `TCDConfig`; every variance-preserving sampler
        takes it.
      pipeline: the class in model_index.json, which diffusers goes by.
      zeros_for_empty: whether no text is zeros, in place of what the encoders make of "" (Stable Diffusion XL).
    """

    unet: Network
    text_encoders: tuple[Network, ...]
    autoencoder: LatentCoder
    tokenizers: tuple[Tokenizer, ...] = static()
    config: SamplerConfig = static()
    pipeline: str = static(default="StableDiffusionPipeline")
    zeros_for_empty: bool = static(default=False)

    @property
    def model(self) -> ModelFn:
        """The network as a model: latents f[B, h, w, C], noisy, and a `TextCond` to what it predicts."""
        return self.unet

    # ---- text ----------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str], *, windows: int | None = 1, weights: bool = False) -> PromptTokens:
        """Turn prompts into tokens, on the host: the only place where there is text.

        Args:
          prompts: B texts. A longer text than the encoders take is cut, with a warning that says what fell off.
          windows: how many times the encoders' length a text may have; None for as many as the longest text needs.
            Texts are encoded window by window.
          weights: whether `(word)`, `[word]` and `(word:1.3)` make words weigh more or less.

        Returns:
          i32[B, L] for each text encoder; with several windows or weights, a `Tokens` for each.

        Raises:
          TypeError: prompts are not texts.
        """
        if windows == 1 and not weights:
            return tuple(tokenizer(prompts) for tokenizer in self.tokenizers)
        tokens = [tokenize_windows(one, prompts, windows=windows, weights=weights) for one in self.tokenizers]
        most = max(one.ids.shape[1] for one in tokens)
        return tuple(
            one if one.ids.shape[1] == most else tokenize_windows(by, prompts, windows=most, weights=weights)
            for by, one in zip(self.tokenizers, tokens, strict=True)
        )

    def encode(
        self,
        tokens: PromptTokens,
        *,
        size: tuple[int, int] | None = None,
        sizes: ArrayLike | None = None,
        guidance: ArrayLike | None = None,
        clip_skip: int = 0,
    ) -> TextCond:
        """Encode tokens to what the network is told. Pure: it can be called within `jit`.

        Args:
          tokens: what `tokenize` returned, i32[B, L] for each text encoder.
          size: (H, W) of the pictures, as for `draw`; None for the native size. Networks that are told sizes (Stable
            Diffusion XL) are told of an uncropped picture of this size; others do not read it. Static.
          sizes: f[6] or f[B, 6] in place of `size`, in pixels: original height and width, top and left of the crop,
            target height and width. For a refiner f[5] or f[B, 5], with an aesthetic score in place of the target (6 by
            default).
          guidance: f[] or f[B], the guidance scale for networks that are told it (latent consistency models).
          clip_skip: how many of the last layers of the encoders to leave out. Static.

        Returns:
          The condition, with the batch first.

        Raises:
          ValueError: tokens are not one array for each text encoder, what the network is told has another shape, or
            both size and sizes are given.
        """
        cond = self._read(tokens, clip_skip)
        batch = cond.context.shape[0]
        return cond.replace(sizes=self._sizes(size, sizes, batch), guidance=_one_each("guidance", guidance, batch))

    def without_text(self, cond: TextCond, tokens: PromptTokens | None = None, *, clip_skip: int = 0) -> TextCond:
        """What guidance leads away from: `cond` with no text in it, or with a negative prompt's.

        Args:
          cond: from `encode`. Sizes, guidance and extra channels are copied; but a refiner is told an aesthetic score
            of 2.5 in place of the picture's (`replace(sizes=...)` tells it another).
          tokens: of the negative prompt: of B texts, or of one for all. None for no text: zeros for Stable Diffusion
            XL, else what the encoders make of "".
          clip_skip: as for `encode`.

        Returns:
          The condition, of the shapes of `cond`.

        Example:
          >>> import cmjax
          >>> pipe = cmjax.text_to_image.load("emoji")
          >>> cond = pipe.encode(pipe.tokenize(["a red apple"]))
          >>> guided = cmjax.guidance.classifier_free(pipe.model, 2.0, pipe.without_text(cond))
        """
        if cond.sizes is not None and self.is_refiner:
            cond = cond.replace(sizes=cond.sizes.at[:, -1].set(_NEGATIVE_AESTHETIC_SCORE))
        if tokens is None and self.zeros_for_empty:
            pooled = None if cond.pooled is None else jnp.zeros_like(cond.pooled)
            return cond.replace(context=jnp.zeros_like(cond.context), pooled=pooled)
        batch = cond.context.shape[0]
        # Read once an image, since each may have its own scale of a LoRA.
        each = self.tokenize([""]) if tokens is None else tokens
        each = jax.tree.map(
            lambda one: jnp.broadcast_to(one, (batch, *one.shape[1:])) if one.shape[0] == 1 else one, each
        )
        empty = self._read(each, clip_skip)
        return cond.replace(
            context=_fit(empty.context, cond.context),
            pooled=None if cond.pooled is None or empty.pooled is None else _fit(empty.pooled, cond.pooled),
        )

    # ---- parts ---------------------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, Network]:
        """The networks that draw and read, by the names of their folders: `unet`, `text_encoder`, `text_encoder_2`.

        Example:
          >>> import cmjax
          >>> list(cmjax.text_to_image.load("emoji").networks)
          ['unet', 'text_encoder']
        """
        is_refiner = "XL" in self.pipeline and len(self.text_encoders) == 1  # its only encoder is XL's second
        names = TEXT_ENCODERS[1:] if is_refiner else TEXT_ENCODERS
        return {UNET: self.unet, **dict(zip(names, self.text_encoders, strict=False))}

    def with_networks(self, networks: Mapping[str, Network]) -> TextToImage:
        """Give a copy with other networks in the place of some.

        Args:
          networks: by the names of `networks`.
        """
        unet, *encoders = (self.networks | dict(networks)).values()
        return self.replace(unet=unet, text_encoders=tuple(encoders))

    # ---- sizes ---------------------------------------------------------------------------------------------------

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the network was trained on.

        Raises:
          ValueError: its config does not say.
        """
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("the network's config.json has no sample_size: give the size of the pictures, (H, W).")
        height, width = (size, size) if isinstance(size, int) else size
        factor = self.autoencoder.downsampling
        return factor * height, factor * width

    def latent_shape(self, batch: int, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Say the shape of latents.

        Args:
          batch: B.
          size: of the pictures, (H, W); None for the native size.

        Returns:
          (B, h, w, C).

        Raises:
          ValueError: height or width is not a positive multiple of what the autoencoder makes one latent of.
        """
        factor = self.autoencoder.downsampling
        height, width = self.native_size if size is None else size
        if min(height, width) < factor or height % factor or width % factor:
            raise ValueError(
                f"size must be a height and width that are multiples of {factor} (the autoencoder's downsampling), "
                f"got {height} x {width}: try {_nearest(height, factor)} x {_nearest(width, factor)}."
            )
        return batch, height // factor, width // factor, self.autoencoder.latent_channels

    def picture_size(self, latent_shape: tuple[int, ...]) -> tuple[int, int]:
        """Say the height and width of the pictures that latents of a shape (B, h, w, C) are decoded to."""
        _, height, width, _ = latent_shape
        return height * self.autoencoder.downsampling, width * self.autoencoder.downsampling

    @property
    def is_refiner(self) -> bool:
        """Whether the network is told an aesthetic score in place of a target size (Stable Diffusion XL's refiner)."""
        return is_told_score(self.unet.config, self.text_encoders[-1].config)

    def told_sizes(self, batch: int, size: tuple[int, int] | None = None) -> Array | None:
        """What `encode` tells the network of uncropped pictures of a size: f32[B, 6], f32[B, 5], or None for nothing.

        Args:
          batch: B.
          size: (H, W); None for the native size.
        """
        return self._sizes(size, None, batch)

    # ---- what encode is made of ----------------------------------------------------------------------------------

    @property
    def _is_told_sizes(self) -> bool:
        return self.unet.config.addition_embed_type == "text_time"

    def _read(self, tokens: PromptTokens, clip_skip: int) -> TextCond:
        """What the text encoders make of tokens: context and pooled text."""
        arrays = tuple(tokens) if isinstance(tokens, tuple | list) else (tokens,)
        if len(arrays) != len(self.text_encoders):
            raise ValueError(
                f"tokens must be {len(self.text_encoders)} arrays, one for each text encoder, as tokenize returns "
                f"them, got {len(arrays)}."
            )
        is_xl = self._is_told_sizes  # it reads the state before the last layer, as it is
        texts = [
            _text(encoder.module, tokens, clip_skip + 1 if is_xl else clip_skip, normed=not is_xl)
            for encoder, tokens in zip(self.text_encoders, arrays, strict=True)
        ]
        context = jnp.concatenate([context for context, _ in texts], axis=-1)
        return TextCond(context, pooled=texts[-1][1] if is_xl else None)

    def _sizes(self, size: tuple[int, int] | None, sizes: ArrayLike | None, batch: int) -> Array | None:
        if size is not None and sizes is not None:
            raise ValueError("size is that of the pictures, and sizes all that the network is told: give one of them.")
        if sizes is None and self._is_told_sizes:
            height, width = self.native_size if size is None else size
            told = (height, width, 0, 0, height, width)
            if self.is_refiner:
                told = (*told[:4], _AESTHETIC_SCORE)
            sizes = np.array(told, np.float32)
        if sizes is None:
            return None
        sizes = f32(sizes)
        if sizes.ndim == 0 or sizes.shape[:-1] not in ((), (1,), (batch,)):
            raise ValueError(f"sizes must have shape (6,) or ({batch}, 6), got {sizes.shape}.")
        return jnp.broadcast_to(sizes, (batch, sizes.shape[-1]))


def _text(encoder: Any, tokens: Any, clip_skip: int, *, normed: bool) -> tuple[Array, Array | None]:
    """Encode the texts of one encoder: the context f[B, L, D], and the pooled text f[B, P] if it makes one."""
    if not isinstance(tokens, Tokens):
        out = encoder(jnp.asarray(tokens))
        return encoder.context(out, clip_skip, normed=normed), out.projected
    batch, windows, length = tokens.ids.shape
    out = encoder(jnp.asarray(tokens.ids).reshape(batch * windows, length))
    context = encoder.context(out, clip_skip, normed=normed).reshape(batch, windows, length, -1)
    pooled = None if out.projected is None else out.projected.reshape(batch, windows, -1)[:, 0]
    return apply_weights(context, tokens.weights).reshape(batch, windows * length, -1), pooled


def _one_each(name: str, value: ArrayLike | None, batch: int) -> Array | None:
    """Give each image its value, f32[B]."""
    if value is None:
        return None
    value = f32(value)
    if value.shape not in ((), (1,), (batch,)):
        raise ValueError(f"{name} must be a number or have shape ({batch},), got {value.shape}.")
    return jnp.broadcast_to(value, (batch,))


def _fit(row: Array, like: Array) -> Array:
    """Repeat a negative prompt's windows of tokens for a longer prompt's."""
    if row.ndim == 3 and row.shape[1] != like.shape[1] and like.shape[1] % row.shape[1] == 0:
        row = jnp.tile(row, (1, like.shape[1] // row.shape[1], 1))
    if row.shape != like.shape:
        raise ValueError(
            f"the negative prompt's tokens must be one row or {like.shape[0]}, of the length of the prompt's, got a "
            f"context of shape {row.shape} for {like.shape}."
        )
    return row.astype(like.dtype)


def _nearest(length: int, factor: int) -> int:
    return max(factor, round(length / factor) * factor)
