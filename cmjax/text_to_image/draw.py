"""From a key and a condition to pictures, in one compiled call."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike

from cmjax import guidance as guidances
from cmjax._compiled import call_compiled
from cmjax._random import split
from cmjax._struct import Struct
from cmjax.models.text_cond import TextCond
from cmjax.samplers.base import SamplerState
from cmjax.sampling import Trajectory, add_noise, generate, sample
from cmjax.text_to_image.autoencoder import LatentCoder
from cmjax.text_to_image.pipeline import PromptTokens, TextToImage
from cmjax.types import Array, Edit, Key, ModelFn

__all__ = ["Prompt", "check_preview", "draw", "draw_prompt", "guided", "redraw"]


def draw(
    pipe: TextToImage,
    state: SamplerState,
    key: Key,
    cond: TextCond,
    *,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
    guidance: ArrayLike | None = None,
    negative: TextCond | None = None,
    rescale: ArrayLike | None = None,
) -> Array:
    """Draw pictures of what a condition says.

    Equal to `cmjax.generate(model, state, key, pipe.latent_shape(B, size), cond, edit=edit)` and
    `pipe.autoencoder.decode` of its latents, where model is `pipe.model` or `guided` of it. Outside of `jit` it is
    compiled once for each shape, as `cmjax.sample` is; all weights, knobs and conditions are arguments.

    Args:
      pipe: the text-to-image model.
      state: a path at index 0, such as `cmjax.tcd.init(pipe.config, num_steps=4)`.
      key: one key, or one for each picture.
      cond: from `pipe.encode`; its batch is the number of pictures. Give `encode` the size too, where there is one.
      size: of the pictures, (H, W); None for the native size. Static.
      edit: x0 -> x0 of the latents, a callable pytree, applied at each step.
      guidance: the scale of classifier-free guidance, f[] or f[B]; None for none, which takes half the time. Models
        distilled with their guidance take none.
      negative: what guidance leads away from; None for `pipe.without_text(cond)`.
      rescale: the share of the contrast that guidance adds to take away again, f[] or f[B]; None for none.

    Returns:
      f32[B, H, W, 3], meant to lie in [-1, 1], but not clipped.

    Raises:
      ValueError: the size does not divide, the state has already stepped, or there is a negative or a rescale without
        guidance.

    Example:
      >>> import cmjax, jax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> state = cmjax.tcd.init(pipe.config, num_steps=2)
      >>> cond = pipe.encode(pipe.tokenize(["a red apple", "two foxes"]))
      >>> jax.eval_shape(draw, pipe, state, jax.random.key(0), cond).shape  # computes shapes alone
      (2, 64, 64, 3)

    References:
      Zheng et al., Trajectory Consistency Distillation, 2024, algorithm 2; Rombach et al., 2022, section 3.
    """
    _check_guidance(guidance, negative, rescale)
    shape = pipe.latent_shape(cond.context.shape[0], size)
    return call_compiled(_draw, pipe, state, key, shape, cond, edit, guidance, negative, rescale)


def _draw(
    pipe: TextToImage,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    cond: TextCond,
    edit: Edit | None,
    *guiding: Any,
) -> Array:
    latents = generate(_model(pipe, cond, *guiding), state, key, shape, cond, edit=edit)
    return pipe.autoencoder.decode(latents)


class Prompt(Struct):
    """What to draw, as arrays with the batch first, before it is encoded: what `draw_prompt` takes.

    Attributes:
      tokens: i32[B, L] for each text encoder, from `pipe.tokenize`.
      negative: tokens of what guidance leads away from; None for no text.
      guidance: f32[B], the scale of classifier-free guidance; None for none.
      told: f32[B], the guidance that the network is told (latent consistency models); None for none.
      sizes: f32[B, 6], as for `pipe.encode`; None for those of an uncropped picture of the size that is drawn.
    """

    tokens: PromptTokens
    negative: PromptTokens | None = None
    guidance: Array | None = None
    told: Array | None = None
    sizes: Array | None = None

    def encoded(self, pipe: TextToImage, size: tuple[int, int] | None = None) -> tuple[TextCond, TextCond | None]:
        """Encode the tokens: what the network is told, and what guidance leads away from (None for no text).

        Args:
          pipe: the text-to-image model.
          size: of the pictures, (H, W); None for the native size.
        """
        size = size if self.sizes is None else None
        cond = pipe.encode(self.tokens, size=size, sizes=self.sizes, guidance=self.told)
        return cond, None if self.negative is None else pipe.without_text(cond, self.negative)


def draw_prompt(
    pipe: TextToImage,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    prompt: Prompt,
    *,
    edit: Edit | None = None,
    keep_steps: bool = False,
    preview: LatentCoder | None = None,
) -> Array | Trajectory:
    """Encode tokens and `draw`, with the signature of `cmjax.generate`, which it can replace.

    Args:
      pipe: the text-to-image model.
      state: a path at index 0.
      key: one key, or one for each picture.
      shape: of the latents, as `pipe.latent_shape` gives it. Static.
      prompt: what is asked for.
      edit: as for `draw`.
      keep_steps: whether to decode the estimate of every step too. Static.
      preview: what decodes the estimates, such as a tiny autoencoder, in less time; None for the model's own.

    Returns:
      f32[B, H, W, 3]; with `keep_steps`, a `Trajectory` of pictures, x the last sample alone and x0 the n estimates.

    Raises:
      ValueError: preview decodes latents of other channels, or to another size.

    Example:
      >>> import cmjax, jax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> state = cmjax.tcd.init(pipe.config, num_steps=1)
      >>> shape, prompt = pipe.latent_shape(1), Prompt(pipe.tokenize(["a red apple"]))
      >>> draw_one = lambda pipe, prompt: draw_prompt(pipe, state, jax.random.key(0), shape, prompt)
      >>> jax.eval_shape(draw_one, pipe, prompt).shape  # computes shapes alone
      (1, 64, 64, 3)
    """
    if preview is not None:
        check_preview(pipe, preview)
    return call_compiled(_draw_prompt, pipe, state, key, shape, prompt, edit, keep_steps, preview)


def check_preview(pipe: TextToImage, preview: LatentCoder) -> None:
    """Refuse an autoencoder that does not decode the latents of a model.

    Raises:
      ValueError: it decodes latents of other channels, or to another size.
    """
    own, other = ((one.latent_channels, one.downsampling) for one in (pipe.autoencoder, preview))
    if own != other:
        raise ValueError(
            f"preview must decode {own[0]} channels of latents to {own[1]} pixels a side each, as the model's own "
            f"autoencoder does, but decodes {other[0]} to {other[1]}: it is of another model."
        )


def _draw_prompt(
    pipe: TextToImage,
    state: SamplerState,
    key: Key,
    shape: tuple[int, ...],
    prompt: Prompt,
    edit: Edit | None,
    keep_steps: bool,
    preview: LatentCoder | None,
) -> Array | Trajectory:
    cond, negative = prompt.encoded(pipe, pipe.picture_size(shape))
    model = _model(pipe, cond, prompt.guidance, negative, None)
    decode = pipe.autoencoder.decode
    if not keep_steps:
        return decode(generate(model, state, key, shape, cond, edit=edit))
    path = generate(model, state, key, shape, cond, edit=edit, keep_steps=True)
    shown = decode if preview is None else preview.decode
    return Trajectory(decode(path.x[-1])[None], jax.lax.map(shown, path.x0))


def redraw(
    pipe: TextToImage,
    state: SamplerState,
    images: Array,
    key: Key,
    cond: TextCond,
    *,
    edit: Edit | None = None,
    guidance: ArrayLike | None = None,
    negative: TextCond | None = None,
    rescale: ArrayLike | None = None,
) -> Array:
    """Draw pictures again, from where the path begins: image to image.

    The pictures' latents (the means that the autoencoder gives) are noised to the first level of the path, and the path
    is walked from there. The path decides how much changes, in one of two ways:

    - `cmjax.skip(cmjax.tcd.init(config, n), k)` leaves out the first k of n steps, as diffusers' `strength` does;
    - `cmjax.tcd.init(config, n, strength=0.5)` takes all n steps within the cleaner part of the grid.

    Args:
      pipe: the text-to-image model.
      state: a path at index 0, which begins below noise alone.
      images: f[B, H, W, 3] in [-1, 1]; their height and width are the result's.
      key: one key, or one for each picture.
      cond: from `pipe.encode`, which takes the size of the pictures.
      edit: as for `draw`, as are the others.
      guidance: the scale of guidance, or None.
      negative: what guidance leads away from.
      rescale: the share of the added contrast to take away.

    Returns:
      f32[B, H, W, 3].

    Raises:
      ValueError: as for `draw`, or the size of the pictures does not divide.

    Example:
      >>> import cmjax, jax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> state = cmjax.skip(cmjax.tcd.init(pipe.config, num_steps=4), 2)
      >>> cond = pipe.encode(pipe.tokenize(["a red apple"]))
      >>> images = jax.numpy.zeros((1, 64, 64, 3))
      >>> jax.eval_shape(redraw, pipe, state, images, jax.random.key(0), cond).shape  # computes shapes alone
      (1, 64, 64, 3)

    References:
      Meng et al., SDEdit, 2022, section 3.
    """
    _check_guidance(guidance, negative, rescale)
    batch, height, width, _ = images.shape
    pipe.latent_shape(batch, (height, width))
    return call_compiled(_redraw, pipe, state, images, key, cond, edit, guidance, negative, rescale)


def _redraw(
    pipe: TextToImage,
    state: SamplerState,
    images: Array,
    key: Key,
    cond: TextCond,
    edit: Edit | None,
    *guiding: Any,
) -> Array:
    k_x, k_z = split(key, 2)
    x = add_noise(state, pipe.autoencoder.encode(images), k_x)
    return pipe.autoencoder.decode(sample(_model(pipe, cond, *guiding), state, x, k_z, cond, edit=edit))


def guided(
    pipe: TextToImage,
    cond: TextCond,
    guidance: ArrayLike | None,
    negative: TextCond | None = None,
    rescale: ArrayLike | None = None,
) -> ModelFn:
    """Give `pipe.model`, guided as `draw` guides it.

    Args:
      pipe: the text-to-image model.
      cond: from `pipe.encode`.
      guidance: the scale, f[] or f[B]; None for the model itself.
      negative: what guidance leads away from; None for `pipe.without_text(cond)`.
      rescale: the share of the contrast that guidance adds to take away again; None for none.

    Returns:
      The model.
    """
    _check_guidance(guidance, negative, rescale)
    return _model(pipe, cond, guidance, negative, rescale)


def _model(pipe: TextToImage, cond: TextCond, guidance: Any, negative: TextCond | None, rescale: Any) -> ModelFn:
    if guidance is None:
        return pipe.model
    away = pipe.without_text(cond) if negative is None else negative
    if rescale is None:
        return guidances.classifier_free(pipe.model, guidance, away)
    return guidances.rescaled(pipe.model, guidance, away, rescale)


def _check_guidance(guidance: Any, negative: Any, rescale: Any) -> None:
    for name, value in (("negative", negative), ("rescale", rescale)):
        if guidance is None and value is not None:
            raise ValueError(f"{name} acts on guidance alone: give guidance too, such as guidance=7.5.")
