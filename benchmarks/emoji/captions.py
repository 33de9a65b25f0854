"""The captions' grammar, its held-out combinations, and a tokenizer in CLIP's format over its words.

    [number | article] [size] SUBJECT [place] [on a COLOUR background] [, STYLE style]

such as "a red apple on a blue background, noto style", "two foxes", "a small rocket at the left".
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

__all__ = ["COLOURS", "LENGTH", "SUBJECTS", "Tokenizer", "caption", "is_held_out", "tables"]

LENGTH = 24  # tokens of a prompt

# The word, its plural where that is not regular, and the pictogram's name where that is another.
_SUBJECTS = """
airplane; anchor; ant; avocado; bear; bell; bicycle; bird; birthday cake; bus,buses; butterfly,butterflies;
cactus,cactuses; camel; candle; carrot; castle; cat=cat face; christmas tree; cookie; cow=cow face; crab; croissant;
crown; tree=deciduous tree; dog=dog face; dolphin; donut=doughnut; dragon=dragon face; duck; elephant; eggplant;
pine tree=evergreen tree; flame=fire; fish,fish; clover=four leaf clover; fox,foxes; frog; diamond=gem stone; ghost;
green apple; guitar; hamburger; hammer; helicopter; pink flower=hibiscus; bee=honeybee; horse=horse face; house;
pumpkin=jack o lantern; key; koala; ladybug=lady beetle; lemon; light bulb; lion; lollipop; maple leaf,maple leaves;
monkey=monkey face; mouse,mice=mouse face; mushroom; octopus,octopuses; owl; palm tree; panda; pear; peach,peaches;
pencil; penguin; pig=pig face; pineapple; pizza; rabbit=rabbit face; rainbow; red apple; heart=red heart; robot; rocket;
rose; sailboat; shark; snail; snake; snowflake; snowman,snowmen; soccer ball; spider; whale=spouting whale; star;
strawberry,strawberries; sun; sunflower; taxi; tiger=tiger face; tomato,tomatoes; tractor; trophy,trophies; tulip;
turtle; umbrella; unicorn; volcano,volcanoes; watermelon; wolf,wolves; gift=wrapped gift; moon=crescent moon;
chili=hot pepper; alien; skull; balloon; basketball; chick=baby chick; orange=tangerine; car=automobile
"""


def _subjects() -> list[tuple[str, str, str]]:
    found = []
    for entry in _SUBJECTS.replace("\n", " ").split(";"):
        words, _, pictogram = entry.strip().partition("=")
        word, _, plural = words.partition(",")
        found.append((word, plural or word + "s", pictogram or word))
    return found


SUBJECTS = _subjects()  # (word, plural, pictogram)
COLOURS = {
    "white": (248, 248, 248),
    "red": (226, 74, 70),
    "orange": (250, 160, 74),
    "yellow": (253, 222, 100),
    "green": (118, 196, 112),
    "blue": (104, 164, 238),
    "purple": (164, 120, 222),
    "pink": (252, 168, 200),
    "gray": (150, 152, 160),
    "black": (38, 38, 46),
}
STYLES = ("flat", "fluent", "noto", "classic")  # of the pictograms: fluent-flat, fluent, noto, noto-v1
SIZES = ("", "small", "large")
PLACES = ("center", "left", "right", "top", "bottom")
NUMBERS = ("a", "two", "three")
_FORMS = 6  # "a X", "a small X", "a large X", "two Xs", "three Xs", "X"


def is_held_out(subject, colour, place, number):
    """Whether a combination is never trained on: one colour of each subject, and one place or number of each.

    Args:
      subject: its index, a number or an array, as all others.
      colour: its index.
      place: its index; 0 is the centre.
      number: 0 for one, 1 for two, 2 for three.
    """
    return _colour_held_out(subject, colour) | arrangement_held_out(subject, place, number)


def _colour_held_out(subject, colour):
    return colour == (3 * subject + 1) % len(COLOURS)


def arrangement_held_out(subject, place, number):
    """The same, of place and number alone."""
    arrangement = place * (number == 0) + (4 + number) * (number > 0)
    return (arrangement > 0) & (arrangement == (5 * subject + 2) % 7)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("uni") else "a"


def _head(subject: int, form: int) -> str:
    word, plural, _ = SUBJECTS[subject]
    if form in (1, 2):
        return f"a {SIZES[form]} {word}"
    if form in (3, 4):
        return f"{NUMBERS[form - 2]} {plural}"
    return f"{_article(word)} {word}" if form == 0 else word


def _place(place: int) -> str:
    return "in the center" if place == 0 else f"at the {PLACES[place]}"


def _colour(colour: int) -> str:
    name = list(COLOURS)[colour]
    return f"on {_article(name)} {name} background"


def caption(subject: int, *, number=0, size=0, place=None, colour=None, style=None) -> str:
    """Write a caption; None for what it does not mention."""
    text = _head(subject, number + 2 if number else size)
    text += "" if place is None else " " + _place(place)
    text += "" if colour is None else " " + _colour(colour)
    return text + ("" if style is None else f", {STYLES[style]} style")


def _texts() -> list[str]:
    heads = [_head(subject, form) for subject in range(len(SUBJECTS)) for form in range(_FORMS)]
    rest = [_place(i) for i in range(len(PLACES))] + [_colour(i) for i in range(len(COLOURS))]
    return heads + rest + [f"{style} style" for style in STYLES] + ["an picture of background with"]


def _byte_symbols() -> list[str]:
    """CLIP's letters for the 256 bytes, in the order of its vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]


