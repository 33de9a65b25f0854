"""Work around XLA on CPUs: the same sums, in an order that suits the machine.

On GPU and TPU a convolution is one call. On a CPU, XLA's convolution is far from what the machine can do. Other orders
of the same sums are faster, all of them matrix products (figures by `benchmarks/unet_forward.py`):

- few pixels, large kernel: XLA rearranges the whole kernel at every call, which takes longer than the sums themselves.
  The windows laid side by side, times the kernel as one matrix, need no such rearrangement.
- many pixels and channels: Winograd's minimal filtering gives four pixels of a 3x3 convolution for 16 products, not 36.
- a picture doubled by repeating pixels: the same minimal filtering, where seven of the 16 products meet zeros: nine.
  With few channels a 2x2 convolution of the small picture, with four times the channels out: one for each new pixel.
- a kernel of one pixel: a matrix product, whose gradients are again products.
- attention whose weights do not stay in the cache: one head after the other.
- large pictures: minimal filtering in strips of rows, with a quarter of the memory and no more time.
- a norm's numbers for each picture and channel: computed once, not for each pixel.

All are exact on paper. Minimal filtering with tiles of this size only adds and halves, so that its rounding is no worse
than that of the plain sum (larger tiles would save more and lose digits).

References:
  Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
  Networks, 2016, section 4.1 (F(2x2, 3x3)).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from cmjax import _cpu
from cmjax.models.layers.resample import interleave, upsample_nearest
from cmjax.types import Array

__all__ = ["Padding", "apart", "attend_by_heads", "convolve", "convolve_doubled"]

Padding = Sequence[tuple[int, int]]
Grid = Sequence[Sequence[Array]]
Transform = Callable[..., tuple[Array, ...]]

_NHWC = ("NHWC", "HWIO", "NHWC")

# Where the formulations cross over on CPUs, from sizes of 7 to 64 pixels and 32 to 768 channels at batches 1 to 16:
# one product from this many numbers of the kernel for each pixel; minimal filtering from this many channels.
_KERNEL_PER_PIXEL = 4500
_CHANNELS = 128

# Where the weights of all heads are more than this many, they do not stay in a CPU's cache: one head's do.
_WEIGHTS = 1 << 22

# A picture of more numbers than this is filtered in strips of rows, since the transforms take four times as many.
_STRIP = 1 << 22


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding, **_: Any) -> Array:
    """Convolve pictures, in the formulation that suits the sizes and the platform.

    Args:
      x: f[B, H, W, c_in].
      kernel: f[h, w, c_in, c_out], in the dtype of x.
      strides: of the window.
      padding: zeros before and after, for each axis of the picture.
      **_: what else flax gives to `jax.lax.conv_general_dilated`; the networks here leave it all at its default.

    Returns:
      f[B, H', W', c_out].

    Example:
      >>> convolve(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 2)), (1, 1), ((1, 1), (1, 1)))[0, 0, 0]
      Array([12., 12.], dtype=float32)
    """
    height, width = (
        (size + sum(pad) - window) // stride + 1
        for size, pad, window, stride in zip(x.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    )

    def direct(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)

    def one_product(x: Array, kernel: Array) -> Array:
        return _one_product(x, kernel, (height, width), strides, padding)

    def pixelwise(x: Array, kernel: Array) -> Array:
        return x @ kernel[0, 0]

    kind = kernel.shape[:2], tuple(strides), tuple(map(tuple, padding))
    plain = kind == ((3, 3), (1, 1), ((1, 1), (1, 1)))
    if not _cpu.WORKAROUNDS:
        return direct(x, kernel)
    if kind == ((1, 1), (1, 1), ((0, 0), (0, 0))):
        on_cpu = pixelwise
    elif _are_few(x.shape[0], height, width, kernel):
        on_cpu = one_product
    elif plain and _is_wide(x, kernel):
        on_cpu = _minimal_filtering
    else:
        return direct(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct)


def convolve_doubled(x: Array, kernel: Array) -> Array:
    """Double pictures by repeating their pixels, then convolve them with a 3x3 kernel.

    Args:
      x: f[B, H, W, c_in].
      kernel: f[3, 3, c_in, c_out], in the dtype of x.

    Returns:
      f[B, 2 H, 2 W, c_out].
    """

    def plainly(x: Array, kernel: Array) -> Array:
        return convolve(upsample_nearest(x), kernel, (1, 1), ((1, 1), (1, 1)))

    if not _cpu.WORKAROUNDS or x.dtype != jnp.float32:  # sums of kernels have no digits to lose
        return plainly(x, kernel)
    on_cpu = _minimal_filtering_doubled if _is_wide(x, kernel) else _four_pixels
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plainly)


def attend_by_heads(attend: Callable[..., Array], q: Array, k: Array, v: Array) -> Array:
    """Attend, `attend(q, k, v)`, to one head after the other where that suits the sizes and the platform.

    Args:
      attend: of any leading axes.
      q: f[B, heads, N, d].
      k: f[B, heads, M, d].
      v: f[B, heads, M, d].

    Returns:
      f[B, heads, N, d].
    """
    batch = q.shape[0] if isinstance(q.shape[0], int) else 1  # of any size (`jax.export`): then one picture decides
    if not _cpu.WORKAROUNDS or batch * q.shape[1] * q.shape[2] * k.shape[2] <= _WEIGHTS:
        return attend(q, k, v)

    def head_by_head(q: Array, k: Array, v: Array) -> Array:
        first = tuple(jnp.moveaxis(y, 1, 0) for y in (q, k, v))  # the batch stays an axis: it may be sharded
        return jnp.moveaxis(jax.lax.map(lambda head: attend(*head), first), 0, 1)

    return jax.lax.platform_dependent(q, k, v, cpu=head_by_head, default=attend)


def apart(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compute a few numbers for each picture apart from the loops over its pixels.

    XLA fuses small sums and products into the loop that uses them, where they are computed again for each pixel.

    Args:
      *static: names of the arguments that are no arrays; callers give them by keyword.

    Returns:
      A decorator of a function of arrays.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        called = _as_a_call(function, *static)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if not _cpu.WORKAROUNDS:
                return function(*args, **options)
            on_cpu, default = (functools.partial(f, **options) for f in (called, function))
            return jax.lax.platform_dependent(*args, cpu=on_cpu, default=default)

        return call

    return decorate


def _as_a_call(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """Keep a function together in the compiled program, not fused with what is around it.

    This also saves memory. The transforms of a kernel wait for nothing but the kernel: inlined, XLA does those of all
    layers first, and holds the results until each is used (312 MiB instead of 84 for one picture through the ImageNet
    64 network).
    """
    jitted = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **options)

    return call


def _are_few(batch: Any, height: int, width: int, kernel: Array) -> bool:
    """Whether there are few pixels for the numbers of the kernel. A batch of any size (`jax.export`) has many."""
    return isinstance(batch, int) and kernel.size > _KERNEL_PER_PIXEL * batch * height * width


def _is_wide(x: Array, kernel: Array) -> bool:
    """Whether minimal filtering pays: the sums over channels outweigh the transforms. Not with few digits to lose."""
    return min(kernel.shape[2:]) >= _CHANNELS and x.dtype == jnp.float32


def _one_product(x: Array, kernel: Array, size: tuple[int, int], strides: tuple[int, int], padding: Padding) -> Array:
    """The windows side by side, f[B H' W', h w c_in], times the kernel as a matrix."""
    *window, c_in, c_out = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    spans = [(n - 1) * stride + 1 for n, stride in zip(size, strides, strict=True)]
    shifted = [
        x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]
    columns = jnp.concatenate(shifted, axis=-1).reshape(-1, len(shifted) * c_in)
    return (columns @ kernel.reshape(-1, c_out)).reshape(x.shape[0], *size, c_out)


@_as_a_call
def _minimal_filtering(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution, two by two pixels at a time: F(2x2, 3x3)."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    return _by_strips(functools.partial(_filtered, kernel=kernel), x, step=2)[:, :h, :w]


def _filtered(x: Array, kernel: Array) -> Array:
    """The convolution of a padded picture of even sides."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    return _filter(
        [[x[:, i : i + h : 2, j : j + w : 2] for j in range(4)] for i in range(4)],
        kernel,
        lambda d0, d1, d2, d3: (d0 - d2, d1 + d2, d2 - d1, d1 - d3),
        lambda g0, g1, g2: (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2),
        lambda m0, m1, m2, m3: (m0 + m1 + m2, m1 - m2 - m3),
    )


