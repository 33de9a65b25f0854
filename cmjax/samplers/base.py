"""The base of every sampler: a state with `predict` and `renoise`, of which `stepping` makes the one step."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, is_traced, read
from cmjax._struct import Struct, static
from cmjax.samplers.configs import SamplerConfig
from cmjax.types import Array

__all__ = ["Memory", "Prediction", "SamplerConfig", "SamplerState", "StateT", "build"]


class Prediction(NamedTuple):
    """A model's prediction for a noisy x = alpha x0 + sigma eps.

    Attributes:
      x0: f32[B, *S], the clean estimate.
      eps: f32[B, *S], the unit noise estimate.
    """

    x0: Array
    eps: Array


StateT = TypeVar("StateT", bound="SamplerState")


class Memory(Struct):
    """What a sampler remembers of the step before.

    Attributes:
      value: f32[B, *S].
      is_there: f32[], 1; or 0 before the first step, when value holds zeros.
    """

    value: Array
    is_there: Array


class SamplerState(Struct, abc.ABC):
    """A sampler's position on its path: tables, knobs, and the index of the next step. A pytree.

    A leaf with an axis is a table along the path; a leaf without one is a knob. New values in a leaf never recompile.
    Every method works at the current `index`, and gives NaN past the end of the path.

    A sampler of second order also remembers a value of the shape of x, which `init` does not know. So a fresh state,
    and what `skip` and `pad` make of one, has no memory, and its first step is of first order. `sample` makes room with
    `begin(x)` before its loop; `step` then fills it by `remember`. A loop by hand needs no `begin`, but for `lax.scan`,
    whose carry keeps its structure, or to compile `step` once rather than twice.

    Attributes:
      index: i32[], the next step, from 0.
      timesteps: f32[n] or i32[n], what the network is told about each level.
      padded: whether the path is at the end of longer tables and starts at an index above 0; see `cmjax.pad`.
      memory: what is remembered of the step before; None for a fresh state, and for samplers that remember nothing.
    """

    index: Array
    timesteps: Array
    padded: bool = static(default=False, kw_only=True, repr=False)
    memory: Memory | None = dataclasses.field(default=None, kw_only=True, repr=False)

    @property
    def num_steps(self) -> int:
        """The number of model calls on the whole path, n; for a padded path, the number that it has room for."""
        return self.timesteps.shape[-1]

    @property
    def init_noise_sigma(self) -> Array:
        """The standard deviation of the prior, f32[]."""
        return jnp.ones((), jnp.float32)

    @abc.abstractmethod
    def rates(self) -> tuple[Array, Array]:
        """The pair (alpha, sigma) now, f32[] each, with x = alpha x0 + sigma eps."""

    def model_input(self, x: Array) -> tuple[Array, Array]:
        """The network's inputs for this step: x, perhaps scaled, f[B, *S], and the timestep, f32[] or i32[]."""
        return x, self.now(self.timesteps)

    def model_options(self) -> dict[str, Array]:
        """What the network is passed by name beside x, t and cond: `s=`, if it is told where the step lands too."""
        return {}

    @abc.abstractmethod
    def predict(self, model_out: Array, x: Array) -> Prediction:
        """Compute x0 and eps from the network's output and the x that it was given, both f[B, *S]."""

    @abc.abstractmethod
    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Return to the next level with fresh noise z ~ N(0, I), f[B, *S]; on the last step its weight is exactly 0."""

    def remembered(self, pred: Prediction) -> Array | None:
        """The value of this step that the next one needs, f32[B, *S]; None for most samplers, which need none."""
        return None

    def begin(self, x: Array) -> Self:
        """Make room for what is remembered between steps of samples like x, f[B, *S]; it is empty at first."""
        if self.remembered(Prediction(x, x)) is None:
            return self
        return self.replace(memory=Memory(jnp.zeros_like(x, jnp.float32), jnp.zeros((), jnp.float32)))

    def remember(self, pred: Prediction) -> Self:
        """Keep what the next step needs of this one's prediction."""
        value = self.remembered(pred)
        return self if value is None else self.replace(memory=Memory(value, jnp.ones((), jnp.float32)))

    def since(self, pred: Prediction) -> Array:
        """How far the remembered value has moved since the step before, f32[B, *S]; 0 where there was none."""
        value = self.remembered(pred)
        assert value is not None
        return jnp.zeros_like(value) if self.memory is None else self.memory.is_there * (value - self.memory.value)

    def now(self, table: Array) -> Array:
        """A table's entry for this step."""
        return read(table, self.index)

    def next(self, table: Array) -> Array:
        """A table's entry for the step after this one."""
        return read(table, self.index + 1)

    def __repr__(self) -> str:
        text = super().__repr__()
        if is_traced(self.index) or not isinstance(self.index, jax.Array | np.ndarray) or self.index.ndim:
            return text
        place = f"index={int(self.index)}/{self.num_steps}" + (" (padded)" if self.padded else "")
        return text.replace("index=i32[]", place, 1)


def build(state: type[StateT], **fields: Any) -> StateT:
    """Make a state of numbers and host tables: move its leaves to the device as f32 or i32, in one transfer."""
    return jax.device_put(jax.tree.map(_narrow, state(**fields)))


def _narrow(value: Any) -> Any:
    if is_traced(value):
        return f32(value) if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.int32)
    value = np.asarray(value)
    return value.astype(np.int32 if np.issubdtype(value.dtype, np.integer) else np.float32)