def _train(words: list[str]) -> list[tuple[str, str]]:
    """Merge the most frequent neighbours again and again, until each word is one symbol."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges = []
    while counts := Counter((a, b) for word in split for a, b in pairwise(word)):
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append(pair)
        for word in split:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i : i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


class Tokenizer:
    """CLIP's format: bytes, the same at the ends of words, merges, and two tokens around a text."""

    def __init__(self):
        symbols = _byte_symbols()
        self.merges = _train([word for text in _texts() for word in text.split()])
        tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in self.merges)]
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        self.vocab = {token: i for i, token in enumerate(tokens)}
        self.begin, self.end = len(tokens) - 2, len(tokens) - 1

    def __len__(self) -> int:
        return self.end + 1

    def words(self, text: str) -> list[int]:
        """The tokens of a text of the grammar, without those around it."""
        return [self.vocab[word + "</w>"] for word in text.replace(",", " ,").split()]

    def __call__(self, text: str) -> np.ndarray:
        """Encode a text of the grammar, i32[LENGTH]."""
        tokens = [self.begin, *self.words(text)][: LENGTH - 1]
        return np.array(tokens + [self.end] * (LENGTH - len(tokens)), np.int32)

    def save(self, folder: Path) -> None:
        """Write what transformers' `CLIPTokenizer` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(self.vocab, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        special["pad_token"] = "<|endoftext|>"
        (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
        more = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps({**special, **more}, indent=2))


def tables(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The tokens of every part of a caption, -1 where there is none; a last row is for not mentioning the part."""

    def rows(texts: list[str], width: int) -> np.ndarray:
        found = np.full((len(texts), width), -1, np.int32)
        for row, text in zip(found, texts, strict=True):
            tokens = tokenizer.words(text)
            row[: len(tokens)] = tokens
        return found

    heads = rows([_head(subject, form) for subject in range(len(SUBJECTS)) for form in range(_FORMS)], 4)
    return {
        "head": heads.reshape(len(SUBJECTS), _FORMS, 4),
        "place": rows([*map(_place, range(len(PLACES))), ""], 3),
        "colour": rows([*map(_colour, range(len(COLOURS))), ""], 4),
        "style": rows([*(f", {style} style" for style in STYLES), ""], 3),
    }
