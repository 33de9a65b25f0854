"""A tokenizer's folder, as transformers writes it at any version: what it says, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cmjax.io.atomic import atomic_file
from cmjax.io.configs import read_json, write_json

__all__ = ["NAMED", "AddedToken", "read_folder", "write_folder"]

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_WHOLE = "tokenizer.json"
_CLASSES = (None, "CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_NO_LIMIT = 1 << 20  # transformers writes 1e30 where a tokenizer has no limit


class AddedToken(NamedTuple):
    """A token that is found in the text before words are split.

    Attributes:
      content: its text.
      normalized: whether it is looked for in lower-cased text, so that its case does not matter.
      lstrip: whether it takes the spaces before it.
      rstrip: whether it takes the spaces after it.
      single_word: whether it must stand alone.
    """

    content: str
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def read_folder(folder: Path) -> dict[str, Any]:
    """Read what a tokenizer's folder says, as arguments of `Tokenizer`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or for a tokenizer of another kind.
    """
    config = _read_object(folder / _CONFIG)
    if (kind := config.get("tokenizer_class")) not in _CLASSES:
        raise ValueError(f"{folder / _CONFIG} is for {kind!r:.60}; cmjax reads CLIPTokenizer.")
    whole = _read_object(folder / _WHOLE)
    vocab, merges = _read_whole(folder, whole) if whole else _read_halves(folder)
    if "added_tokens_decoder" not in config:  # else it says all, and the older file is not read
        config = {**config, **_read_object(folder / _MAP)}
    listed = _read_added(folder, config, whole)
    if "pad_token" not in config and isinstance(whole.get("padding"), dict):
        config = {**config, "pad_token": whole["padding"].get("pad_token")}
    said: dict[str, Any] = {name: _added(config[name], folder) for name in NAMED if config.get(name) is not None}
    arguments: dict[str, Any] = {name: one.content for name, one in said.items()}
    length = config.get("model_max_length")
    if isinstance(length, int | float) and length < _NO_LIMIT:
        arguments["max_length"] = int(length)
    # Of several descriptions of one token the last holds, unless it is among those listed with ids.
    _check_ids(folder, listed, vocab)
    by_id = {one.content: one for _, one in sorted(listed.items())}
    there = set(vocab)
    added = {**by_id, **{one.content: one for one in said.values() if one.content in there}, **by_id}
    return {"vocab": vocab, "merges": merges, "added": tuple(added.values()), **arguments}


def write_folder(folder: Path, backend: Any, arguments: Mapping[str, Any]) -> None:
    """Write a tokenizer's folder: vocab.json and merges.txt, tokenizer.json, and the two files that say the rest.

    The same is said twice, since newer versions go by tokenizer.json where there is one, even an old one.

    Args:
      folder: is made if it does not exist.
      backend: the `tokenizers` object.
      arguments: those of `Tokenizer`.
    """
    folder.mkdir(exist_ok=True)
    merges = [" ".join(pair) for pair in arguments["merges"]]
    whole = json.loads(backend.to_str())
    whole["model"]["merges"] = merges  # as texts, which older versions read too
    ids = {one.content: backend.token_to_id(one.content) for one in arguments["added"]}
    named = {name: arguments[name] for name in NAMED}
    added = {
        str(ids[one.content]): {**one._asdict(), "special": one.content in named.values()} for one in arguments["added"]
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": arguments["max_length"], **named}
    write_json({token: i for i, token in enumerate(arguments["vocab"])}, folder / "vocab.json")
    with atomic_file(folder / "merges.txt") as temporary:
        temporary.write_bytes("\n".join(["#version: 0.2", *merges, ""]).encode())
    write_json(whole, folder / _WHOLE)
    write_json(named, folder / _MAP)
    write_json({**config, "do_lower_case": True, "added_tokens_decoder": added}, folder / _CONFIG)


# ---- the vocabulary --------------------------------------------------------------------------------------------------


def _read_halves(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Read vocab.json and merges.txt."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: a tokenizer's folder holds vocab.json and merges.txt, or tokenizer.json, as "
                "transformers writes them. Copy it from where the model came from."
            )
    vocab, path = _by_id(read_json(folder / "vocab.json"), folder / "vocab.json"), folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}.") from error
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    return vocab, _pairs(pairs, path)


def _read_whole(folder: Path, content: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Read the vocabulary of tokenizer.json; its other parts are CLIP's in each."""
    path, model = folder / _WHOLE, content.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE" or model.get("end_of_word_suffix") != "</w>":
        raise ValueError(f"{path} is for a tokenizer of another kind ({kind}); cmjax reads CLIPTokenizer.")
    merges = model.get("merges")
    pairs = [one.split(" ") if isinstance(one, str) else one for one in merges] if isinstance(merges, list) else [[]]
    return _by_id(model.get("vocab"), path), _pairs(pairs, path)


