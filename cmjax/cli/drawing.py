"""Images by number: image i of a seed, whatever the batch and the devices; for every command that draws."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from rich.console import Console
from rich.progress import track

import cmjax
from cmjax._mesh import Device, batch_mesh
from cmjax._random import split
from cmjax.cli.errors import bad_input
from cmjax.io.images import grid
from cmjax.models import UNetConfig

__all__ = [
    "Batches",
    "Drawn",
    "Run",
    "class_grid",
    "class_of",
    "compile_batches",
    "compile_draw",
    "default_batch",
    "draw_all",
    "image_shape",
    "strips",
    "with_bar",
]

_BATCH, _BATCH_PIXELS = 128, 1 << 20


class Drawn(NamedTuple):
    """Images f[N, H, W, C] and, if every step is wanted, the estimates x0 f[N, n, H, W, C] on the way."""

    images: Any
    x0: Any = None


class Run(NamedTuple):
    """What was drawn, a pytree of arrays [count, ...], and the seconds that compiling and drawing took."""

    images: Any
    compile_seconds: float
    seconds: float


def class_of(indices: np.ndarray, classes: Sequence[int] | None) -> np.ndarray | None:
    """Say the class of image i: the classes in turn, so that it does not depend on how many images are drawn.

    Example:
      >>> class_of(np.arange(5), [3, 7])
      array([3, 7, 3, 7, 3], dtype=int32)
    """
    return None if classes is None else np.array(classes, np.int32)[indices % len(classes)]


def compile_draw(
    model: Any,
    state: Any,
    shape: tuple[int, ...],
    *,
    classes: Sequence[int] | None,
    seed: int,
    every_step: bool = False,
    devices: Sequence[Device] | None = None,
    generate: Callable[..., Any] = cmjax.generate,
) -> Batches:
    """Compile the call that draws one batch of images, sharded over devices.

    Image i gets a key of its own, the seed's folded with i, and the i-th class in turn; it depends on nothing else.

    Args:
      model: a `ModelFn`, or its abstract form.
      state: a sampler's state at the start of its path.
      shape: (B, H, W, C); the largest number of devices that divides B is used.
      classes: the classes drawn in turn, or None for a model without classes.
      seed: which images.
      every_step: keep the estimates x0 of all steps.
      devices: of this process; None for all.
      generate: what draws, (model, state, keys, shape, cond) -> images.

    Returns:
      The call, for any weights of the same network.
    """

    def draw(model, shared, rows):
        (state, key), (indices, cond) = shared, rows
        own = (len(indices), *shape[1:])
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
        if not every_step:
            return Drawn(generate(model, state, keys, own, cond))
        return _generate_with_steps(model, state, keys, own, cond)

    shared = state, jax.random.key(seed)
    return compile_batches(draw, model, shared, shape[0], lambda i: (i, class_of(i, classes)), devices)


class Batches:
    """A compiled call of whole batches, each device with its part of them.

    Args:
      compiled: (model, shared, rows) -> arrays [B, ...].
      arguments: from the numbers of images, i32[B], to (shared, rows) on the devices.
      everywhere: how a model lies on them.
      size: B.
    """

    def __init__(
        self, compiled: Callable[..., Any], arguments: Callable[[np.ndarray], Any], everywhere: Any, size: int
    ):
        self._compiled, self._arguments, self._everywhere, self.size = compiled, arguments, everywhere, size

    def place(self, model: Any) -> Any:
        """Put a model on every device, where it is used from then on."""
        return jax.device_put(model, self._everywhere)

    def __call__(self, first: int, model: Any) -> Any:
        """What belongs to the images first ... first + B - 1, on the host."""
        return self.of(np.arange(first, first + self.size, dtype=np.int32), model)

    def of(self, numbers: np.ndarray, model: Any) -> Any:
        """What belongs to the images of these numbers, i32[B], on the host."""
        return jax.device_get(self._compiled(self.place(model), *self._arguments(numbers)))


def compile_batches(
    draw: Callable[[Any, Any, Any], Any],
    model: Any,
    shared: Any,
    size: int,
    rows: Callable[[np.ndarray], Any],
    devices: Sequence[Device] | None = None,
) -> Batches:
    """Compile a function of batches, so that each device runs it on its part.

    What a device computes then depends on how many images are its own, and not on how many others there are.

    Args:
      draw: (model, shared, rows) -> arrays [b, ...], pure, for any b.
      model: a `ModelFn`, or its abstract form.
      shared: a pytree that all images share: the path, keys.
      size: B; the largest number of devices that divides it is used.
      rows: i32[B], the numbers of images -> a pytree of what belongs to each, arrays [B, ...].
      devices: of this process; None for all.
    """
    mesh = batch_mesh(size, devices)
    everywhere, split_up = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))

    def arguments(numbers: np.ndarray) -> Any:
        return jax.device_put(shared, everywhere), jax.device_put(rows(numbers), split_up)

    parts = P(), P(), P("batch")
    spread = jax.shard_map(draw, mesh=mesh, in_specs=parts, out_specs=P("batch"), check_vma=False)
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), model)
    compiled = jax.jit(spread).lower(weights, *arguments(np.arange(size, dtype=np.int32))).compile()
    return Batches(compiled, arguments, everywhere, size)


def draw_all(compiled: Callable[[], Batches], load: Callable[[], Any], count: int, batch: int) -> Run:
    """Compile, load the weights, and draw batch after batch, with a bar if there are many.

    In this order, as compiling takes memory that the weights can have after it. The last batch is full too, and what is
    too much is dropped.

    Args:
      compiled: makes the call, as `compile_batches` does.
      load: makes the model.
      count: how many in all.
      batch: how many at once.

    Raises:
      UsageError: the weights cannot be loaded.
    """
    start = time.perf_counter()
    draw = compiled()
    compile_seconds = time.perf_counter() - start
    with bad_input():
        model = draw.place(load())
    start = time.perf_counter()
    batches = [draw(first, model) for first in with_bar(range(0, count, batch), "drawing")]
    seconds = time.perf_counter() - start
    return Run(jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches), compile_seconds, seconds)


def with_bar(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Go through items with a bar and the time left on standard error, if there are many."""
    return track(items, what, console=Console(stderr=True), transient=True, disable=len(items) == 1)


