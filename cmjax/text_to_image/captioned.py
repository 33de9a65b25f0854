"""Batches of captioned pictures to train a text-to-image network on: latents, and encoded captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._ahead import ahead
from cmjax._order import BucketOrder
from cmjax.guidance import WithNull
from cmjax.io.captioned.source import CaptionedPicture, CaptionedSource
from cmjax.io.captions import Captioned, some
from cmjax.models.text_cond import TextCond
from cmjax.text_to_image.buckets import fit_to, nearest_buckets
from cmjax.text_to_image.encoding import checked_buckets, encoded, tokenized, warn_of_cuts
from cmjax.text_to_image.latent_cache import LatentCache
from cmjax.text_to_image.pipeline import PromptTokens, TextToImage
from cmjax.types import Array

__all__ = ["CaptionedBatches", "captioned_batches"]

_REMEDY = "buckets=bucket_sizes(..., pictures=data.sizes, least=...)"
_AT_ONCE = 16  # pictures that are encoded in one call
# Further numbers of a seed: no other draw of a run begins like these.
_TEXTS, _NOISE = 1, 4


class _Recipe(Protocol):
    """The fields of a `training.Recipe` that decide the batches."""

    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def flip(self) -> bool: ...


def captioned_batches(
    pipe: TextToImage,
    data: Captioned | CaptionedSource | LatentCache,
    recipe: _Recipe,
    *,
    drop: float = 0.1,
    with_null: bool = False,
    buckets: Sequence[tuple[int, int]] | None = None,
    sample: bool = False,
    skip_unreadable: bool = False,
    part: tuple[int, int] = (0, 1),
) -> CaptionedBatches:
    """Prepare captioned pictures for training the network of a text-to-image model.

    Pictures become latents in one of three ways:

    - `Captioned` pictures, of one size, are encoded now, and their latents stay in memory.
    - A `CaptionedSource` is decoded and encoded on the way, so that there may be more pictures than memory holds.
    - A `LatentCache` was encoded before, by `precompute`, and is read from its files.

    At each step, one of each picture's captions is chosen and encoded; text encoders and autoencoder stay as they are.
    A share of the captions is dropped, so that the network also learns what pictures are like without a text, and can
    be guided. The next batches are made in a thread while a step runs; an error of theirs is raised at their step.

    With several buckets, each batch is of one, and the step compiles once for each. What does not fill a batch at the
    end of an epoch begins its bucket's first batch of the next one, so that after e epochs each picture was seen e
    times, but for less than a batch in each bucket.

    Args:
      pipe: the model. Its network is not used.
      data: pictures u8[N, H, W, C] and their captions, as `io.read_captions` reads them, with height and width that are
        multiples of what the autoencoder makes one latent of; or what `io.open_captions` or `precompute` returned.
      recipe: a `training.Recipe`, for its batch_size and seed.
      drop: the share of captions to drop, in [0, 1]. Give 0 for distillation, whose teacher is guided already.
      with_null: whether each condition comes with that of no text beside it (`guidance.WithNull`), for methods that
        guide the teacher, by `guidance_scale` or `guidance_range`, or that drop captions themselves.
      buckets: for a `CaptionedSource`, sizes (H, W) that pictures are resized and cropped to, such as from
        `bucket_sizes`; None for the model's native size alone.
      sample: whether latents are drawn from the autoencoder's distribution at each step; else its mean is what a
        picture is. A cache must have been made with `sample`.
      skip_unreadable: for a `CaptionedSource`, whether another picture of its bucket takes the place of one that cannot
        be read. `CaptionedBatches.skipped` counts them.
      part: (i, n) yields the i-th of n equal parts of each batch, for n processes with a training step of their own.
        `training.train` takes whole batches in each process: leave it out there.

    Returns:
      An endless iterable of (latents f32[B, h, w, c], `TextCond`) for `training.train`. The batch of a step
      depends on the recipe's seed and on the step alone, so that a run resumes to the same bits, and at once. Networks
      that are told sizes (Stable Diffusion XL) are told those of the picture, of the crop and of the bucket.

    Raises:
      ValueError: drop is outside of [0, 1], a picture has no caption, there are fewer pictures than a batch has, or
        fewer in a bucket, sizes do not fit the autoencoder, the cache is of another model, or the recipe has flip.
        While a run goes on: a picture that cannot be read, by name.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> data = cmjax.io.Captioned(np.zeros((2, 64, 64, 3), np.uint8), (("night",), ("a dark night", "no light")))
      >>> batches = captioned_batches(pipe, data, cmjax.training.Recipe(batch_size=2))
      >>> latents, cond = next(iter(batches))
      >>> latents.shape, cond.context.shape[0]
      ((2, 16, 16, 4), 2)

      Then `cmjax.training.train(pipe.unet, pipe.config, batches, recipe=recipe)`.

    References:
      Rombach et al. 2022, section 3.3; Ho & Salimans 2022, algorithm 1; Podell et al., SDXL, 2023, section 2.
    """
    if not 0 <= drop <= 1:
        raise ValueError(f"drop must lie in [0, 1], a share of the captions, got {drop}.")
    if recipe.flip:
        raise ValueError(
            "flip must be False: mirrored latents are not those of mirrored pictures; mirror the pictures."
        )
    index, parts = part
    if not 0 <= index < parts or recipe.batch_size % parts:
        raise ValueError(
            f"part must be (i, n) with 0 <= i < n and n a divisor of batch_size = {recipe.batch_size}, got {part}."
        )
    if not isinstance(data, CaptionedSource) and (buckets is not None or skip_unreadable):
        raise ValueError("buckets and skip_unreadable are for a CaptionedSource: these pictures were read before.")
    if not isinstance(data, LatentCache):
        warn_of_cuts(pipe, data.captions)
    supply: _Supply
    if isinstance(data, CaptionedSource):
        supply = _Source(pipe, data, buckets, recipe.batch_size, skip_unreadable)
    elif isinstance(data, LatentCache):
        supply = _Cache(pipe, data, recipe.batch_size, sample)
    else:
        supply = _InMemory(pipe, data, recipe.batch_size, sample)
    return CaptionedBatches(pipe, supply, recipe, drop, with_null, sample, part)


class CaptionedBatches:
    """An iterable of batches, (latents f32[B, h, w, c], `TextCond`); see `captioned_batches`."""

    def __init__(
        self,
        pipe: TextToImage,
        supply: _Supply,
        recipe: _Recipe,
        drop: float,
        with_null: bool,
        sample: bool,
        part: tuple[int, int],
    ):
        self._pipe, self._supply, self._seed, self._drop = pipe, supply, recipe.seed, drop
        self._with_null, self._sample = with_null, sample
        self._order = BucketOrder(recipe.seed, supply.members, recipe.batch_size)
        count = recipe.batch_size // part[1]
        self._part = slice(part[0] * count, (part[0] + 1) * count)

    @property
    def skipped(self) -> dict[str, str]:
        """Pictures that could not be read so far and what was wrong, by their names."""
        return dict(self._supply.skipped)

    def epoch_steps(self, epochs: int = 1) -> int:
        """How many steps so many epochs have."""
        return self._order.steps(epochs)

    def batch(self, step: int) -> tuple[np.ndarray, TextCond | WithNull]:
        """The batch of one step."""
        chosen, rng = self._order.batch(step), np.random.default_rng([self._seed, step, _TEXTS])
        picks = np.array([rng.integers(self._supply.count(i)) for i in chosen.tolist()])[self._part]
        is_dropped = (rng.random(len(chosen)) < self._drop)[self._part]
        chosen, mean, deviation, sizes = self._supply.latents(chosen[self._part], self._order.bucket(step))
        if self._sample:
            shape = (self._part.stop, *mean.shape[1:])
            z = np.random.default_rng([self._seed, step, _NOISE]).standard_normal(shape, np.float32)
            mean = mean + deviation * z[self._part]
        told = self._supply.told(self._pipe, chosen.tolist(), picks.tolist(), is_dropped, sizes)
        return mean, told if self._with_null else told.cond

    def starting_at(self, step: int) -> Iterator[tuple[np.ndarray, TextCond | WithNull]]:
        """The batches from a step on: a run that resumes asks for these. The next two are made in a thread."""
        return ahead(self.batch, step)

    def __iter__(self) -> Iterator[tuple[np.ndarray, TextCond | WithNull]]:
        return self.starting_at(0)


# ---- where latents and texts come from -------------------------------------------------------------------------------


class _Supply(Protocol):
    skipped: dict[str, str]

    @property
    def members(self) -> Sequence[np.ndarray]:
        """The numbers of the pictures of each bucket."""
        ...

    def count(self, index: int) -> int:
        """How many captions a picture has."""
        ...

    def latents(self, chosen: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pictures of a bucket: their numbers, means and deviations of their latents, and sizes f32[B, 6]."""
        ...

    def told(
        self, pipe: TextToImage, chosen: list[int], picks: list[int], is_dropped: np.ndarray, sizes: np.ndarray
    ) -> WithNull:
        """What the network is told of pictures, of each by one of its captions."""
        ...


