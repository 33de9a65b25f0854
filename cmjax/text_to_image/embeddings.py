"""New words for a text-to-image model: textual inversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.io.embeddings import Embedding, as_embedding, read_embedding
from cmjax.models import Network, from_nnx
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["add_embedding"]

_MADE_FOR = {(768,): "Stable Diffusion 1", (1024,): "Stable Diffusion 2", (768, 1280): "Stable Diffusion XL"}
_MADE_FOR[1280,] = "the refiner of Stable Diffusion XL"


def add_embedding(
    pipe: TextToImage,
    embedding: str | Path | Embedding | Mapping[str, ArrayLike] | ArrayLike,
    token: str | None = None,
    *,
    revision: str | None = None,
) -> TextToImage:
    """Teach a text-to-image model a new word: a textual inversion embedding.

    The word becomes a token, and its vector a row of the text encoder's table. A word of n vectors becomes the tokens
    word, word_1, ..., word_(n-1), and stands for all of them in a prompt. It is found anywhere in a prompt, inside of
    other words too, and its case does not matter.

    Args:
      pipe: the model, which stays as it is.
      embedding: a file, folder or hub id, as for `cmjax.io.read_embedding`; what that returned; or arrays: f[D] or
        f[n, D] with a token, one such by its token, or two by `"clip_l"` and `"clip_g"` for Stable Diffusion XL.
      token: the word; None for the embedding's own.
      revision: a branch, tag or commit of the hub's repository.

    Returns:
      The model with one more word; `save` writes it for `load` and diffusers. It compiles anew, since the encoder's
      table has another shape.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: it is a hub id, and huggingface_hub is not installed.
      ValueError: the file is damaged or no embedding, or it is one for another model; a number is not finite; the
        token is a word already, or would join another's.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji", abstract=True)
      >>> width = pipe.text_encoders[0].config.hidden_size
      >>> taught = add_embedding(pipe, np.zeros((2, width)), "<my cat>")
      >>> len(taught.tokenizers[0]) - len(pipe.tokenizers[0])
      2

    References:
      Gal et al., An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion, 2022.

    Differs from diffusers: words of several vectors may have capital letters, a file without a token is named by its
    own name and not "emb_params", and both encoders of Stable Diffusion XL are taught at once.
    """
    if isinstance(embedding, str | Path):
        found = read_embedding(embedding, token, revision=revision)
    elif isinstance(embedding, Embedding):
        found = as_embedding(dict(zip(("clip_l", "clip_g"), embedding.vectors, strict=False)), token or embedding.token)
    else:
        found = as_embedding(embedding, token)
    if len(found.vectors) == 2 and pipe.is_refiner:  # which has the second encoder alone
        found = found._replace(vectors=found.vectors[1:])
    _check_widths(pipe, found)
    tokens = [found.token, *(f"{found.token}_{i}" for i in range(1, len(found.vectors[0])))]
    for tokenizer in pipe.tokenizers:
        _check_tokens(tokenizer, tokens)
    encoders = [
        _with_rows(encoder, vectors, len(tokenizer))
        for encoder, vectors, tokenizer in zip(pipe.text_encoders, found.vectors, pipe.tokenizers, strict=True)
    ]
    return pipe.replace(
        text_encoders=tuple(encoders), tokenizers=tuple(one.extended(tokens) for one in pipe.tokenizers)
    )


def _check_widths(pipe: TextToImage, found: Embedding) -> None:
    """Refuse an embedding that was made for another model, or that no prompt has room for."""
    widths = tuple(one.shape[1] for one in found.vectors)
    wanted = tuple(encoder.config.hidden_size for encoder in pipe.text_encoders)
    if widths != wanted:
        looks = f" It looks like one for {_MADE_FOR[widths]}." if widths in _MADE_FOR else ""
        raise ValueError(
            f"the embedding {found.token!r:.60} has vectors of width {_listed(widths)}, but the text encoders of this "
            f"model read {_listed(wanted)}.{looks}"
        )
    room = min(tokenizer.max_length for tokenizer in pipe.tokenizers) - 2
    if (count := len(found.vectors[0])) > room:
        raise ValueError(
            f"the embedding {found.token!r:.60} has {count} vectors, but a prompt of this model has room for {room} "
            "tokens."
        )


def _check_tokens(tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Refuse tokens that exist, and those that would be read as further vectors of a word."""
    known = {one.content.lower() for one in tokenizer.added}
    for token in (*tokens, f"{tokens[0]}_{len(tokens)}"):
        low = token.lower()
        if low in known or any(one in tokenizer for one in (token, low, f"{low}</w>")):
            other = f"<{tokens[0].strip('<>')}-2>"
            raise ValueError(
                f"token must be a new one, but the model has {token!r} already: give another, such as {other!r}."
            )
    word, _, number = tokens[0].rpartition("_")
    before = word if number == "1" else f"{word}_{int(number) - 1}" if number.isdecimal() else ""
    if word.lower() in known and before.lower() in known:
        raise ValueError(f"token {tokens[0]!r} would be read as a further vector of {word!r}: give another.")


def _with_rows(encoder: Network, rows: np.ndarray, first: int) -> Network:
    """Give a text encoder rows for the tokens from `first` on."""
    module = encoder.module
    table = module.text_model.embeddings.token_embedding.embedding
    old = table.get_value()
    rows = rows.astype(old.dtype)
    if not np.isfinite(rows.astype(np.float32)).all():
        raise ValueError(f"an embedding must hold finite numbers, but one of these is infinite in {old.dtype}.")
    size = max(old.shape[0], first + len(rows))
    module.config = dataclasses.replace(encoder.config, vocab_size=size)
    if isinstance(old, jax.ShapeDtypeStruct):
        table.set_value(jax.ShapeDtypeStruct((size, old.shape[1]), old.dtype))
    else:
        rest = jnp.zeros((size - old.shape[0], old.shape[1]), old.dtype)
        table.set_value(jnp.concatenate([old, rest]).at[first : first + len(rows)].set(rows))
    names = [name for name, is_one in zip(encoder.leaves(), encoder.is_trained, strict=True) if is_one]

    def is_trained(path: tuple[Any, ...], _: Any) -> bool:
        start = ".".join(map(str, path))
        return any(name == start or name.startswith(f"{start}.") for name in names)

    return from_nnx(module, trained=is_trained)


def _listed(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))
