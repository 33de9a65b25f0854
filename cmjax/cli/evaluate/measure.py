"""Measure images, real and drawn, through the extractor: batch by batch, of which nothing is kept but features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.cli.draw import get_ready, progress_bar
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.evaluate.inputs import NamedExtractor
from cmjax.cli.open_model import UnloadedModel
from cmjax.cli.sampler_path import SamplerSetup
from cmjax.drawing import class_of, compile_batches
from cmjax.evaluation import Extractor, Features, Figures, Gaussian, Moments, Seen, look, measure, write_statistics
from cmjax.io import ImageData

__all__ = ["Real", "measure_real", "measure_samples"]


class Real(NamedTuple):
    """What samples are compared with.

    Attributes:
      reference: the statistics that distances are measured from.
      manifold: features of real images, for precision and recall.
      figures: of other real images, compared in the same way.
      count: how many real images those are.
    """

    reference: Moments | Gaussian
    manifold: np.ndarray | None = None
    figures: Figures | None = None
    count: int = 0


class _Batch(NamedTuple):
    """What comes back of a batch: whether each image is finite, and what the extractor saw."""

    finite: Any
    seen: Features


def measure_real(
    data: ImageData,
    cut: tuple[np.ndarray, np.ndarray],
    reference: Gaussian | None,
    extractor: NamedExtractor,
    count: int,
    batch: int,
    *,
    neighbours: int,
    save_statistics: str | None,
) -> Real:
    """Measure both halves of the data: samples are compared with one, and so is the other, as if it were samples.

    Args:
      data: the images.
      cut: the numbers of the images in either half.
      reference: statistics to measure distances from; None for those of the first half.
      extractor: of features.
      count: images to compare.
      batch: images at once.
      neighbours: k of precision and recall.
      save_statistics: the file for statistics of all the data, if they are wanted.
    """
    half, others = cut
    candidates, rest = others[:count], others[count if save_statistics else len(others) :]
    parts, manifold = (half, candidates, rest), min(count, len(half))
    order = np.concatenate([np.resize(part, _whole(len(part), batch)) for part in parts])

    def look_at(extractor, _, pictures):
        return _judge(extractor, pictures.astype(jnp.float32) / 127.5 - 1.0)

    compiled = compile_batches(look_at, extractor.extractor, None, batch, lambda i: data.images[order[i]])
    lengths = [len(part) for part in parts]
    networks = compiled.place(extractor.extractor)
    seen = list(_look_at_sets(compiled, networks, lengths, batch, extractor.features, manifold, "the data"))
    if save_statistics:
        with bad_input("--save-statistics"):
            write_statistics(save_statistics, seen[0].moments.merge(seen[1].moments).merge(seen[2].moments))
    classes = extractor.classes
    told_apart = data.labels is not None and classes is not None and int(data.labels.max()) < classes
    labels = data.labels[candidates] if told_apart and data.labels is not None else None
    wanted = reference or seen[0].moments
    figures = measure(seen[1], wanted, seen[0].features, labels, k=neighbours)
    return Real(wanted, seen[0].features, figures, len(candidates))


def measure_samples(
    opened: UnloadedModel,
    setup: SamplerSetup,
    extractor: NamedExtractor,
    real: Real,
    seeds: Sequence[int],
    count: int,
    batch: int,
    *,
    neighbours: int,
) -> list[Figures]:
    """Draw and measure `count` images of every seed, image i as `cmjax sample` draws it."""
    classes = None if opened.classes is None else range(opened.classes)

    def rows(numbers: np.ndarray) -> Any:
        seed, index = np.divmod(numbers, _whole(count, batch))
        return seed, index, class_of(index, classes)

    def draw(networks, shared, rows):
        (model, extractor), (state, keys), (seed, index, cond) = networks, shared, rows
        own = cmjax.image_keys(keys[seed], index)  # as `cmjax sample`
        return _judge(extractor, cmjax.generate(model, state, own, (len(index), *opened.shape), cond))

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    compiled, networks, _ = get_ready(
        lambda: compile_batches(draw, (setup.model, extractor.extractor), (setup.state, keys), batch, rows),
        lambda: (setup.with_weights(opened.load()), extractor.extractor),
    )
    keep = 0 if real.manifold is None else len(real.manifold)
    lengths = [count] * len(seeds)
    sets = _look_at_sets(compiled, networks, lengths, batch, extractor.features, keep, "the model")
    labels = class_of(np.arange(count), classes) if opened.classes == extractor.classes else None
    return [measure(seen, real.reference, real.manifold, labels, k=neighbours) for seen in sets]


def _look_at_sets(
    compiled: Callable[[int, Any], _Batch],
    networks: Any,
    lengths: Sequence[int],
    batch: int,
    features: int,
    keep: int,
    source: str,
) -> Iterator[Seen]:
    """Look at sets of images, one after the other under one bar; each begins with a batch of its own."""
    starts = itertools.accumulate((_whole(length, batch) for length in lengths), initial=0)
    jobs = [
        (start + i, length - i) for start, length in zip(starts, lengths, strict=False) for i in range(0, length, batch)
    ]
    bar = iter(progress_bar(jobs, source))
    for length in lengths:
        mine = itertools.islice(bar, _whole(length, batch) // batch)
        batches = (_checked(compiled(first, networks), wanted, source) for first, wanted in mine)
        yield look(batches, features, keep=keep)
    next(bar, None)  # nothing is left: this ends the bar


def _whole(length: int, batch: int) -> int:
    """Round a number of images up to whole batches."""
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
