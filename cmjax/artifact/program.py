"""The program: `cmjax.generate` with its network, as a function of plain dictionaries and arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from cmjax import sampling
from cmjax._numerics import refuse_no_function
from cmjax.samplers.base import SamplerState
from cmjax.sampling.paths import refuse_used

__all__ = ["PLATFORMS", "export", "named", "tables"]

PLATFORMS = ("cpu", "cuda", "tpu")


def tables(state: SamplerState) -> dict[str, jax.Array]:
    """Name a path's leaves, as an exported program takes them."""
    names = [f.name for f in dataclasses.fields(state) if not f.metadata.get("static") and f.name != "memory"]
    return {name: getattr(state, name) for name in names}


def export(
    model: Any,
    state: SamplerState,
    image: tuple[int, ...],
    cond: Any = None,
    *,
    platforms: Sequence[str] = PLATFORMS,
    weights: Literal["inside", "beside"] = "inside",
    generate: Callable[..., Any] = sampling.generate,
    noise: tuple[int, ...] | None = None,
) -> jax_export.Exported:
    """Export `cmjax.generate` with its network, for any batch size, one key for each image.

    Args:
      model: a callable pytree `model(x, t, cond)`.
      state: a path, from `cmjax.pad` if the number of steps is to be a value. Its values are inputs of the program;
        its static choices (the prediction type, clipping) are fixed.
      image: the shape of one sample, (H, W, C).
      cond: the conditioning of one image, without a batch axis: a pytree (of dicts, lists and tuples) of arrays or
        `jax.ShapeDtypeStruct`; or None.
      platforms: some of "cpu", "cuda", "rocm" and "tpu".
      weights: "inside" the program, or "beside" it, as an argument.
      generate: what draws, (model, state, keys, shape, cond) -> images, for models that `cmjax.generate` does not draw
        with alone, such as those of latents.
      noise: the shape of one sample's starting noise, where it is not that of the image.

    Returns:
      The exported function (weights, state, keys, cond) -> f32[B, *image]: `weights` are arrays by name ({} if
      they are inside), `state` is `tables(state)`, `keys` the keys' data u32[B, 2], `cond` has the batch first.

    Raises:
      TypeError: state is not a path, or model is not a function or not a pytree of arrays.
      ValueError: a platform or `weights` has another name, image is not a shape, or the path has already stepped.

    Example:
      >>> import cmjax
      >>> state = cmjax.pad(cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2), 4)
      >>> program = export(jax.tree_util.Partial(lambda x, t, cond: 0.5 * x), state, (4, 4, 1), platforms=["cpu"])
      >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
      >>> program.call({}, tables(state), keys, None).shape
      (3, 4, 4, 1)
    """
    _check_platforms(platforms)
    if weights not in ("inside", "beside"):
        raise ValueError(f"weights must be 'inside' or 'beside', got {weights!r}.")
    if not isinstance(state, SamplerState):
        raise TypeError(f"state must be a path, as init(config, num_steps=...) makes it, got a {type(state).__name__}.")
    refuse_used(state, "export")
    if generate is sampling.generate:
        refuse_no_function("model", model, "(x, t, cond) -> what the network says")
    if not isinstance(image, tuple) or not all(type(size) is int and size > 0 for size in image):
        raise ValueError(f"image must be the shape of one sample, such as (28, 28, 1), got {image!r:.60}.")
    names, leaves, structure = named(model)
    if any(not isinstance(leaf, jax.Array | np.ndarray | float | int) for leaf in leaves):
        raise TypeError("model must be a pytree of arrays, as jax.tree_util.Partial(function, arrays) is.")

    def draw(weights: dict[str, Any], tables: dict[str, Any], keys: Any, cond: Any) -> Any:
        own = jax.tree.unflatten(structure, [weights[name] for name in names] if weights else leaves)
        shape = (keys.shape[0], *(image if noise is None else noise))
        return generate(own, state.replace(**tables), jax.random.wrap_key_data(keys), shape, cond)

    (batch,) = jax_export.symbolic_shape("b")
    given = dict(zip(names, leaves, strict=True)) if weights == "beside" else {}
    with_batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype), cond)
    return jax_export.export(jax.jit(draw), platforms=tuple(platforms))(
        *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (given, tables(state))),
        jax.ShapeDtypeStruct((batch, 2), jnp.uint32),
        with_batch,
    )


def _check_platforms(platforms: Sequence[str]) -> None:
    known = (*PLATFORMS, "rocm")
    if isinstance(platforms, str):
        raise ValueError(f"platforms must be a list, of {', '.join(known)}, got {platforms!r}.")
    if not platforms or (unknown := [name for name in platforms if name not in known]):
        got = f"got {unknown[0]!r}" if platforms else "got none"
        raise ValueError(f"platforms must be of {', '.join(known)}, {got}.")


def named(model: Any) -> tuple[list[str], list[Any], Any]:
    """Flatten a model: the names of its weights, the weights, and the tree that they form."""
    found, structure = jax.tree_util.tree_flatten_with_path(model)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    if len(set(names)) < len(names):  # a tree of its own making, whose paths do not tell its leaves apart
        names = [f"{i}" for i in range(len(found))]
    return names, [leaf for _, leaf in found], structure