def default_batch(height: int, width: int) -> int:
    """Say how many images of a size are computed at once, where nobody says."""
    return min(_BATCH, max(1, _BATCH_PIXELS // (height * width)))


def _generate_with_steps(model: Any, state: Any, keys: Any, shape: tuple[int, ...], cond: Any) -> Drawn:
    """Draw what `cmjax.generate` draws, and keep the estimates of all steps."""
    k_x, k_z = split(keys, 2)
    path = cmjax.trajectory(model, state, cmjax.prior(state, k_x, shape), k_z, cond)
    return Drawn(path.x[-1], path.x0.swapaxes(0, 1))


def image_shape(config: UNetConfig) -> tuple[int, int, int]:
    """Say the size (H, W, C) of the images of a network.

    Raises:
      ValueError: its config does not say, or the network cannot make images of that size.
    """
    size = config.sample_size
    if size is None:
        raise ValueError("the network's config.json has no sample_size, so the size of its images is unknown.")
    height, width = (size, size) if isinstance(size, int) else size
    if height % config.downsampling or width % config.downsampling:
        raise ValueError(
            f"the network's sample_size {size} must be a multiple of {config.downsampling}, its downsampling."
        )
    if config.out_channels != config.in_channels:
        raise ValueError(
            f"the network makes {config.out_channels} channels of {config.in_channels}; "
            "a sampler needs as many out as in."
        )
    return height, width, config.in_channels


def strips(drawn: Drawn) -> np.ndarray:
    """Show each image, or, with every step, its strip of steps: [N, H, W, C] or [N, H, n W, C].

    The last column is the sample, where the path ends, in place of the last estimate.
    """
    if drawn.x0 is None:
        return drawn.images
    return np.concatenate([*np.moveaxis(drawn.x0, 1, 0)[:-1], drawn.images], axis=2)


def class_grid(images: np.ndarray, names: Sequence[str] | None) -> Image.Image:
    """Lay images out, one row a class; without classes, in a square.

    Args:
      images: u8[N, H, W, C], in the order of `class_of`.
      names: the names of the classes drawn in turn, or None.
    """
    count = len(images)
    if names is None:
        return grid(images, math.ceil(math.sqrt(count)))
    rows = min(len(names), count)
    columns = math.ceil(count / rows)
    full = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    full[:count] = images
    by_row = full.reshape(columns, rows, *images.shape[1:]).swapaxes(0, 1).reshape(full.shape)
    return grid(by_row, columns, row_labels=names[:rows])
