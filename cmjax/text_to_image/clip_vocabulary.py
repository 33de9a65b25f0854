"""CLIP's vocabulary as OpenAI published it, in a package that carries it: for models whose files have no tokenizer."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import zlib
from pathlib import Path

from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["FILE", "REMEDY", "installed_vocabulary", "read_vocabulary"]

FILE = "bpe_simple_vocab_16e6.txt.gz"
REMEDY = (
    "give the tokenizer's folder, or that of a model with the same one (tokenizer=, on the command line --tokenizer), "
    "or install a package that carries CLIP's vocabulary, 1.4 MB under MIT: pip install --no-deps clip-anytorch."
)

_PACKAGES = ("clip", "open_clip")  # of clip-anytorch or openai-clip, and of open_clip_torch
_MERGES = 48_894
_LONGEST = 1 << 23  # bytes, unpacked


def installed_vocabulary() -> Path | None:
    """Find the file of the vocabulary in an installed package, which is not imported; None where none has it."""
    for name in _PACKAGES:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        for place in (found.submodule_search_locations or ()) if found else ():
            if (file := Path(place) / FILE).is_file():
                return file
    return None


@functools.cache
def read_vocabulary(path: Path) -> Tokenizer:
    """Read OpenAI's file: merges, one a line; the tokens follow from them.

    Args:
      path: a file with the content of `bpe_simple_vocab_16e6.txt.gz`.

    Returns:
      The tokenizer of Stable Diffusion 1, which fills texts with the token that ends them.

    Raises:
      ValueError: it is another file, or damaged.
    """
    try:
        with gzip.open(path) as file:
            text = file.read(_LONGEST).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be OpenAI's {FILE}, but it cannot be unpacked: {error}.") from error
    pairs = [tuple(line.split()) for line in text.split("\n")[1 : 1 + _MERGES]]
    if len(pairs) != _MERGES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} must be OpenAI's {FILE}, with {_MERGES} merges, one a line; it holds something else.")
    symbols = _symbols()
    vocab = [*symbols, *(f"{one}</w>" for one in symbols), *(a + b for a, b in pairs)]
    return Tokenizer([*vocab, "<|startoftext|>", "<|endoftext|>"], [(a, b) for a, b in pairs])


def _symbols() -> list[str]:
    """The characters that stand for bytes, in order: those that are seen as they are, then the rest from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in seen]
    return [*map(chr, seen), *(chr(256 + i) for i in range(len(rest)))]
