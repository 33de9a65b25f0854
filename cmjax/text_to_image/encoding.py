"""Pictures and captions as arrays, many at once: latents, tokens, and what is said of captions that are cut."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from cmjax.text_to_image.pipeline import PromptTokens, TextToImage
from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["checked_buckets", "encoded", "tokenized", "warn_of_cuts"]

_LOOKED_AT = 1000  # captions that are counted to know whether many are cut


def checked_buckets(pipe: TextToImage, buckets: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """The sizes that are asked for, or the native one.

    Raises:
      ValueError: there are none, one is there twice, or does not fit the autoencoder.
    """
    sizes = [pipe.native_size] if buckets is None else [(int(h), int(w)) for h, w in buckets]
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError(f"buckets must be sizes (H, W), each once, got {buckets}.")
    for size in sizes:
        pipe.latent_shape(1, size)
    return sizes


def encoded(pipe: TextToImage, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode pictures u8[B, H, W, C]: means and deviations of their latents, f32[B, h, w, c]."""
    x = images.astype(np.float32) / np.float32(127.5) - 1
    if x.shape[-1] == 1 and pipe.autoencoder.config.in_channels == 3:
        x = np.repeat(x, 3, axis=-1)
    mean, deviation = pipe.autoencoder.encode_distribution(jnp.asarray(x))
    return np.asarray(mean), np.asarray(deviation)


def tokenized(pipe: TextToImage, texts: Sequence[str]) -> PromptTokens:
    """Turn captions into tokens, as `pipe.tokenize` does, but without a warning for each that is cut."""

    def rows(tokenizer: Tokenizer) -> np.ndarray:
        length = tokenizer.max_length
        return np.array([tokenizer.frame(tokenizer.pieces(text)[0][: length - 2], length) for text in texts], np.int32)

    return tuple(rows(tokenizer) for tokenizer in pipe.tokenizers)


def warn_of_cuts(pipe: TextToImage, captions: Iterable[Sequence[str]]) -> None:
    """Say once how many captions the text encoders do not read to the end, as far as the first ones show."""
    texts = list(itertools.islice(itertools.chain.from_iterable(captions), _LOOKED_AT))
    room = min(tokenizer.max_length for tokenizer in pipe.tokenizers) - 2
    cut = [text for text in texts if max(len(one.pieces(text)[0]) for one in pipe.tokenizers) > room]
    if cut:
        warnings.warn(
            f"captions must fit {room} tokens each, but {len(cut):,} of the first {len(texts):,} are longer, such as "
            f"{cut[0]!r:.60}: their ends are cut.",
            stacklevel=3,
        )