def _by_strips(convolution: Callable[[Array], Array], x: Array, step: int) -> Array:
    """Convolve large pictures in strips of rows, one after the other, so that memory holds the transforms of one.

    Args:
      convolution: of padded pictures, whose first and last row are beyond what is convolved.
      x: f[B, H + 2, W + 2, C].
      step: a strip has a multiple of it for its rows.
    """
    height, size = x.shape[1] - 2, math.prod(x.shape[1:])
    most = height // step
    strips = next((n for n in range(1, most + 1) if height % (n * step) == 0 and size <= n * _STRIP), 1)
    if strips == 1:
        return convolution(x)
    rows = height // strips
    found = jax.lax.map(
        lambda start: convolution(jax.lax.dynamic_slice_in_dim(x, start, rows + 2, axis=1)),
        rows * jnp.arange(strips),
    )
    return jnp.moveaxis(found, 0, 1).reshape(x.shape[0], strips * found.shape[2], *found.shape[3:])


@_as_a_call
def _minimal_filtering_doubled(x: Array, kernel: Array) -> Array:
    """The same for repeated pixels: a tile's rows are (above, here, here, below), and d2 - d1 is nothing."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _by_strips(functools.partial(_filtered_doubled, kernel=kernel), x, step=1)


def _filtered_doubled(x: Array, kernel: Array) -> Array:
    h, w = x.shape[1] - 2, x.shape[2] - 2
    return _filter(
        [[x[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)],
        kernel,
        lambda above, here, below: (above - here, here, here - below),
        lambda g0, g1, g2: (g0, g0 + g1 + g2, g2),
        lambda m0, m1, m2: (m0 + m1, m1 - m2),
    )


@jax.custom_jvp
def _four_pixels(x: Array, kernel: Array) -> Array:
    """Each pixel becomes four, and each of these is a 2x2 convolution: where the 3x3 kernel met a pixel twice, its sum.

    XLA has no fast gradient for a kernel of even size; that of the same sums as one product is fast.
    """
    windows = jax.lax.conv_general_dilated(x, _four_kernels(kernel), (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC)
    return _shuffled(windows)


@_four_pixels.defjvp
def _four_pixels_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    def as_one_product(x: Array, kernel: Array) -> Array:
        _, h, w, _ = x.shape
        return _shuffled(_one_product(x, _four_kernels(kernel), (h + 1, w + 1), (1, 1), ((1, 1), (1, 1))))

    (x, kernel), (dx, dkernel) = primals, tangents
    return _four_pixels(x, kernel), as_one_product(dx, kernel) + as_one_product(x, dkernel)


def _four_kernels(kernel: Array) -> Array:
    """The kernels of the four pixels, side by side: f[3, 3, c_in, c_out] -> f[2, 2, c_in, 4 c_out]."""
    taps = jnp.asarray([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype)  # [pixel, tap, its sum]
    four = jnp.einsum("pai,qbj,ijcd->abcpqd", taps, taps, kernel)
    return four.reshape(2, 2, kernel.shape[2], -1)


def _shuffled(windows: Array) -> Array:
    """Lay the four pixels of each window beside each other: f[B, H + 1, W + 1, 4 C] -> f[B, 2 H, 2 W, C]."""
    b, h, w, c = windows.shape
    four = windows.reshape(b, h, w, 2, 2, c // 4)
    return interleave(
        [interleave([four[:, i : i + h - 1, j : j + w - 1, i, j] for j in range(2)], axis=2) for i in range(2)], axis=1
    )


def _filter(tiles: Grid, kernel: Array, of_tile: Transform, of_kernel: Transform, of_products: Transform) -> Array:
    """Transform tiles and kernel along both axes, multiply position by position, and transform back to 2x2 pixels."""
    tiles, weights = _both_axes(of_tile, tiles), _both_axes(of_kernel, kernel)
    products = [[d @ g for d, g in zip(*rows, strict=True)] for rows in zip(tiles, weights, strict=True)]
    return interleave([interleave(row, axis=2) for row in _both_axes(of_products, products)], axis=1)


def _both_axes(transform: Transform, grid: Any) -> Grid:
    """Transform the columns of a grid of arrays, then its rows."""
    columns = [transform(*column) for column in zip(*grid, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]
