"""An artifact in memory, which is called to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from cmjax._numerics import as_array
from cmjax._struct import Struct, static
from cmjax.artifact.program import tables
from cmjax.samplers import sampler_of
from cmjax.samplers.base import SamplerConfig, SamplerState
from cmjax.sampling.paths import pad, refuse_used

__all__ = ["Artifact", "Held"]


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """The contents of an artifact apart from its weights.

    Attributes:
      program: the exported function, `program.call(weights, state, keys, cond)`.
      state: the path that it was exported with, arrays by name; other paths of the same shapes work too.
      config: the sampler's config, from which `init` and `cmjax.pad` make other paths.
      image: (H, W, C), or another shape of one sample.
      classes: the number of the model's classes; None for a model without classes.
      label_names: the names of the classes, or none.
      notes: further notes of its maker.
      prompt: what a model of texts is asked for, by name: [dtype] of a number, or a list of [dtype, length] of tokens.
    """

    program: jax_export.Exported
    state: Mapping[str, np.ndarray]
    config: SamplerConfig
    image: tuple[int, ...]
    classes: int | None = None
    label_names: tuple[str, ...] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt: Mapping[str, Any] | None = None

    @property
    def max_steps(self) -> int:
        """The largest number of steps that the program can take."""
        return self.state["timesteps"].shape[-1]


class Artifact(Struct):
    """An exported sampler: a callable pytree whose leaves are its weights.

    Attributes:
      weights: arrays by name, or nothing where they are inside the program.
      held: everything else.
    """

    weights: Mapping[str, Any]
    held: Held = static()

    def __call__(self, state: SamplerState | Mapping[str, Any], keys: Any, cond: Any = None) -> jax.Array:
        """Draw one image for each key.

        Args:
          state: a path of the config, padded to `max_steps`, or its tables.
          keys: key[B] (threefry, JAX's default), or their data, u32[B, 2].
          cond: conditioning of the shapes that it was exported with: classes i32[B], None, or for a model of texts a
            mapping like `held.prompt`, such as {"tokens": [i32[B, 77]]}.

        Returns:
          f32[B, H, W, C].

        Raises:
          ValueError: the path has other shapes, or there is not one key for each image.
          TypeError: keys are of another kind.
        """
        given = self._tables(state)
        data = _key_data(keys)
        told = self._labels if self.held.prompt is None else self._prompt
        return self.held.program.call(dict(self.weights), given, data, told(cond, data.shape[0]))

    def _prompt(self, cond: Any, batch: int) -> dict[str, Any]:
        """Convert what a model of texts is asked for."""
        wanted: Any = self.held.prompt
        if not isinstance(cond, Mapping) or set(cond) != set(wanted):
            got = ", ".join(cond) if isinstance(cond, Mapping) else type(cond).__name__
            raise ValueError(f"cond must be a mapping of {', '.join(wanted)}, for each image, got {got}.")

        def converted(name: str, value: Any, said: list[Any]) -> Any:
            if isinstance(said[0], list):
                if not isinstance(value, list | tuple) or len(value) != len(said):
                    raise ValueError(f"cond's {name} must be {len(said)} arrays, one for each text encoder.")
                return [converted(name, one, of) for one, of in zip(value, said, strict=True)]
            array, shape = jnp.asarray(value), (batch, *said[1:])
            is_whole = jnp.issubdtype(array.dtype, jnp.integer)
            if array.shape != shape or (said[0] == "int32" and not is_whole):
                raise ValueError(f"cond's {name} must be {said[0]}{list(shape)}, got {array.dtype}{list(array.shape)}.")
            return array.astype(said[0])

        return {name: converted(name, cond[name], said) for name, said in wanted.items()}

    def _labels(self, cond: Any, batch: int) -> Any:
        """Convert classes for the program."""
        if self.held.classes is None:
            if cond is not None:
                raise ValueError("cond must be None: the exported model is told no class.")
            return None
        labels = None if cond is None else as_array("cond", cond, f"i32[{batch}], a class for each image")
        if labels is None or not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != (batch,):
            got = "None" if labels is None else f"{labels.dtype}{list(labels.shape)}"
            raise ValueError(f"cond must be i32[{batch}], a class for each image, got {got}.")
        return labels.astype(jnp.int32)

    def _tables(self, state: Any) -> dict[str, Any]:
        """Convert a path's tables for the program."""
        if isinstance(state, SamplerState):
            refuse_used(state, "an artifact")
            own = pad(sampler_of(self.held.config).init(self.held.config, 1), self.held.max_steps)
            if state.padded and jax.tree.structure(state) != jax.tree.structure(own):
                raise ValueError(f"state must be a path of the artifact's config, such as {own!r}, got {state!r}.")
            state = tables(state)
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a path, padded, or its tables by name, got a {type(state).__name__}.")
        self._check_shapes(state)
        return dict(state)

    def _check_shapes(self, given: Mapping[str, Any]) -> None:
        most = self.held.max_steps
        if more := sorted(given.keys() - self.held.state.keys()):
            raise ValueError(f"state must hold {', '.join(self.held.state)}, but it holds {more[0]} too.")
        for name, table in self.held.state.items():
            shape = jnp.shape(given[name]) if name in given else None
            if shape != table.shape:
                raise ValueError(
                    f"state must be a path padded to {most} steps, cmjax.pad(state, {most}); "
                    + (f"it has no {name}." if shape is None else f"its {name} has shape {shape}, not {table.shape}.")
                )


def _key_data(keys: Any) -> Any:
    """The data of threefry keys, u32[B, 2]."""
    if hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(keys)) != "threefry2x32":
            raise TypeError(f"keys must be threefry keys, JAX's default, got {jax.random.key_impl(keys)}.")
        keys = jax.random.key_data(keys)
    shape, dtype = jnp.shape(keys), getattr(keys, "dtype", None)
    if dtype != jnp.uint32 or len(shape) != 2 or shape[1] != 2:
        raise ValueError(
            "keys must be one for each image, as of jax.random.split(key, 16), or their data u32[B, 2], "
            f"got {'one key' if shape == (2,) else f'{dtype}{list(shape)}'}."
        )
    return keys
