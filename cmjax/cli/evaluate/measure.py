"""Images, real and drawn, through the extractor: batch by batch, of which nothing is kept but features."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.cli.drawing import class_of, compile_batches, with_bar
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.evaluate.inputs import NamedExtractor
from cmjax.cli.open_model import SamplerSetup, UnloadedModel
from cmjax.evaluation import Extractor, Features, Figures, Gaussian, Moments, Seen, look, measure, write_statistics
from cmjax.io import ImageData

__all__ = ["Real", "draw_and_measure", "look_at_data"]


class Real(NamedTuple):
    """What there is to compare with: the reference, the manifold, and the figures of so many real images."""

    reference: Moments | Gaussian
    manifold: np.ndarray | None = None
    figures: Figures | None = None
    count: int = 0


class _Batch(NamedTuple):
    """What comes back of a batch: whether each image is finite, and what the extractor saw."""

    finite: Any
    seen: Features


def look_at_data(
    args: argparse.Namespace,
    data: ImageData,
    cut: tuple[np.ndarray, np.ndarray],
    given: Gaussian | None,
    eye: NamedExtractor,
    count: int,
    batch: int,
) -> Real:
    """Look at both halves of the data: the one is what samples are compared with, the other is compared as they are."""
    half, others = cut
    candidates, rest = others[:count], others[count if args.save_statistics else len(others) :]
    parts, manifold = (half, candidates, rest), min(count, len(half))
    order = np.concatenate([np.resize(part, _whole(len(part), batch)) for part in parts])

    def draw(extractor, _, pictures):
        return _judge(extractor, pictures.astype(jnp.float32) / 127.5 - 1.0)

    compiled = compile_batches(draw, eye.extractor, None, batch, lambda i: data.images[order[i]])
    lengths = [len(part) for part in parts]
    seen = list(_look_at_sets(compiled, eye.extractor, lengths, batch, eye, manifold, "the data"))
    if args.save_statistics:
        with bad_input("--save-statistics"):
            write_statistics(args.save_statistics, seen[0].moments.merge(seen[1].moments).merge(seen[2].moments))
    told_apart = data.labels is not None and eye.classes is not None and int(data.labels.max()) < eye.classes
    labels = data.labels[candidates] if told_apart and data.labels is not None else None
    reference = given or seen[0].moments
    figures = measure(seen[1], reference, seen[0].features, labels, k=args.neighbours)
    return Real(reference, seen[0].features, figures, len(candidates))


def draw_and_measure(
    args: argparse.Namespace,
    opened: UnloadedModel,
    setup: SamplerSetup,
    eye: NamedExtractor,
    real: Real,
    count: int,
    batch: int,
) -> list[Figures]:
    """Draw the images of every seed, batch by batch; nothing of a batch is kept but features."""
    classes = None if opened.classes is None else range(opened.classes)

    def rows(numbers: np.ndarray) -> Any:
        seed, index = np.divmod(numbers, _whole(count, batch))
        return seed, index, class_of(index, classes)

    def draw(networks, shared, rows):
        (model, extractor), (state, keys), (seed, index, cond) = networks, shared, rows
        own = jax.vmap(lambda seed, index: jax.random.fold_in(keys[seed], index))(seed, index)  # as `cmjax sample`
        return _judge(extractor, cmjax.generate(model, state, own, (len(index), *opened.shape), cond))

    keys = jnp.stack([jax.random.key(seed) for seed in args.seed])
    compiled = compile_batches(draw, (setup.model, eye.extractor), (setup.state, keys), batch, rows)
    with bad_input():
        networks = compiled.place((setup.with_weights(opened.load()), eye.extractor))
    keep = 0 if real.manifold is None else len(real.manifold)
    sets = _look_at_sets(compiled, networks, [count] * len(args.seed), batch, eye, keep, "the model")
    labels = class_of(np.arange(count), classes) if opened.classes == eye.classes else None
    return [measure(seen, real.reference, real.manifold, labels, k=args.neighbours) for seen in sets]


def _look_at_sets(
    compiled: Callable[[int, Any], _Batch],
    networks: Any,
    lengths: Sequence[int],
    batch: int,
    eye: NamedExtractor,
    keep: int,
    source: str,
) -> Iterator[Seen]:
    """Look at sets of images, one after the other under one bar; each begins with a batch of its own."""
    starts = itertools.accumulate((_whole(length, batch) for length in lengths), initial=0)
    jobs = [
        (start + i, length - i) for start, length in zip(starts, lengths, strict=False) for i in range(0, length, batch)
    ]
    bar = iter(with_bar(jobs, source))
    for length in lengths:
        mine = itertools.islice(bar, _whole(length, batch) // batch)
        batches = (_checked(compiled(first, networks), wanted, source) for first, wanted in mine)
        yield look(batches, eye.features, keep=keep)
    next(bar, None)  # nothing is left: this ends the bar


def _whole(length: int, batch: int) -> int:
    """So many images fill the batches that hold that many."""
    return length + -length % batch


def _judge(extractor: Extractor, images: Any) -> _Batch:
    """Look at images as they would be written: in 256 levels."""
    finite = jnp.isfinite(images).all(axis=(1, 2, 3))
    levels = jnp.clip(jnp.round((images.astype(jnp.float32) + 1.0) * 127.5), 0, 255)
    return _Batch(finite, extractor(levels / 127.5 - 1.0))


def _checked(batch: _Batch, wanted: int, source: str) -> Features:
    """Refuse what is not finite, and drop what fills up the last batch."""
    finite, seen = batch.finite[:wanted], jax.tree.map(lambda array: array[:wanted], batch.seen)
    if not finite.all():
        raise UsageError(f"{source}: {int((~finite).sum())} of {len(finite)} images hold NaN or infinity.")
    for name, array in seen._asdict().items():
        if array is not None and not (good := np.isfinite(array).all(axis=1)).all():
            bad = int((~good).sum())
            raise UsageError(f"--features: the extractor's {name} of {bad} of {len(good)} images are NaN or infinite.")
    return seen