class _InMemory:
    def __init__(self, pipe: TextToImage, data: Captioned, batch_size: int, sample: bool):
        _check(pipe, data, batch_size)
        self.skipped: dict[str, str] = {}
        self.members = [np.arange(len(data.images))]
        height, width = data.images.shape[1:3]
        self._size = np.array([height, width, 0, 0, height, width], np.float32)
        texts = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain(*data.captions)))}
        self._texts = [np.array([texts[text] for text in of_one]) for of_one in data.captions]
        self._tokens = tuple(np.asarray(tokens) for tokens in tokenized(pipe, list(texts)))
        self._mean, self._deviation = _latents(pipe, data.images, sample)

    def count(self, index: int) -> int:
        return len(self._texts[index])

    def latents(self, chosen: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        deviation = self._deviation[chosen] if len(self._deviation) else self._deviation
        return chosen, self._mean[chosen], deviation, np.tile(self._size, (len(chosen), 1))

    def told(
        self, pipe: TextToImage, chosen: list[int], picks: list[int], is_dropped: np.ndarray, sizes: np.ndarray
    ) -> WithNull:
        texts = [self._texts[i][k] for i, k in zip(chosen, picks, strict=True)]
        return _told(pipe, tuple(tokens[texts] for tokens in self._tokens), is_dropped, sizes)


class _Source:
    def __init__(
        self,
        pipe: TextToImage,
        data: CaptionedSource,
        buckets: Sequence[tuple[int, int]] | None,
        batch_size: int,
        skip_unreadable: bool,
    ):
        self._pipe, self._data, self._may_skip = pipe, data, skip_unreadable
        self._buckets = checked_buckets(pipe, buckets)
        self.skipped: dict[str, str] = {}
        known = np.arange(len(data))
        if len(self._buckets) == 1:
            self.members = [known]  # no picture is opened before it is needed
        else:
            known = known[(data.sizes > 0).all(axis=1)]
            if len(known) < len(data):
                self._refuse_or_count(np.setdiff1d(np.arange(len(data)), known))
            nearest = nearest_buckets(data.sizes[known], self._buckets)
            self.members = [known[nearest == bucket] for bucket in range(len(self._buckets))]
            self._buckets = [size for size, of in zip(self._buckets, self.members, strict=True) if len(of)]
            self.members = [of for of in self.members if len(of)]
        _check_full(
            self._buckets, self.members, batch_size, "buckets=bucket_sizes(..., pictures=data.sizes, least=...)"
        )
        self._pool = ThreadPoolExecutor(thread_name_prefix="cmjax-decode")

    def _refuse_or_count(self, unreadable: np.ndarray) -> None:
        names = [self._data.name(i) for i in unreadable.tolist()]
        if not self._may_skip:
            raise ValueError(
                f"{len(names):,} of {len(self._data):,} pictures cannot be read, such as {some(names)}: move them "
                "away, or give skip_unreadable=True (--skip-unreadable)."
            )
        self.skipped |= dict.fromkeys(names, "has no size that can be read")

    def count(self, index: int) -> int:
        return len(self._data.captions[index])

    def latents(self, chosen: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        found = list(self._pool.map(lambda i: self._readable(i, bucket), chosen.tolist()))
        fitted = [fit_to(picture.image, self._buckets[bucket]) for _, picture in found]
        mean, deviation = encoded(self._pipe, np.stack([one.image for one in fitted]))
        sizes = np.stack([one.sizes for one in fitted]).astype(np.float32)
        return np.array([index for index, _ in found]), mean, deviation, sizes

    def _readable(self, index: int, bucket: int) -> tuple[int, CaptionedPicture]:
        """A picture, or the next one of its bucket that can be read."""
        members = self.members[bucket]
        first = int(np.searchsorted(members, index))
        for other in itertools.chain(members[first:].tolist(), members[:first].tolist()):
            try:
                return other, self._data[other]
            except (ValueError, OSError) as error:
                if not self._may_skip:
                    remedy = "To go on without such pictures, give skip_unreadable=True (--skip-unreadable)."
                    raise ValueError(f"{error} {remedy}") from error
                self.skipped[self._data.name(other)] = str(error)
        raise ValueError(f"no picture of the bucket {self._buckets[bucket]} can be read.")

    def told(
        self, pipe: TextToImage, chosen: list[int], picks: list[int], is_dropped: np.ndarray, sizes: np.ndarray
    ) -> WithNull:
        captions = [self._data.captions[i] for i in chosen]
        texts = [of_one[k % len(of_one)] for of_one, k in zip(captions, picks, strict=True)]
        return _told(pipe, tokenized(pipe, texts), is_dropped, sizes)


class _Cache:
    def __init__(self, pipe: TextToImage, cache: LatentCache, batch_size: int, sample: bool):
        cache.check(pipe)
        if sample and not cache.is_sampled:
            raise ValueError(f"sample needs deviations, but {cache.folder} was made without: precompute(sample=True).")
        self._cache = cache
        self.skipped: dict[str, str] = {}
        filled = [(size, of) for size, of in zip(cache.buckets, cache.members, strict=True) if len(of)]
        self.members = [of for _, of in filled]
        _check_full([size for size, _ in filled], self.members, batch_size, f"precompute(..., {_REMEDY})")

    def count(self, index: int) -> int:
        return len(self._cache.texts_of(index))

    def latents(self, chosen: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return (chosen, *self._cache.latents(chosen))

    def told(
        self, pipe: TextToImage, chosen: list[int], picks: list[int], is_dropped: np.ndarray, sizes: np.ndarray
    ) -> WithNull:
        numbers = [self._cache.texts_of(i)[k] for i, k in zip(chosen, picks, strict=True)]
        if not self._cache.has_texts:
            return _told(pipe, tokenized(pipe, [self._cache.text(number) for number in numbers]), is_dropped, sizes)
        cond = _with_sizes(pipe, self._cache.encoded(numbers), sizes)
        if pipe.zeros_for_empty:
            empty = pipe.without_text(cond)
        else:
            row = self._cache.encoded([0])
            empty = jax.tree.map(lambda one, like: jnp.broadcast_to(one, like.shape), row, cond.replace(sizes=None))
        return _chosen(cond, empty.replace(sizes=cond.sizes), is_dropped)


@jax.jit
def _told(pipe: TextToImage, tokens: PromptTokens, is_dropped: Array, sizes: Array) -> WithNull:
    """What the network is told: of texts, or of no text where they are dropped, and of the pictures' sizes."""
    cond = _with_sizes(pipe, pipe.encode(tokens), sizes)
    return _chosen(cond, pipe.without_text(cond).replace(sizes=cond.sizes), is_dropped)


def _with_sizes(pipe: TextToImage, cond: TextCond, sizes: Array | np.ndarray) -> TextCond:
    """Tell sizes f32[B, 6], where the network is told any; a refiner is told a score in place of the target."""
    native = pipe.told_sizes(cond.context.shape[0])
    if native is None:
        return cond.replace(sizes=None)
    own = jnp.asarray(sizes)
    return cond.replace(sizes=own if native.shape[1] == 6 else jnp.concatenate([own[:, :4], native[:, 4:]], axis=1))


def _chosen(cond: TextCond, empty: TextCond, is_dropped: Array | np.ndarray) -> WithNull:
    """The condition of no text where a text is dropped; and beside it, that of no text for all."""

    def choose(told: Array, empty: Array) -> Array:
        return jnp.where(is_dropped.reshape(-1, *(1,) * (told.ndim - 1)), empty, told)

    return WithNull(jax.tree.map(choose, cond, empty), empty)


def _latents(pipe: TextToImage, images: np.ndarray, sample: bool) -> tuple[np.ndarray, np.ndarray]:
    """Encode pictures in parts of one size, which one program serves: f32[N, h, w, c], and deviations if asked for."""
    means, deviations = [], [np.empty((0,), np.float32)]
    for start in range(0, len(images), _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        count = len(part)
        full = np.concatenate([part, np.repeat(part[-1:], min(_AT_ONCE, len(images)) - count, axis=0)])
        mean, deviation = encoded(pipe, full)
        means.append(mean[:count])
        deviations.append(deviation[:count])
    return np.concatenate(means), np.concatenate(deviations[1:]) if sample else deviations[0]


def _check_full(
    buckets: Sequence[tuple[int, int]], members: Sequence[np.ndarray], batch_size: int, remedy: str
) -> None:
    """Refuse a bucket that would give a batch the same picture twice."""
    total = sum(map(len, members))
    if total < batch_size:
        raise ValueError(f"batch_size is {batch_size} but there are {total} pictures: use a smaller batch.")
    few = [f"{h} x {w} has {len(of)}" for (h, w), of in zip(buckets, members, strict=True) if len(of) < batch_size]
    if few:
        raise ValueError(
            f"each bucket must have pictures for a batch of {batch_size}, but {some(few)}: use a smaller batch, or "
            f"leave such buckets out by {remedy}."
        )


def _check(pipe: TextToImage, data: Captioned, batch_size: int) -> None:
    images, captions = data
    if getattr(images, "ndim", 0) != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"data.images must be u8[N, H, W, C], got {getattr(images, 'dtype', type(images).__name__)}"
            f"{list(getattr(images, 'shape', ()))}: io.read_captions reads them."
        )
    if len(captions) != len(images) or not all(captions):
        lacking = sum(1 for of_one in captions if not of_one)
        raise ValueError(
            f"data.captions must be one or more texts for each of the {len(images)} pictures, got {len(captions)}, of "
            f"which {lacking} are empty."
        )
    if len(images) < batch_size:
        raise ValueError(f"batch_size is {batch_size} but there are {len(images)} pictures: use a smaller batch.")
    pipe.latent_shape(1, images.shape[1:3])
