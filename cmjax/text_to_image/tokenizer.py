"""Texts to token numbers, as CLIP's text encoders want them: the only place where text exists."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.text_to_image.tokenizer_files import NAMED, AddedToken, read_folder, write_folder

__all__ = ["AddedToken", "Tokenizer", "check_length", "check_prompts"]

# Contractions, words, single digits, and runs of anything else.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """CLIP's tokenizer: lower-cased words to byte pairs, between a token that begins a text and one that ends it.

    It gives the ids that transformers' `CLIPTokenizer` gives. It holds no arrays, and compares by content through a
    hash that is computed once, so that it is cheap as a static part of a pytree.

    Args:
      vocab: the tokens, each at its id.
      merges: pairs of tokens that become one, the most urgent first.
      bos_token: begins each text.
      eos_token: ends each text.
      unk_token: stands for what has no token.
      pad_token: fills the rest. Each tokenizer's files say which: the second one of Stable Diffusion XL, and that of
        Stable Diffusion 2, take "!" (id 0); then every "!" of a prompt is this token too.
      max_length: tokens of one text, the first and the last included.
      added: the tokens that are found before words are split. Those that `vocab` does not have (textual inversion) get
        the ids behind it, in this order. The four tokens above always belong to them; list one to say how it is found.

    Raises:
      ValueError: tokens repeat, one of the four is not there, or max_length leaves no room for words.

    Example:
      >>> vocab = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
      >>> tokenizer = Tokenizer(vocab, [("a", "b</w>")], max_length=6)
      >>> tokenizer(["AB a", ""])
      array([[5, 4, 2, 6, 6, 6],
             [5, 6, 6, 6, 6, 6]], dtype=int32)

    References:
      Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016; Radford et al., Learning
      Transferable Visual Models From Natural Language Supervision, 2021, section 2.4.
    """

    vocab: Sequence[str]
    merges: Iterable[tuple[str, str]]
    bos_token: str = "<|startoftext|>"
    eos_token: str = "<|endoftext|>"
    unk_token: str = "<|endoftext|>"
    pad_token: str = "<|endoftext|>"
    max_length: int = 77
    added: Sequence[AddedToken] = ()

    def __post_init__(self):
        ids = {token: i for i, token in enumerate(self.vocab)}
        added = {one.content: one for one in (AddedToken(*one) for one in self.added)}
        for name in NAMED:
            token = getattr(self, name)
            if token not in ids and (name == "unk_token" or token not in added):
                raise ValueError(f"{name} must be a token of vocab, but that has no {token!r:.60}.")
            added.setdefault(token, AddedToken(token))
        in_order = sorted(added.values(), key=lambda one: ids.get(one.content, len(ids)))
        plain = {"vocab": tuple(self.vocab), "merges": tuple(map(tuple, self.merges)), "added": tuple(in_order)}
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if repeated := len(self.vocab) - len(ids):
            raise ValueError(f"vocab must name each token once, but {repeated} of its tokens repeat others.")
        check_length(self.max_length)

    # ---- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer's folder as transformers writes it, at any of its versions.

        Args:
          folder: holds `vocab.json` and `merges.txt`, or `tokenizer.json`, which goes first; and what else there is of
            `special_tokens_map.json`, `tokenizer_config.json` and `added_tokens.json`. Nothing in them is executed.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: a file is damaged, or for a tokenizer of another kind.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; a tokenizer's folder holds vocab.json.")
        arguments = read_folder(folder)
        try:
            tokenizer = cls(**arguments)
            _ = tokenizer._backend  # merges of tokens that do not exist show here
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        return tokenizer

    def write(self, folder: str | Path) -> None:
        """Write all files that transformers reads, of any of its versions.

        Args:
          folder: new or existing; the folder above it must exist. Older files there are replaced.

        Raises:
          OSError: it cannot be written.
        """
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        write_folder(Path(folder), self._backend, arguments)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def __call__(self, prompts: Sequence[str], max_length: int | None = None) -> np.ndarray:
        """Turn texts into tokens, of one length each.

        Args:
          prompts: a list of texts, B of them; "" is one.
          max_length: the length L, the tokens that begin and end a text included; None for the tokenizer's own.

        Returns:
          i32[B, L]. A longer text is cut, and a warning says which words fell off.

        Raises:
          TypeError: prompts are not a list of texts.
          ValueError: there are none, or max_length is below 3.
        """
        length = self.max_length if max_length is None else check_length(max_length)
        rows = []
        for prompt in check_prompts(prompts):
            ids, starts = self.pieces(prompt)
            if len(ids) > length - 2:
                cut = prompt[starts[length - 2] :]
                warnings.warn(
                    f"prompts must fit {length - 2} tokens each, and {prompt!r:.60} has {len(ids)}: its end is cut, "
                    f"{cut!r:.200}.",
                    stacklevel=2,
                )
            rows.append(self.frame(ids[: length - 2], length))
        return np.array(rows, np.int32)

    def pieces(self, text: str) -> tuple[list[int], list[int]]:
        """Give the tokens of a text without those that begin, end and fill it, and where in the text each starts.

        An added token stands for all of its vectors, `token`, `token_1`, `token_2`, ..., where there are such.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
        if not self._of_several_vectors:
            return ids, starts
        groups = [self._of_several_vectors.get(i, (i,)) for i in ids]
        starts = [start for start, group in zip(starts, groups, strict=True) for _ in group]
        return [i for group in groups for i in group], starts

    def frame(self, ids: Sequence[int], length: int) -> list[int]:
        """Put the tokens that begin, end and fill a text around its own; at most length - 2 of them."""
        return [self.bos_id, *ids, self.eos_id] + [self.pad_id] * (length - 2 - len(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of tokens, lower-cased; those that begin, end and fill a text are left out.

        Raises:
          ValueError: an id is of no token.

        Example:
          >>> vocab = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
          >>> Tokenizer(vocab, [("a", "b</w>")]).decode([5, 4, 2, 6])
          'ab a'
        """
        known, ids = len(self), [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < known]:
            raise ValueError(f"ids must be from 0 to {known - 1}, got {wrong[0]}.")
        return self._backend.decode(ids).replace("</w>", " ").strip()

    def extended(self, tokens: Iterable[str]) -> Tokenizer:
        """Give a copy with more tokens, whose ids follow the others'. Their case does not matter in a text.

        Example:
          >>> vocab = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
          >>> tokenizer = Tokenizer(vocab, [("a", "b</w>")], max_length=6).extended(["<me>", "<me>_1"])
          >>> tokenizer(["a <Me>"]).tolist()
          [[5, 2, 7, 8, 6, 6]]
        """
        more = (AddedToken(token, normalized=True) for token in tokens)
        return dataclasses.replace(self, added=(*self.added, *more))

    @property
    def words(self) -> tuple[str, ...]:
        """The tokens behind those of the vocabulary, but for special ones: those of textual inversion."""
        others = {*self.vocab, *(getattr(self, name) for name in NAMED)}
        return tuple(one.content for one in self.added if one.content not in others)

    def __contains__(self, token: str) -> bool:
        """Whether there is such a token."""
        return self._backend.token_to_id(token) is not None

    def __len__(self) -> int:
        """The number of tokens: every id is below it, and a text encoder needs as many rows."""
        return self._backend.get_vocab_size()

    @property
    def bos_id(self) -> int:
        """The id of the token that begins each text."""
        return self._backend.token_to_id(self.bos_token)

    @property
    def eos_id(self) -> int:
        """The id of the token that ends each text."""
        return self._backend.token_to_id(self.eos_token)

    @property
    def pad_id(self) -> int:
        """The id of the token that fills the rest."""
        return self._backend.token_to_id(self.pad_token)

    # ---- identity ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _digest(self) -> bytes:
        content = json.dumps([getattr(self, field.name) for field in dataclasses.fields(self)])
        return hashlib.sha256(content.encode()).digest()

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._digest)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self._digest == other._digest if isinstance(other, Tokenizer) else NotImplemented

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, pad_token={self.pad_token!r}, max_length={self.max_length})"

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _of_several_vectors(self) -> dict[int, tuple[int, ...]]:
        """Of each added token that stands for several vectors, the ids of all."""
        names, found = {one.content for one in self.added}, {}
        for name in names:
            group = [name]
            while (following := f"{name}_{len(group)}") in names:
                group.append(following)
            if len(group) > 1:
                found[self._backend.token_to_id(name)] = tuple(map(self._backend.token_to_id, group))
        return found

    @functools.cached_property
    def _backend(self) -> Any:
        """The `tokenizers` object: built from values, never from a program in a file."""
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, processors

        try:
            model = models.BPE(
                {token: i for i, token in enumerate(self.vocab)},
                list(self.merges),
                unk_token=self.unk_token,
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
            )
        except Exception as error:  # the library raises no class of its own
            raise ValueError(f"merges must be pairs of tokens of vocab: {error}.") from error
        backend = tokenizers.Tokenizer(model)
        lowered = [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence(lowered)
        words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = tokenizers.decoders.ByteLevel()
        special = {getattr(self, name) for name in NAMED}
        for one in self.added:
            add = backend.add_special_tokens if one.content in special else backend.add_tokens
            add([tokenizers.AddedToken(**one._asdict())])
        ends: Any = ((token, backend.token_to_id(token)) for token in (self.eos_token, self.bos_token))
        # For those who read the file that is written; `frame` does it here.
        backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
        return backend


def check_prompts(prompts: Any) -> Sequence[str]:
    """Refuse anything but a list of texts, at least one.

    Raises:
      TypeError: it is no list, or something in it is no text.
      ValueError: it is empty, or a text cannot be encoded.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of texts, got one text; write [{prompts!r:.40}].")
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of texts, got {type(prompts).__name__}.")
    if not prompts:
        raise ValueError('prompts must be at least one text, got an empty list; the empty prompt is [""].')
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts must be texts, but prompts[{i}] is {type(prompt).__name__}: {prompt!r:.40}.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompts[{i}] is no valid text: {error.reason} at {error.start}; remove it.") from error
    return prompts


def check_length(length: Any) -> int:
    """Refuse a length of texts that leaves no room for words between their ends.

    Raises:
      ValueError: it does.
    """
    if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 3:
        raise ValueError(f"max_length must be a whole number of at least 3 (two are for the ends), got {length!r}.")
    return int(length)
