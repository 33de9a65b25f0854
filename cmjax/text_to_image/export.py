"""What `cmjax.artifact.save` needs to know of a text-to-image model: tokens in, pictures out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cmjax.io.parts import TOKENIZERS
from cmjax.text_to_image.draw import Prompt, draw_prompt
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.text_to_image.tokenizer import Tokenizer
from cmjax.types import Array

__all__ = ["for_export", "read_tokenizers"]


def for_export(pipe: TextToImage, *, size: tuple[int, int] | None = None, guided: bool = False) -> dict[str, Any]:
    """Describe a text-to-image model to `cmjax.artifact.save`, as its keyword arguments.

    The program takes the prompt's tokens, and the artifact holds the tokenizers that make them.

    Args:
      pipe: the model.
      size: of the pictures, (H, W); None for the native size. It is fixed.
      guided: whether the program takes a scale of guidance and the tokens of a negative prompt too. Each step then
        costs twice as much.

    Returns:
      image, noise, prompt, generate and also.

    Raises:
      ValueError: the size does not divide, or the network is told its guidance and cannot be guided.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji", abstract=True)
      >>> arguments = for_export(pipe)
      >>> arguments["image"], arguments["noise"], arguments["prompt"]["tokens"][0].shape
      ((64, 64, 3), (16, 16, 4), (24,))
    """
    noise = pipe.latent_shape(1, size)[1:]
    factor = pipe.autoencoder.downsampling
    tokens = [jax.ShapeDtypeStruct((one.max_length,), "int32") for one in pipe.tokenizers]
    scale = jax.ShapeDtypeStruct((), "float32")
    prompt: dict[str, Any] = {"tokens": tokens}
    if pipe.unet.config.time_cond_proj_dim is not None:
        if guided:
            raise ValueError("the network is told its guidance: it cannot be guided beside that.")
        prompt["told"] = scale
    if guided:
        prompt |= {"negative": tokens, "guidance": scale}

    def also(folder: Path) -> None:
        for name, tokenizer in zip(TOKENIZERS, pipe.tokenizers, strict=False):
            (folder / name).mkdir()
            tokenizer.write(folder / name)

    return {
        "image": (noise[0] * factor, noise[1] * factor, 3),
        "noise": noise,
        "prompt": prompt,
        "generate": _draw,
        "also": also,
    }


def _draw(pipe: TextToImage, state: Any, keys: Any, shape: tuple[int, ...], asked: Mapping[str, Any]) -> Array:
    """`draw_prompt`, of a mapping in the place of a `Prompt`."""
    lists = {name: tuple(asked[name]) for name in ("tokens", "negative") if name in asked}
    rest = {name: asked[name] for name in ("guidance", "told") if name in asked}
    drawn = draw_prompt(pipe, state, keys, shape, Prompt(**lists, **rest))
    assert not isinstance(drawn, tuple)
    return drawn


def read_tokenizers(folder: Path) -> tuple[Tokenizer, ...]:
    """Read the tokenizers of an artifact, in the order of its text encoders.

    Raises:
      FileNotFoundError: it has none.
      ValueError: one is damaged.
    """
    there = [folder / name for name in TOKENIZERS if (folder / name).is_dir()]
    if not there:
        raise FileNotFoundError(f"{folder} has no {TOKENIZERS[0]}/: texts cannot become tokens without it.")
    return tuple(Tokenizer.read(path) for path in there)
