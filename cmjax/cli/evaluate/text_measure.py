"""Draw prompts and look at the pictures, batch by batch, of which nothing is kept but features and a few to show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.cli.draw import get_ready, progress_bar
from cmjax.cli.errors import UsageError
from cmjax.cli.evaluate.text_inputs import Entry, LatentFeatures, Pictures, TextInputs
from cmjax.drawing import compile_batches
from cmjax.evaluation import ClipFeatures, Judge, diversity, right, text_vectors

__all__ = ["SHOWN_PROMPTS", "SHOWN_SEEDS", "Row", "Seen", "draw_row", "figures_of", "look_at_real", "make_looker"]

SHOWN_PROMPTS, SHOWN_SEEDS = 8, 4

Looker = Callable[[np.ndarray], "Seen"]


class Seen(NamedTuple):
    """What is seen in N pictures.

    Attributes:
      features: f32[N, d] of the extractor.
      seen: of each attribute that a judge knows the number of what it sees, i[N].
      vectors: f32[N, p] of CLIP, or None.
    """

    features: np.ndarray
    seen: dict[str, np.ndarray]
    vectors: np.ndarray | None


class Row(NamedTuple):
    """What is seen in the pictures of one row of the table.

    Attributes:
      name: of the model, or "real".
      seen: in all of its pictures.
      texts: what each picture was asked to show; None for pictures without captions.
      seeds: i[N], the seed of each picture in turn; None for real ones.
      shown: u8[prompts, seeds, H, W, 3], the first of them.
      seconds: how long drawing and looking took, without compiling.
    """

    name: str
    seen: Seen
    texts: tuple[str, ...] | None
    seeds: np.ndarray | None
    shown: np.ndarray | None
    seconds: float


# ---- looking ---------------------------------------------------------------------------------------------------------


def make_looker(extractor: Any, clip: Any, shape: tuple[int, ...], batch: int) -> Looker:
    """Compile what looks at up to `batch` pictures u8[b, H, W, 3]."""
    clip = None if isinstance(extractor, ClipFeatures) else clip  # whose vectors are the features
    held = [np.zeros((batch, *shape), np.uint8)]
    compiled = compile_batches(_look, (extractor, clip), None, batch, lambda _: held[0])
    networks = compiled.place((extractor, clip))
    both = isinstance(extractor, ClipFeatures)

    def look(pictures: np.ndarray) -> Seen:
        held[0] = np.concatenate([pictures, np.repeat(pictures[:1], batch - len(pictures), axis=0)])
        found = jax.tree.map(lambda array: array[: len(pictures)], compiled(0, networks))
        vectors = found["features"] if both else found.get("vectors")
        for name, array in (("--features: the extractor's features", found["features"]), ("--clip: vectors", vectors)):
            if array is not None and not (good := np.isfinite(array).all(axis=1)).all():
                raise UsageError(f"{name} of {int((~good).sum())} of {len(good)} pictures are NaN or infinite.")
        return Seen(found["features"], found["seen"], vectors)

    return look


def _look(networks: Any, _: Any, pictures: Any) -> dict[str, Any]:
    extractor, clip = networks
    images = pictures.astype(jnp.float32) / 127.5 - 1.0
    if isinstance(extractor, Judge):
        features, seen = extractor.see(images)
    else:
        features, seen = extractor(images).features, {}
    found = {"features": features, "seen": seen}
    return found if clip is None else {**found, "vectors": clip.embed_images(images)}


def _joined(parts: Sequence[Seen]) -> Seen:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def look_at_real(pictures: Pictures, half: np.ndarray, look: Looker, batch: int, name: str) -> Row:
    """Look at one half of the real pictures."""
    start, parts = time.perf_counter(), []
    for first in progress_bar(range(0, len(half), batch), f"looking at {name}"):
        parts.append(look(pictures.images[half[first : first + batch]]))
    texts = None if pictures.captions is None else tuple(pictures.captions[i] for i in half)
    return Row(name, _joined(parts), texts, None, None, time.perf_counter() - start)


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_row(
    inputs: TextInputs, entry: Entry, seeds: Sequence[int], batch: int, look: Looker | None
) -> tuple[Row, Looker]:
    """Draw every prompt with every seed, and look at the pictures.

    The picture of prompt i and seed s is the one that `cmjax sample --prompts FILE --seed s` draws i-th.

    Args:
      inputs: of the command.
      entry: which model draws.
      seeds: of the pictures.
      batch: pictures at once.
      look: what looks at them; None to make it, now that the weights are there.

    Returns:
      The row, and what looked.
    """
    text, setup = entry.text, entry.setup
    number = len(text.prompts)
    total, coders = number * len(seeds), []

    def rows(numbers: np.ndarray) -> Any:
        seed, index = np.divmod(numbers % total, number)
        return seed, index, text.prompt_of(index)

    def draw(model, shared, rows):
        (state, keys), (seed, index, prompt) = shared, rows
        own = cmjax.image_keys(keys[seed], index)  # as `cmjax sample`
        images = cmjax.text_to_image.draw_prompt(model, state, own, (len(index), *text.latents), prompt)
        assert not isinstance(images, cmjax.Trajectory)
        finite = jnp.isfinite(images).all(axis=(1, 2, 3))
        levels = jnp.clip(jnp.round((images.astype(jnp.float32) + 1.0) * 127.5), 0, 255)
        return finite, levels.astype(jnp.uint8)

    def load() -> Any:
        checkpoint: Any = text.model.load()
        coders.append(checkpoint.model.autoencoder)
        return setup.with_weights(checkpoint)

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    compiled, model, _ = get_ready(lambda: compile_batches(draw, setup.model, (setup.state, keys), batch, rows), load)
    if look is None:
        extractor = LatentFeatures(coders[0]) if inputs.extractor is None else inputs.extractor
        look = make_looker(extractor, inputs.clip, inputs.shape, batch)
    start, parts = time.perf_counter(), []
    shown = np.full((min(number, SHOWN_PROMPTS), min(len(seeds), SHOWN_SEEDS), *inputs.shape), 255, np.uint8)
    for first in progress_bar(range(0, total, batch), f"drawing with {entry.name}"):
        count = min(batch, total - first)
        finite, pictures = compiled(first, model)
        if not finite[:count].all():
            bad = int((~finite[:count]).sum())
            raise UsageError(f"{entry.name}: {bad} of {count} images hold NaN or infinity.")
        parts.append(look(pictures[:count]))
        for place, picture in zip(range(first, first + count), pictures, strict=False):
            seed, prompt = divmod(place, number)
            if prompt < shown.shape[0] and seed < shown.shape[1]:
                shown[prompt, seed] = picture
    seconds = time.perf_counter() - start
    in_turn = np.repeat(np.arange(len(seeds)), number)
    return Row(entry.name, _joined(parts), text.prompts * len(seeds), in_turn, shown, seconds), look


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures_of(row: Row, judge: Any, clip: Any) -> dict[str, np.ndarray]:
    """Measure each picture of a row by its text.

    Args:
      row: of the table.
      judge: the extractor; one that is no `Judge` says nothing of texts.
      clip: of the CLIP score, or None.

    Returns:
      By name, f64[N] each: `clip_score` (w = 1), the attributes of the judge, and `all`. NaN where a text leaves an
      attribute open. `diversity`, f64[prompts], is by prompt.
    """
    if row.texts is None:
        return {}
    found: dict[str, np.ndarray] = {}
    if clip is not None and row.seen.vectors is not None:
        texts, rows = text_vectors(row.texts, clip)
        found["clip_score"] = np.maximum((row.seen.vectors.astype(np.float64) * texts[rows]).sum(axis=1), 0)
    if isinstance(judge, Judge):
        asked = {text: judge.asked(text) for text in set(row.texts)}
        found |= right(row.seen.seen, [asked[text] for text in row.texts])
    numbers = {text: i for i, text in enumerate(dict.fromkeys(row.texts))}
    found["diversity"] = diversity(row.seen.features, np.array([numbers[text] for text in row.texts]))
    return found
