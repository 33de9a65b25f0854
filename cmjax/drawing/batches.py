"""Draw images by number: image i of a seed is the same whatever the batch, the devices and the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax import sampling
from cmjax._mesh import Device, batch_mesh
from cmjax._random import image_keys
from cmjax.drawing.devices import choose_devices
from cmjax.models import UNetConfig

__all__ = [
    "Batches",
    "Drawn",
    "class_of",
    "compile_batches",
    "compile_draw",
    "default_batch",
    "draw_all",
    "image_shape",
]

_BATCH, _BATCH_PIXELS = 128, 1 << 20


class Drawn(NamedTuple):
    """What was drawn.

    Attributes:
      images: f[N, H, W, C].
      x0: the estimates of every step, f[N, n, H, W, C]; None where they were not kept.
    """

    images: Any
    x0: Any = None


def class_of(indices: np.ndarray, classes: Sequence[int] | None) -> np.ndarray | None:
    """Say the class of image i: the classes in turn, so that it does not depend on how many images are drawn.

    Args:
      indices: numbers of images, i[N].
      classes: the classes drawn in turn; None for a model without classes.

    Returns:
      i32[N], or None.

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
    generate: Callable[..., Any] = sampling.generate,
    cond_of: Callable[[np.ndarray], Any] | None = None,
) -> Batches:
    """Compile the call that draws one batch of images, sharded over devices.

    Image i gets its own key, `cmjax.image_keys(seed, i)`, and the i-th class in turn. It depends on nothing else.

    Args:
      model: a `ModelFn`, or its abstract form.
      state: a sampler's state at the start of its path.
      shape: (B, H, W, C) of the starting noise; the largest number of devices that divides B is used.
      classes: the classes drawn in turn, or None for a model without classes.
      seed: which images.
      every_step: whether to keep the estimates x0 of all steps.
      devices: of this process; None for those that `choose_devices` takes for the model.
      generate: the function that draws, (model, state, keys, shape, cond) -> images; with keep_steps=True it returns a
        `Trajectory`.
      cond_of: from numbers of images, i[B], to their cond, arrays [B, ...]; None for classes.

    Returns:
      The call, for any weights of the same network. It returns a `Drawn`.

    Example:
      The images 8 and 9 of seed 0:

      >>> import cmjax
      >>> model = jax.tree_util.Partial(lambda x, t, cond: 0.5 * x)
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
      >>> draw = compile_draw(model, state, (2, 4, 4, 1), classes=None, seed=0)
      >>> draw(8, model).images.shape
      (2, 4, 4, 1)
    """

    def draw(model, shared, rows):
        (state, key), (indices, cond) = shared, rows
        own = (len(indices), *shape[1:])
        keys = image_keys(key, indices)
        if not every_step:
            return Drawn(generate(model, state, keys, own, cond))
        path = generate(model, state, keys, own, cond, keep_steps=True)
        return Drawn(path.x[-1], path.x0.swapaxes(0, 1))

    shared = state, jax.random.key(seed)
    cond_of = cond_of or partial(class_of, classes=classes)
    return compile_batches(draw, model, shared, shape[0], lambda i: (i, cond_of(i)), devices)


class Batches:
    """A compiled call that draws whole batches, in which each device draws its part. `compile_batches` makes it.

    Args:
      compiled: (model, shared, rows) -> arrays [B, ...].
      arguments: from the numbers of images, i32[B], to (shared, rows) on the devices.
      everywhere: the sharding of a model that every device holds.
      size: B.
    """

    def __init__(
        self, compiled: Callable[..., Any], arguments: Callable[[np.ndarray], Any], everywhere: Any, size: int
    ):
        self._compiled, self._arguments, self._everywhere, self.size = compiled, arguments, everywhere, size

    def place(self, model: Any) -> Any:
        """Copy a model to every device. Pass the result to later calls, so that the weights move once."""
        if all(getattr(leaf, "sharding", None) == self._everywhere for leaf in jax.tree.leaves(model)):
            return model  # device_put takes milliseconds to find that out
        return jax.device_put(model, self._everywhere)

    def __call__(self, first: int, model: Any) -> Any:
        """Draw the images first ... first + B - 1, and return them on the host."""
        return self.of(np.arange(first, first + self.size, dtype=np.int32), model)

    def of(self, numbers: np.ndarray, model: Any) -> Any:
        """Draw the images of these numbers, i32[B], and return them on the host."""
        return jax.device_get(self._compiled(self.place(model), *self._arguments(numbers)))


def compile_batches(
    draw: Callable[[Any, Any, Any], Any],
    model: Any,
    shared: Any,
    size: int,
    rows: Callable[[np.ndarray], Any],
    devices: Sequence[Device] | None = None,
) -> Batches:
    """Compile a function of a batch so that each device runs it on its part of the batch.

    What a device computes then depends on the size of its part, and not on the number of devices.

    Args:
      draw: (model, shared, rows) -> arrays [b, ...], pure, for any b.
      model: a `ModelFn`, or its abstract form.
      shared: a pytree that all images share, such as the path and keys.
      size: B; the largest number of devices that divides it is used.
      rows: from the numbers of images, i32[B], to a pytree of what belongs to each, arrays [B, ...].
      devices: of this process; None for those that `choose_devices` takes for the model.

    Returns:
      The compiled call.
    """
    mesh = batch_mesh(size, choose_devices(model=model) if devices is None else devices)
    everywhere, split_up = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))

    shared = jax.device_put(shared, everywhere)

    def arguments(numbers: np.ndarray) -> Any:
        return shared, jax.device_put(rows(numbers), split_up)

    parts = P(), P(), P("batch")
    spread = jax.shard_map(draw, mesh=mesh, in_specs=parts, out_specs=P("batch"), check_vma=False)
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), model)
    compiled = jax.jit(spread).lower(weights, *arguments(np.arange(size, dtype=np.int32))).compile()
    return Batches(compiled, arguments, everywhere, size)


def draw_all(
    draw: Batches,
    model: Any,
    count: int,
    *,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Any:
    """Draw the images 0 ... count - 1, batch after batch.

    The last batch is full too, and its surplus is dropped.

    Args:
      draw: the compiled call.
      model: with weights.
      count: images in all.
      progress: goes through the batches' first numbers, such as `tqdm.tqdm`.

    Returns:
      What `draw` returns, arrays [count, ...] on the host.
    """
    model = draw.place(model)
    batches = [draw(first, model) for first in progress(range(0, count, draw.size))]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)


def default_batch(height: int, width: int) -> int:
    """Choose how many images of a size a device draws at once: at most 128, and about a million pixels.

    Example:
      >>> default_batch(28, 28), default_batch(1024, 1024)
      (128, 1)
    """
    return min(_BATCH, max(1, _BATCH_PIXELS // (height * width)))


def image_shape(config: UNetConfig) -> tuple[int, int, int]:
    """Read the shape of a network's images off its config.

    Args:
      config: of the network.

    Returns:
      (H, W, C).

    Raises:
      ValueError: the config does not say, or the network cannot draw images of that size.
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
