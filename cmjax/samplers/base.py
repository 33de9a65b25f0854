"""The base of every sampler: a state with `predict` and `renoise`, and the one step made of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, floating, is_traced, read, refuse_no_function
from cmjax._random import noise, noise_if
from cmjax._struct import Struct, static
from cmjax._typed import check_fields, frozen, thawed
from cmjax.types import Array, Edit, Key

__all__ = ["Memory", "Prediction", "SamplerConfig", "SamplerState", "advance", "build", "step"]


class Prediction(NamedTuple):
    """A model's prediction for a noisy x = alpha x0 + sigma eps.

    Attributes:
      x0: f32[B, *S], the clean estimate.
      eps: f32[B, *S], the unit noise estimate.
    """

    x0: Array
    eps: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """A `scheduler_config.json`: its keys and their defaults. Hashable.

    Types are checked at once. `init` checks the values of numbers, where they are used.

    Attributes:
      scheduler: the sampler's class name in the file.
      extra: keys of the file that this config does not know, kept to be written back: a mapping or pairs, of values
        that JSON has.
    """

    scheduler: ClassVar[str]

    extra: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        fields = {field.name for field in dataclasses.fields(self)} - {"extra"}
        object.__setattr__(self, "extra", _kept(self.extra, fields))
        check_fields(self, TypeError, bounds=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make a config of a file's keys. Those that it has no field for go to `extra`, but not who wrote the file."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        known = {key: value for key, value in values.items() if key in fields}
        extra = {key: value for key, value in values.items() if key not in fields and not key.startswith("_")}
        return cls(**known, extra=tuple(extra.items()))

    def values(self) -> dict[str, Any]:
        """Every field, and the keys that were kept: what `of` takes."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**fields, **{key: thawed(value) for key, value in self.extra}}


def _kept(extra: Any, fields: set[str]) -> tuple[tuple[str, Any], ...]:
    """The keys that a config keeps, as pairs with a hash."""
    pairs = list(extra.items()) if isinstance(extra, Mapping) else extra
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise TypeError(f"extra must be a mapping, or pairs of a key and a value, got {extra!r:.60}.")
    names = [str(name) for name, _ in pairs]
    for name in names:
        if name in fields or name.startswith("_") or names.count(name) > 1:
            raise TypeError(f"extra must hold each key once, none of them a field or begun by _, got {name!r}.")
    kept = []
    for name, value in pairs:
        try:
            kept.append((str(name), frozen(value)))
        except ValueError as error:
            raise TypeError(f"extra must hold values that JSON has, got {name} = {error}.") from error
    return tuple(kept)


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


# ---- one step --------------------------------------------------------------------------------------------------------


def step(state: StateT, model_out: Array, x: Array, key: Key, *, edit: Edit | None = None) -> tuple[StateT, Array]:
    """Take one step: predict x0, edit it, return to the next noise level.

    The model is the caller's: `x_in, t = model_input(state, x)`, then `model_out = model(x_in, t, cond)`; for samplers
    of networks that are told where a step lands, `model(x_in, t, cond, **state.model_options())`.

    Args:
      state: a path, at its current step.
      model_out: f[B, *S], the network's output for `model_input(state, x)`.
      x: f[B, *S], the noisy sample now.
      key: one key, or one for each image.
      edit: x0 -> x0, applied to the (clipped) clean estimate; eps is then derived again, so that both still explain x.
        The last step returns the edited x0.

    Returns:
      The pair (state, x): the state one step further, and the sample there, in x's dtype. Arithmetic is in float32.

    Raises:
      TypeError: x or model_out is not of a float dtype.
      ValueError: model_out does not have the shape of x, or there is neither one key nor one for each image.

    Example:
      >>> import cmjax
      >>> state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
      >>> state, x = step(state, jnp.zeros((1, 4)), jnp.ones((1, 4)), jax.random.key(0))
      >>> state
      CMState(index=1/2, timesteps=f32[2], sigmas=f32[3], sigma_data=f32[], s_noise=f32[], clip_denoised=True)
    """
    state, x, _ = advance(state, model_out, x, key, edit)
    return state, x


def advance(
    state: StateT, model_out: Array, x: Array, key: Key, edit: Edit | None = None
) -> tuple[StateT, Array, Prediction]:
    """Take a step as `step` does, and return the prediction that it used as well."""
    _check_sample(model_out, x)
    pred = state.predict(model_out, x)
    if edit is not None:
        pred = _apply(edit, state, pred, x)
    x_next = state.renoise(pred, _fresh_noise(state, key, x.shape))
    if edit is not None:  # a path may end just above clean data; an edited picture is returned as it was edited
        x_next = jnp.where(_is_last(state), pred.x0, x_next)
    return state.remember(pred).replace(index=state.index + 1), x_next.astype(x.dtype), pred


def _apply(edit: Edit, state: SamplerState, pred: Prediction, x: Array) -> Prediction:
    """Edit x0, and derive eps again, so that the pair still explains x."""
    refuse_no_function("edit", edit, "x0 -> x0")
    x0 = f32(floating("what edit returns", edit(pred.x0)))
    if x0.shape != x.shape:
        raise ValueError(f"edit returned shape {x0.shape} for x0 of shape {x.shape}; it must keep the shape.")
    alpha, sigma = state.rates()
    return Prediction(x0, (f32(x) - alpha * x0) / sigma)


def _fresh_noise(state: SamplerState, key: Key, shape: tuple[int, ...]) -> Array:
    """Draw z ~ N(0, I), f32[B, *S]; under `jit`, skip the last step, where its weight is 0."""
    if not is_traced(state.index):
        return noise(key, shape)  # outside of jit a cond would be compiled anew at each call
    if state.num_steps == 1:  # its only step is the last
        return jnp.zeros_like(jax.eval_shape(partial(noise, shape=shape), key))
    return noise_if(~_is_last(state), key, shape)


def _is_last(state: SamplerState) -> Array:
    return state.index == state.num_steps - 1


def _check_sample(model_out: Array, x: Array) -> None:
    for name, array in (("x", x), ("model_out", model_out)):
        if isinstance(array, tuple | list):
            raise TypeError(f"{name} must be an array, got a {type(array).__name__}: a model returns its output alone.")
        floating(name, array)
    if model_out.shape == x.shape:
        return
    remedy = "the network must return the shape that it is given."
    if model_out.shape[:-1] == x.shape[:-1] and model_out.shape[-1] == 2 * x.shape[-1]:
        remedy = "a network with a learned variance returns twice the channels: pass on the first half."
    raise ValueError(f"model_out has shape {model_out.shape} for x of shape {x.shape}; {remedy}")
