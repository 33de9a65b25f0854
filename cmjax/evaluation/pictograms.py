"""The judge inside the package: a small classifier of the pictograms that the model `emoji` draws.

Its model card is `cmjax/pretrained/emoji-classifier/README.md`; `benchmarks/emoji/judge.py` trains it.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax._struct import Struct, static
from cmjax.evaluation.features import Features
from cmjax.evaluation.text import Judged
from cmjax.evaluation.weights import read_into, write_half
from cmjax.models.layers import Conv, GroupNorm, Linear, ResnetBlock
from cmjax.types import Array

__all__ = ["PICTOGRAM_CLASSIFIER", "PictogramClassifier", "PictogramJudge", "read_pictograms", "write_pictograms"]

PICTOGRAM_CLASSIFIER = Path(__file__).parent.parent / "pretrained" / "emoji-classifier" / "classifier.safetensors"
_SHAPE = (64, 64, 3)
_SUBJECTS, _STYLES, _PLACES, _ARRANGEMENTS = 113, 4, 5, 7  # one in each place, two, three


class PictogramClassifier(nnx.Module):
    """Four halvings (64 to 4 pixels), 192 features, three heads; about 1.3M parameters.

    Images are f32[B, 64, 64, 3] in [-1, 1]. Arrangements are one pictogram in the centre, left, right, top or bottom;
    two; three.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        def block(width: int) -> ResnetBlock:
            return ResnetBlock(width, width, time_width=None, groups=8, eps=1e-5, dtype=jnp.float32, rngs=rngs)

        self.halve1 = Conv(3, 32, strides=2, rngs=rngs)
        self.halve2 = Conv(32, 64, strides=2, rngs=rngs)
        self.halve3 = Conv(64, 128, strides=2, rngs=rngs)
        self.block1 = block(128)
        self.halve4 = Conv(128, 192, strides=2, rngs=rngs)
        self.block2 = block(192)
        self.norm = GroupNorm(192, 8, eps=1e-5)
        self.subject = Linear(192, _SUBJECTS, rngs=rngs)
        self.style = Linear(192, _STYLES, rngs=rngs)
        self.arrangement = Linear(16 * 192, _ARRANGEMENTS, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the logits of subjects, styles and arrangements."""
        return self.heads(self.states(x))

    def states(self, x: Array) -> Array:
        """Return what the heads see, f32[B, 4, 4, 192]."""
        x = self.halve2(nnx.silu(self.halve1(x)))
        x = self.halve4(nnx.silu(self.block1(self.halve3(nnx.silu(x)))))
        return nnx.silu(self.norm(self.block2(x)))

    def heads(self, states: Array) -> tuple[Array, Array, Array]:
        """Return the logits of what `states` returned."""
        pooled = states.mean((1, 2))
        return self.subject(pooled), self.style(pooled), self.arrangement(states.reshape(len(states), -1))


class PictogramJudge(Struct):
    """A `PictogramClassifier` as a `Judge`; made by `PictogramJudge.of(read_pictograms())`.

    Its 192 features are the means of the last states. It sees `subject`, `style`, `place` and `number` by the
    classifier's heads, and `colour`, that of the background, by the median of the outermost pixels.

    Example:
      >>> judge = PictogramJudge(None, None)  # prompts take no weights
      >>> judge.asked("two owls on a red background")
      {'colour': 1, 'number': 1, 'subject': 61}
    """

    params: Any
    graphdef: Any = static()

    @classmethod
    def of(cls, classifier: PictogramClassifier) -> PictogramJudge:
        """Make a judge of a classifier."""
        graphdef, params = nnx.split(classifier)
        return cls(params, graphdef)

    def __call__(self, images: Array) -> Features:
        """Compute the features of images f32[B, 64, 64, 3] in [-1, 1].

        Raises:
          ValueError: they are of another size.
        """
        return Features(self.see(images).features)

    def see(self, images: Array) -> Judged:
        """Compute the features, and say what is in the images.

        Raises:
          ValueError: they are of another size.
        """
        if images.shape[1:] != _SHAPE:
            raise ValueError(f"the classifier of pictograms sees images of {_SHAPE}, got {images.shape[1:]}.")
        classifier = nnx.merge(self.graphdef, self.params)
        states = classifier.states(images)
        subject, style, arrangement = (logits.argmax(axis=-1) for logits in classifier.heads(states))
        place = jnp.where(arrangement < _PLACES, arrangement, -1)
        number = jnp.maximum(arrangement - _PLACES + 1, 0)
        seen = {"subject": subject, "style": style, "colour": _background(images), "place": place, "number": number}
        return Judged(states.mean((1, 2)), seen)

    def asked(self, prompt: str) -> dict[str, int]:
        """Say what a prompt asks for, in the words of the model `emoji`.

        One pictogram without a place stands in the centre, as in the captions that the model was trained on. A style or
        a colour that the prompt does not name is left open, and so is everything that it says in other words.
        """
        words, text = _words(), " ".join(prompt.lower().replace(",", " , ").split())
        found: dict[str, int] = {}
        for name, pattern in _PATTERNS.items():
            if (match := re.search(pattern, text)) and match[1] in words[name]:
                found[name] = words[name][match[1]]
                text = f"{text[: match.start()]} {text[match.end() :]}"
        head = re.fullmatch(r"\s*(?:(an?|two|three)\s)?(?:(?:small|large)\s)?(.*?)[\s,]*", text)
        count = "a" if head is None or head[1] in (None, "an") else head[1]
        subjects = words["plurals" if count in ("two", "three") else "subject"]
        subject = None if head is None else subjects.get(" ".join(head[2].split()))
        if subject is None:
            return found
        found |= {"number": words["number"][count], "subject": subject}
        if found["number"] > 0:
            found.pop("place", None)
        else:
            found.setdefault("place", 0)
        return found


_PATTERNS = {
    "style": r", (\w+) style\b",
    "colour": r"\bon an? (\w+) background\b",
    "place": r"\b(?:in|at) the (\w+)\b",
}


@functools.cache
def _words() -> dict[str, dict[str, int]]:
    """From words to their numbers, of each attribute."""
    said = json.loads((PICTOGRAM_CLASSIFIER.parent / "labels.json").read_text())
    subjects = said.pop("subject")
    said["colour"] = list(said["colour"])
    words = {name: {word: i for i, word in enumerate(values)} for name, values in said.items()}
    for name, place in (("subject", 0), ("plurals", 1)):
        words[name] = {both[place]: i for i, both in enumerate(subjects)}
    return words


@functools.cache
def _colours() -> np.ndarray:
    """The levels of the ten colours, f32[10, 3]."""
    said = json.loads((PICTOGRAM_CLASSIFIER.parent / "labels.json").read_text())
    return np.array(list(said["colour"].values()), np.float32)


def _background(x: Array) -> Array:
    """The colour that is nearest to the median of the outermost pixels, i32[B]."""
    ring = jnp.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1)
    seen = (jnp.median(jnp.clip(ring, -1, 1), axis=1) + 1) * 127.5
    return jnp.square(seen[:, None] - _colours()).sum(-1).argmin(1)


def read_pictograms(path: str | Path = PICTOGRAM_CLASSIFIER) -> PictogramClassifier:
    """Read a classifier's weights, by default those of the classifier in the package.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or its names or shapes are not those of a classifier of pictograms.
    """
    return read_into(PictogramClassifier, path, "a classifier of pictograms")


def write_pictograms(classifier: PictogramClassifier, path: str | Path) -> None:
    """Write a classifier's weights in float16, as `read_pictograms` reads them.

    Raises:
      OSError: they cannot be written.
    """
    write_half(classifier, path)
