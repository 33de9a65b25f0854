"""The tokenizer against transformers' CLIPTokenizer, with CLIP's own vocabulary.

A package ships the vocabulary: `pip install --no-deps clip-anytorch` (MIT); what it depends on is not needed.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmjax.text_to_image import Tokenizer

transformers = pytest.importorskip("transformers")

EMOJI = Path(__file__).parents[2] / "benchmarks/emoji/pipeline/tokenizer"
FORMS = {
    "Stable Diffusion 1, in 2022": "<|endoftext|>",
    "Stable Diffusion 2, in 2022": "!",
    "Stable Diffusion XL's second": "!",
    "tokenizer.json, filled with the end": "<|endoftext|>",
    "tokenizer.json, filled with !": "!",
}


def vocabulary() -> tuple[list[str], list[str]]:
    """CLIP's tokens and merges, from the file that it was published with."""
    for package in ("clip", "open_clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (file := Path(folder) / "bpe_simple_vocab_16e6.txt.gz").is_file():
                content = file.read_bytes()
                assert hashlib.sha256(content).hexdigest().startswith("924691ac288e5440")
                merges = gzip.decompress(content).decode().split("\n")[1:48895]
                shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
                hidden = [byte for byte in range(256) if byte not in shown]
                letters = [*map(chr, shown), *(chr(256 + i) for i in range(len(hidden)))]
                ends = [f"{letter}</w>" for letter in letters]
                specials = ["<|startoftext|>", "<|endoftext|>"]
                return [*letters, *ends, *("".join(merge.split()) for merge in merges), *specials], merges
    pytest.skip("CLIP's vocabulary is in no installed package: pip install --no-deps clip-anytorch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The vocabulary in each form that is published."""
    vocab, merges = vocabulary()
    assert len(vocab) == 49408
    root = tmp_path_factory.mktemp("tokenizers")

    def token(content: str, **more: Any) -> dict[str, Any]:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"content": content, **flags, **more}

    begin, end = "<|startoftext|>", "<|endoftext|>"
    named = {"bos_token": token(begin), "eos_token": token(end), "unk_token": token(end)}
    common = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
    listed = {
        "0": token("!", normalized=False, special=True),
        "49406": token(begin, special=True),
        "49407": token(end, special=True),
    }
    typed = {key: {"__type": "AddedToken", **value} for key, value in named.items()}
    configs = [
        {**common, **typed, "pad_token": end},
        {**common, **typed, "pad_token": end},  # the other file says "!", which holds
        {**common, "bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": "!"}
        | {"added_tokens_decoder": listed},
    ]
    found = {}
    for (name, pad), config in zip(list(FORMS.items())[:3], configs, strict=True):
        found[name] = root / str(len(found))
        found[name].mkdir()
        contents = {
            "vocab.json": json.dumps({token: i for i, token in enumerate(vocab)}),
            "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
            "special_tokens_map.json": json.dumps({**named, "pad_token": pad}),
            "tokenizer_config.json": json.dumps(config),
        }
        for file, content in contents.items():
            (found[name] / file).write_text(content, encoding="utf-8")
    for name, source in zip(list(FORMS)[3:], list(FORMS)[:2], strict=True):
        found[name] = root / str(len(found))
        transformers.CLIPTokenizer.from_pretrained(found[source]).save_pretrained(found[name])
        assert not (found[name] / "vocab.json").exists()
    return found


def texts(count: int) -> list[str]:
    """Odd texts: words of many alphabets, signs, marks of other tools, characters at random, spaces of every kind."""
    typed = """a red fox in the snow don't we'll I'm they've WOW!! ! !!! oil-on-canvas 1234 3.14 <|endoftext|>
    <|STARTOFTEXT|> <|startoftext|> <|EndOfText|> photo</w> héllo naïve İSTANBUL ﬁne straße 東京 🦊🦊 &amp; “quote” x²
    ½ Ⅷ ١٢٣ हिन्दी ไทย 👨‍👩‍👧 __init__ #tag @me (a:1.2) [b] BREAK 'S 'LL Ångström é Σίσυφος ǅ"""
    words = typed.split()
    spaces = ["  ", "\r\n", "\t", "\x00", "\x85", "\u2028", "\u00a0", "\u200b", "-", "_"]
    ranges = [(32, 127), (160, 0x600), (0x1F300, 0x1F6FF), (0x2000, 0x3100), (0xAC00, 0xAD00), (0xE000, 0xE010)]
    draw = random.Random(0)

    def part() -> str:
        kind = draw.random()
        if kind < 0.6:
            return draw.choice(words)
        if kind < 0.8:
            return "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 8)))
        return draw.choice(spaces)

    return [draw.choice([" ", "", "  "]).join(part() for _ in range(draw.randrange(40))) for _ in range(count)]


def same(ours: Tokenizer, theirs: Any, prompts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some are too long
        got = ours(prompts)
    length = ours.max_length
    expected = np.array(theirs(prompts, padding="max_length", max_length=length, truncation=True).input_ids)
    assert theirs.model_max_length == length
    assert got.dtype == np.int32 and np.array_equal(got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_three_thousand_odd_texts(form: str, folders: dict[str, Path], tmp_path: Path) -> None:
    prompts = ["", "Hello, World!", "!!!", " ".join(["word"] * 10_000), *texts(3000)]
    ours = Tokenizer.read(folders[form])
    assert (ours.pad_token, ours.max_length, len(ours)) == (FORMS[form], 77, 49408)
    same(ours, transformers.CLIPTokenizer.from_pretrained(folders[form]), prompts)
    ours.write(tmp_path / "written")
    same(ours, transformers.CLIPTokenizer.from_pretrained(tmp_path / "written"), prompts[:300])
    assert Tokenizer.read(tmp_path / "written") == ours


def test_what_the_pad_token_does(folders: dict[str, Path]) -> None:
    first, second = (Tokenizer.read(folders[form]) for form in list(FORMS)[:2])
    assert first(["Hello, World!"], 8).tolist() == [[49406, 3306, 267, 1002, 256, 49407, 49407, 49407]]
    assert second(["Hello, World!"], 8).tolist() == [[49406, 3306, 267, 1002, 0, 49407, 0, 0]]
    assert (first(["!!!"], 5).tolist(), second(["!!!"], 5).tolist()) == (
        [[49406, 995, 49407, 49407, 49407]],
        [[49406, 0, 0, 0, 49407]],
    )


def test_tokens_of_textual_inversion(folders: dict[str, Path], tmp_path: Path) -> None:
    theirs = transformers.CLIPTokenizer.from_pretrained(folders["Stable Diffusion 1, in 2022"])
    theirs.add_tokens(["<cat-toy>", "<Dog>"])
    theirs.save_pretrained(tmp_path / "new")
    old = shutil.copytree(folders["Stable Diffusion 1, in 2022"], tmp_path / "old")
    (old / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 49408, "<Dog>": 49409}))
    prompts = ["a <cat-toy> and a <dog>", "<CAT-TOY><Dog>", "<cat -toy>", *texts(100)]
    for folder in (tmp_path / "new", old):
        ours = Tokenizer.read(folder)
        assert len(ours) == 49410
        same(ours, transformers.CLIPTokenizer.from_pretrained(folder), prompts)
    assert 49408 in ours(prompts[:1])


def test_the_tokenizer_of_the_pictograms() -> None:
    same(Tokenizer.read(EMOJI), transformers.CLIPTokenizer.from_pretrained(EMOJI), texts(1000))