def _by_id(ids: Any, path: Path) -> tuple[str, ...]:
    """Order the tokens by their ids, which must be 0, 1, and so on."""
    if not isinstance(ids, dict) or not ids:
        raise ValueError(f"{path} must hold an object of tokens and their ids.")
    by_id = {i: token for token, i in ids.items() if type(i) is int and 0 <= i < len(ids)}
    if len(by_id) < len(ids):
        free = min(set(range(len(ids))) - set(by_id))
        raise ValueError(
            f"{path} must number its {len(ids)} tokens from 0 to {len(ids) - 1}, each once, but none is {free}: "
            "the file is damaged."
        )
    return tuple(by_id[i] for i in range(len(ids)))


def _pairs(pairs: list[Any], path: Path) -> list[tuple[str, ...]]:
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
            raise ValueError(f"{path} must hold pairs of tokens, but its merge {i} is {pair!r:.60}.")
    return [tuple(pair) for pair in pairs]


# ---- tokens found before words are split -----------------------------------------------------------------------------


def _read_added(folder: Path, config: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read the tokens that are listed with their ids: three places, by the age of the folder."""
    pairs: list[tuple[Any, Any]] = []
    if "added_tokens_decoder" in config:
        pairs += _object(config["added_tokens_decoder"], f"added_tokens_decoder of {folder / _CONFIG}").items()
    else:
        special = {_added(config[name], folder).content for name in NAMED if config.get(name) is not None}
        others = _read_object(folder / _ADDED).items()
        pairs += [(i, {"content": content, "normalized": content not in special}) for content, i in others]
    if isinstance(more := whole.get("added_tokens"), list):
        pairs += [(_object(one, f"an added token of {folder / _WHOLE}").get("id"), one) for one in more]
    found = {}
    for i, one in pairs:
        if not (type(i) is int or (isinstance(i, str) and i.isdecimal())):
            raise ValueError(f"{folder} must list added tokens by their ids, but the id of {one!r:.60} is {i!r:.20}.")
        found[int(i)] = _added(one, folder)
    return found


def _added(value: Any, folder: Path) -> AddedToken:
    """Read a token's description: its text alone, or an object."""
    if isinstance(value, str):
        value = {"content": value}
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
        raise ValueError(f"{folder}: a token must be a text or an object with its content, got {value!r:.60}.")
    return AddedToken(content, *(bool(value.get(name, False)) for name in AddedToken._fields[1:]))


def _check_ids(folder: Path, listed: Mapping[int, AddedToken], vocab: tuple[str, ...]) -> None:
    """Refuse added tokens whose ids are neither those of vocab.json nor follow them."""
    free = len(vocab)
    for i, one in sorted(listed.items()):
        if not (i == free or (0 <= i < len(vocab) and vocab[i] == one.content)):
            there = f"that of {vocab[i]!r}" if 0 <= i < len(vocab) else f"not the next free one, {free}"
            raise ValueError(f"{folder} gives the added token {one.content!r} the id {i}, which is {there}.")
        free += i == free


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file."""
    return _object(read_json(path), path) if path.is_file() else {}


def _object(value: Any, where: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, but it is a {type(value).__name__}.")
    return value
