"""Code large pictures in overlapping tiles, so that memory holds one tile's activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.types import Array

__all__ = ["Coding", "in_tiles"]

Coding = Callable[[Array], Any]  # f[B, H, W, C] -> a pytree of f[B, H', W', D]


def in_tiles(code: Coding, x: Array, sides: tuple[int, int]) -> Any:
    """Code pictures in tiles that begin three quarters of a tile after each other; those at the end may be smaller.

    Tiles of one size (all but the last row and column) are coded one after the other, by one program.

    Differs from diffusers only where its last row or column of tiles would hold nothing that the one before does not
    hold too, such as a second column for pictures as wide as a tile: these are left out.

    Args:
      code: what codes a picture of any size; everything that it returns is of one size.
      x: f[B, H, W, C].
      sides: of a tile, in and out, multiples of 4.

    Returns:
      What `code` returns for x, each tile faded into its neighbours over a quarter of a tile. A picture that is not
      larger than a tile is coded as a whole.

    Example:
      >>> x = jnp.ones((1, 16, 8, 3))
      >>> bool(jnp.allclose(in_tiles(lambda x: 2 * x, x, (8, 8)), 2 * x))
      True
    """
    side = sides[0]
    if max(x.shape[1:3]) <= side:
        return code(x)
    starts = [range(0, max(size - side // 4, 1), side * 3 // 4) for size in x.shape[1:3]]
    tiles = {
        (i, j): x[:, top : top + side, left : left + side]
        for i, top in enumerate(starts[0])
        for j, left in enumerate(starts[1])
    }
    by_shape: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for place, tile in tiles.items():
        by_shape[tile.shape].append(place)
    coded: dict[tuple[int, int], Any] = {}
    for places in by_shape.values():
        found = jax.lax.map(code, jnp.stack([tiles[place] for place in places]))
        coded |= {place: jax.tree.map(lambda y, n=n: y[n], found) for n, place in enumerate(places)}
    return jax.tree.map(lambda *parts: _joined(dict(zip(coded, parts, strict=True)), sides[1]), *coded.values())


def _joined(tiles: dict[tuple[int, int], Array], side: int) -> Array:
    """Fade each tile into those below and to its right over a quarter of a tile, and lay them side by side."""
    fade, kept = side // 4, side * 3 // 4
    bottom, right = max(tiles)
    rows: list[list[Array]] = [[] for _ in range(bottom + 1)]
    for i, j in sorted(tiles):
        tile = tiles[i, j]
        if i:
            tile = _faded(rows[i - 1][j], tile, fade, axis=1)
        if j:
            tile = _faded(rows[i][j - 1], tile, fade, axis=2)
        rows[i].append(tile)

    def cut(i: int, j: int) -> Array:
        return rows[i][j][:, : kept if i < bottom else None, : kept if j < right else None]

    return jnp.concatenate(
        [jnp.concatenate([cut(i, j) for j in range(right + 1)], axis=2) for i in range(bottom + 1)], axis=1
    )


def _faded(before: Array, tile: Array, fade: int, axis: int) -> Array:
    """A tile that begins as the end of the one before, by weights 0, 1 / n, …, (n - 1) / n of its own."""
    n = min(fade, before.shape[axis], tile.shape[axis])
    weight = (jnp.arange(n, dtype=jnp.float32) / n).reshape(-1, *(1,) * (3 - axis))
    end = jax.lax.slice_in_dim(before, before.shape[axis] - n, None, axis=axis)
    begin, rest = jax.lax.slice_in_dim(tile, 0, n, axis=axis), jax.lax.slice_in_dim(tile, n, None, axis=axis)
    return jnp.concatenate([end + weight * (begin - end), rest], axis=axis)
