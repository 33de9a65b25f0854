"""Figures of pictures that texts asked for: how well they fit their texts, and how much they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cmjax._compiled import call_compiled
from cmjax._struct import Struct
from cmjax.evaluation.features import Features
from cmjax.types import Array

__all__ = ["WEIGHT", "Clip", "ClipFeatures", "Judge", "Judged", "clip_score", "diversity", "right", "text_vectors"]

WEIGHT = 2.5  # of the CLIPScore that Hessel et al. publish


class Clip(Protocol):
    """What `clip_score` needs: texts and pictures as unit vectors of one space, such as `text_to_image.load_clip`."""

    def tokenize(self, prompts: Sequence[str], /) -> np.ndarray:
        """Turn texts into tokens, i32[B, L]."""
        ...

    def embed_texts(self, tokens: Array, /) -> Array:
        """Embed texts, f32[B, d]."""
        ...

    def embed_images(self, images: Array, /) -> Array:
        """Embed pictures f[B, H, W, 3] in [-1, 1], f32[B, d]."""
        ...


class Judged(NamedTuple):
    """What a `Judge` sees: features f32[B, d], and of each attribute the number of what it sees, i32[B]."""

    features: Array
    seen: dict[str, Array]


@runtime_checkable
class Judge(Protocol):
    """An extractor that also names what it sees, and reads off a prompt what was asked for.

    It is a callable pytree like every `Extractor`. Attributes are words of its own, such as "subject" or "colour", with
    numbers for their values.
    """

    def __call__(self, images: Array, /) -> Features:
        """Compute the features of images."""
        ...

    def see(self, images: Array, /) -> Judged:
        """Look at images f32[B, H, W, C] in [-1, 1]; it runs inside `jax.jit`."""
        ...

    def asked(self, prompt: str, /) -> dict[str, int]:
        """Say what a prompt asks for; attributes that it leaves open are not there."""
        ...


def clip_score(images: Any, prompts: Sequence[str] | str, clip: Clip, *, w: float = 1.0, batch: int = 32) -> np.ndarray:
    """Measure how well pictures fit their texts: w max(cos(picture, text), 0), the cosine between CLIP's vectors.

    The default w = 1 is the cosine itself, which most papers on text to image give (some 100 times as large). Hessel et
    al. multiply by w = 2.5 (`evaluation.WEIGHT`), and put "A photo depicts" before each text. Here texts are taken as
    they are: put it there yourself. Scores of different CLIPs cannot be compared.

    Args:
      images: f[N, H, W, 3] in [-1, 1], of any size that CLIP preprocesses; or u8[N, H, W, 3].
      prompts: N texts, or one for all pictures.
      clip: such as `cmjax.text_to_image.load_clip("openai/clip-vit-base-patch32")`.
      w: the factor.
      batch: pictures embedded at once.

    Returns:
      f64[N], the score of each picture.

    Raises:
      ValueError: there is not one text for each picture, or there are no pictures.

    Example:
      >>> import jax.numpy as jnp
      >>> class Means:  # the mean colour is the vector, and each letter asks for a colour
      ...     def tokenize(self, prompts):
      ...         return np.array([["rgb".index(prompt)] for prompt in prompts])
      ...     def embed_texts(self, tokens):
      ...         return jnp.eye(3)[tokens[:, 0]]
      ...     def embed_images(self, images):
      ...         colour = images.mean((1, 2)) + 1
      ...         return colour / jnp.linalg.norm(colour, axis=-1, keepdims=True)
      >>> red = np.zeros((2, 4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
      >>> clip_score(red, ["r", "g"], Means()).round(3).tolist()
      [1.0, 0.0]

    References:
      Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021, equation 1 (w = 2.5);
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.3.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be f[N, H, W, 3], at least one, got {images.dtype}{list(images.shape)}.")
    texts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if len(texts) != len(images):
        raise ValueError(f"prompts must be one text, or one for each of the {len(images)} images, got {len(texts)}.")
    vectors, rows = text_vectors(texts, clip, batch=batch)
    parts = []
    for first in range(0, len(images), batch):
        some = images[first : first + batch]
        some = some.astype(np.float32) / np.float32(127.5) - 1 if some.dtype == np.uint8 else some.astype(np.float32)
        parts.append(np.asarray(call_compiled(_embed_images, clip, _filled(some, batch)))[: len(some)])
    cosines = (np.concatenate(parts).astype(np.float64) * vectors[rows]).sum(axis=1)
    return w * np.maximum(cosines, 0)


def text_vectors(prompts: Sequence[str], clip: Clip, *, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Embed texts, each different one once.

    Args:
      prompts: N texts.
      clip: as for `clip_score`.
      batch: texts embedded at once.

    Returns:
      The vectors f64[M, d] of the M different texts, and the row of each prompt, i64[N].
    """
    different = list(dict.fromkeys(prompts))
    number = {prompt: i for i, prompt in enumerate(different)}
    tokens, parts = clip.tokenize(different), []
    for first in range(0, len(different), batch):
        some = tokens[first : first + batch]
        parts.append(np.asarray(call_compiled(_embed_texts, clip, _filled(some, batch)))[: len(some)])
    return np.concatenate(parts).astype(np.float64), np.array([number[prompt] for prompt in prompts])


def _embed_images(clip: Any, images: Array) -> Array:
    return clip.embed_images(images)


def _embed_texts(clip: Any, tokens: Array) -> Array:
    return clip.embed_texts(tokens)


def _filled(array: np.ndarray, batch: int) -> np.ndarray:
    """Fill a last batch up with its first row, so that all batches run one program."""
    return np.concatenate([array, np.repeat(array[:1], batch - len(array), axis=0)])


def diversity(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Measure how much the pictures of each text differ: the mean distance between two of them, in their features.

    Args:
      features: f[N, d].
      groups: i[N], which text each picture is of, counted from 0.

    Returns:
      f64[G], of each text; NaN for one with fewer than two pictures. Texts whose pictures are all alike get 0.

    Raises:
      ValueError: there is not one group for each picture.

    Example:
      >>> diversity(np.array([[0.0], [3.0], [5.0], [5.0]]), np.array([0, 0, 1, 1])).tolist()
      [3.0, 0.0]
    """
    features, groups = np.asarray(features, np.float64), np.asarray(groups)
    if features.ndim != 2 or groups.shape != features.shape[:1] or groups.dtype.kind not in "iu":
        raise ValueError(
            f"groups must be i[N], one for each of the features f[N, d], got {list(groups.shape)} and "
            f"{list(features.shape)}."
        )
    found = np.full(int(groups.max(initial=-1)) + 1, np.nan)
    for group in np.unique(groups):
        own = features[groups == group]
        if len(own) > 1:
            apart = [np.linalg.norm(own[i + 1 :] - own[i], axis=1).sum() for i in range(len(own) - 1)]
            found[group] = sum(apart) / (len(own) * (len(own) - 1) / 2)
    return found


def right(seen: Mapping[str, np.ndarray], asked: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
    """Compare what a judge sees in pictures with what was asked for; the mean of each array is the share that is right.

    Args:
      seen: of each attribute the number of what it sees, i[N].
      asked: of each picture, from `Judge.asked`.

    Returns:
      Of each attribute 1 where it is right, 0 where it is wrong, and NaN where the text leaves it open, f64[N]; and
      "all", whether all is right that was asked for. `np.nanmean` gives the shares.

    Raises:
      ValueError: there is not one entry of `asked` for each picture.

    Example:
      >>> found = right({"subject": np.array([4, 2]), "colour": np.array([1, 1])}, [{"subject": 4, "colour": 0}, {}])
      >>> {name: values.tolist() for name, values in found.items()}
      {'subject': [1.0, nan], 'colour': [0.0, nan], 'all': [0.0, nan]}
    """
    found = {}
    for name, values in seen.items():
        if len(values) != len(asked):
            raise ValueError(f"asked must be one for each of the {len(values)} pictures, got {len(asked)}.")
        wanted = np.array([one.get(name, np.nan) for one in asked], np.float64)
        found[name] = np.where(np.isnan(wanted), np.nan, np.asarray(values) == wanted)
    if found:
        columns = np.stack(list(found.values()))
        is_open = np.isnan(columns)
        found["all"] = np.where(is_open.all(axis=0), np.nan, (is_open | (columns == 1)).all(axis=0))
    return found


class ClipFeatures(Struct):
    """CLIP's vectors of pictures, of length 1, as an extractor."""

    clip: Any

    def __call__(self, images: Array) -> Features:
        """Embed images f32[B, H, W, 3] in [-1, 1]."""
        return Features(self.clip.embed_images(images))
