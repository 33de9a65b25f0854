"""Long texts in several windows, and words that weigh more or less than others."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32
from cmjax._struct import Struct
from cmjax.text_to_image.tokenizer import Tokenizer, check_length, check_prompts
from cmjax.types import Array

__all__ = ["Tokens", "apply_weights", "tokenize_windows"]

_BREAK = re.compile(r"\s*\bBREAK\b\s*")
# An escaped character, a bracket, or the end of a weighted part, such as ":1.2)".
_MARK = re.compile(r"\\([()\[\]\\])|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]")
_STEP = 1.1


class Tokens(Struct):
    """Texts as windows of tokens, and how much each token weighs.

    An encoder takes the windows one by one, as texts of their own: `ids` as i32[B W, L]. Of the contexts f[B W, L, D],
    it applies the weights by `apply_weights(context, weights)`, and joins a text's windows on the axis of tokens:
    f[B, W L, D]. The pooled output is the first window's.

    Attributes:
      ids: i32[B, W, L].
      weights: f32[B, W, L]; 1 for the tokens that begin, end and fill a window.
    """

    ids: Array
    weights: Array


def tokenize_windows(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    windows: int | None = None,
    weights: bool = True,
    max_length: int | None = None,
) -> Tokens:
    r"""Turn texts into windows of tokens, so that long ones keep their end, and words may weigh more or less.

    `(word)` weighs 1.1 times as much, `[word]` 1/1.1 times, `(word:1.3)` 1.3 times; inside each other they multiply.
    `\(`, `\)`, `\[`, `\]` and `\\` are the characters. `BREAK` begins a new window. The tokens are those of the text
    without these marks.

    All texts get as many windows as the longest. A text draws another picture with more windows, even empty ones, since
    their tokens are read too: draw texts of the same number together, or give `windows`.

    Args:
      tokenizer: its length L is that of each window; two tokens of a window begin and end it.
      prompts: a list of texts, B of them.
      windows: the number of windows W; None for as many as the longest text needs. A text that needs more is cut, with
        a warning that says which words fell off.
      weights: whether brackets are weights. If not they are characters, and every token weighs 1.
      max_length: the length L; None for the tokenizer's own.

    Returns:
      The windows and weights, of NumPy arrays.

    Raises:
      TypeError: prompts are not a list of texts.
      ValueError: there are none, a bracket has no partner, or windows or max_length is too small.

    Example:
      >>> vocab = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
      >>> tokens = tokenize_windows(Tokenizer(vocab, [("a", "b</w>")], max_length=4), ["a (ab:1.5) b"])
      >>> tokens.ids.tolist(), tokens.weights.tolist()
      ([[[5, 2, 4, 6], [5, 3, 6, 6]]], [[[1.0, 1.0, 1.5, 1.0], [1.0, 1.0, 1.0, 1.0]]])
    """
    if windows is not None and (isinstance(windows, bool) or not isinstance(windows, int) or windows < 1):
        raise ValueError(f"windows must be a positive whole number or None, got {windows!r}.")
    length = tokenizer.max_length if max_length is None else check_length(max_length)
    texts = [_split(tokenizer, prompt, length - 2, weights) for prompt in check_prompts(prompts)]
    count = max(map(len, texts)) if windows is None else windows
    ids = np.empty((len(texts), count, length), np.int32)
    by_token = np.ones(ids.shape, np.float32)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if len(text) > count:
            cut = " ".join(tokenizer.decode(window) for window, _ in text[count:])
            warnings.warn(
                f"prompts must fit {count} window{'s'[: count - 1]} each, and {prompt!r:.60} needs {len(text)}: its "
                f"end is cut, {cut!r:.200}.",
                stacklevel=2,
            )
        for j, (window, weight) in enumerate((text + [([], [])] * count)[:count]):
            ids[i, j] = tokenizer.frame(window, length)
            by_token[i, j, 1 : len(weight) + 1] = weight
    return Tokens(ids, by_token)  # pyright: ignore[reportArgumentType]


def apply_weights(context: Array, weights: Array) -> Array:
    """Weigh the tokens of each window: multiply, then restore the window's mean.

    z' = m z mean(z) / mean(m z), with means over the tokens and channels of a window. Weights that are all equal
    change nothing, therefore.

    Args:
      context: z, f[..., L, D], what an encoder makes of windows of L tokens.
      weights: m, f[..., L].

    Returns:
      f[..., L, D], in the dtype of the context.

    Example:
      >>> z = jnp.array([[[1.0, 3.0], [2.0, 2.0]]])
      >>> apply_weights(z, jnp.array([[3.0, 1.0]]))
      Array([[[1.5, 4.5],
              [1. , 1. ]]], dtype=float32)

    References:
      The rule of a widely used interface for Stable Diffusion (A1111's), which is in no paper.
    """
    z = f32(context)
    weighted = z * weights[..., None]
    mean, now = (x.mean(axis=(-2, -1), keepdims=True) for x in (z, weighted))
    is_zero = now == 0  # nothing to restore
    return (weighted * jnp.where(is_zero, 1.0, mean / jnp.where(is_zero, 1.0, now))).astype(context.dtype)


def _split(tokenizer: Tokenizer, prompt: str, room: int, has_weights: bool) -> list[tuple[list[int], list[float]]]:
    """Tokens and weights of each window of a text, at least one; a part without words takes no window."""
    text, weights = _weighted(prompt) if has_weights else (prompt, [1.0] * len(prompt))
    found, start = [], 0
    for stop, after in [*(match.span() for match in _BREAK.finditer(text)), (len(text), len(text))]:
        ids, starts = tokenizer.pieces(text[start:stop])
        by_token = [weights[start + k] for k in starts]
        found += [(ids[i : i + room], by_token[i : i + room]) for i in range(0, len(ids), room)]
        start = after
    return found or [([], [])]


def _weighted(prompt: str) -> tuple[str, list[float]]:
    """A prompt without its brackets, and the weight of each of its characters."""
    text: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int, int]] = []  # bracket, its place in the prompt, characters before it

    def close(bracket: str, factor: float, at: int) -> None:
        if not opened or opened[-1][0] != bracket:
            _refuse(prompt, ")" if bracket == "(" else "]", at)
        for i in range(opened.pop()[2], len(weights)):
            weights[i] *= factor

    done = 0
    for match in _MARK.finditer(prompt):
        mark, at = match[0], match.start()
        if match[2] and not (opened and opened[-1][0] == "("):  # ":1.2)" of no bracket: the bracket alone is one
            at, mark = match.end() - 1, ")"
        literal = prompt[done:at] + (match[1] or "")
        text.append(literal)
        weights += [1.0] * len(literal)
        done = match.end()
        if match[1]:
            continue
        if mark in "([":
            opened.append((mark, at, len(weights)))
        elif mark == "]":
            close("[", 1 / _STEP, at)
        else:
            close("(", float(match[2]) if match[2] else _STEP, at)
    if opened:
        _refuse(prompt, *opened[-1][:2])
    literal = prompt[done:]
    return "".join([*text, literal]), weights + [1.0] * len(literal)


def _refuse(prompt: str, bracket: str, at: int) -> None:
    raise ValueError(
        f"prompts must close each bracket that they open, but {bracket!r} at {at} of {prompt!r:.60} has no partner; "
        f"write \\{bracket} for the character, or weights=False for no weights."
    )
