"""Recipes: everything about a run except the data, the network and the noise levels. A short TOML file holds one.

method = "ect"          # one of `methods.METHODS`; its settings are under [ect]
steps = 12000
batch_size = 64

[ect]
stages = [4, 1, 0.5, 2.5, 4]

[optimizer]
learning_rate = 1e-3
"""

from __future__ import annotations

import dataclasses
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import optax

from cmjax import curricula
from cmjax._bounds import at_least, each, one_of, positive, within
from cmjax._typed import check_fields, unknown_names
from cmjax.training.methods import METHODS, EasyConsistencyTuning, Method

if TYPE_CHECKING:
    from cmjax.types import Array

__all__ = ["OPTAX", "Optimizer", "Recipe"]

OPTAX = "optax"  # what is said of a transformation
_OPTIMIZERS = {
    "adam": optax.adam,
    "radam": optax.radam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "adafactor": optax.adafactor,
}
_DECAYS = ("adamw", "lion")  # weights
_COARSE = ("adam", "adamw", "lion")  # moments, where that is asked
_FACTORED = 32  # the least width of a matrix whose second moments are factored: that of a LoRA of rank 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer: how gradients become steps.

    Attributes:
      name: `"adam"`, `"radam"`, `"adamw"`, `"lion"` (one moment in the place of two) or `"adafactor"` (of a matrix one
        number for each row and column in the place of two for each entry; no first moment, and steps that do not grow
        with the weights).
      learning_rate: the rate after the warm-up.
      final_learning_rate: the rate at the end, to which it falls geometrically.
      warmup_steps: the number of steps over which the rate rises from 0.
      hold: the share of the run for which the rate then stays constant.
      b1: Adam's decay of the mean of gradients; Lion's first.
      b2: Adam's decay of the mean of their squares; Lion's second, of the mean of gradients that it keeps.
      mu_dtype: what the mean of gradients is kept in, "float32" or "bfloat16", of all but `"radam"` and `"adafactor"`.
      weight_decay: the weight decay of `"adamw"` and `"lion"`.
      clip_norm: the largest global norm of a gradient; 0 for no clipping.
    """

    name: Annotated[str, one_of(*_OPTIMIZERS, says=f"be one of {', '.join(_OPTIMIZERS)}")] = "adam"
    learning_rate: Annotated[float, positive()] = 1e-3
    final_learning_rate: Annotated[float, positive()] = 1e-4
    warmup_steps: Annotated[int, at_least(0)] = 200
    hold: Annotated[float, within("[0, 1]", says=", a share of the run")] = 1 / 3
    b1: Annotated[float, within("[0, 1)")] = 0.9
    b2: Annotated[float, within("[0, 1)")] = 0.99
    mu_dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    weight_decay: Annotated[float, at_least(0)] = 0.0
    clip_norm: Annotated[float, at_least(0)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.weight_decay and self.name not in _DECAYS:
            raise ValueError(
                f"weight_decay is for 'adamw' and 'lion', but the optimizer is {self.name!r}: leave it out."
            )
        if self.mu_dtype != "float32" and self.name not in _COARSE:
            raise ValueError(
                f"mu_dtype must be 'float32' for {self.name!r}, got {self.mu_dtype!r}: leave it out, or take one of "
                f"{', '.join(_COARSE)}."
            )
        if self.name == "adafactor":
            for name in ("b1", "b2"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name} must be left out for 'adafactor', which has none, got {getattr(self, name)}."
                    )

    def schedule(self, *spans: int) -> optax.Schedule:
        """Make the learning-rate schedule of a run of so many steps; it starts again in each of several spans."""
        return optax.join_schedules([self._once(steps) for steps in spans], list(accumulate(spans))[:-1])

    def _once(self, steps: int) -> optax.Schedule:
        held = max(round(self.hold * steps), self.warmup_steps)
        ratio = self.final_learning_rate / self.learning_rate
        fall = optax.exponential_decay(
            self.learning_rate, max(steps - held, 1), ratio, end_value=self.final_learning_rate
        )
        warm = optax.linear_schedule(
            0.0 if self.warmup_steps else self.learning_rate, self.learning_rate, max(self.warmup_steps, 1)
        )
        return optax.join_schedules([warm, fall], [held])

    def transformation(self, *spans: int) -> optax.GradientTransformation:
        """Make the optax transformation for a run of so many steps."""
        optimizer = _OPTIMIZERS[self.name](self.schedule(*spans), **self._options())
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, optimizer)

    def _options(self) -> dict[str, Any]:
        """What its optax function is given beside the learning rate."""
        if self.name == "adafactor":
            return {"min_dim_size_to_factor": _FACTORED, "multiply_by_parameter_scale": False}
        options: dict[str, Any] = {"b1": self.b1, "b2": self.b2}
        if self.mu_dtype != "float32":
            options["mu_dtype"] = self.mu_dtype
        return options | ({"weight_decay": self.weight_decay} if self.name in _DECAYS else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Describe a run: everything except the data, the network and the noise levels.

    Attributes:
      method: the training method; see `methods`.
      steps: steps of the optimizer.
      batch_size: images per step.
      accumulate: the number of parts of a batch whose gradients are computed in turn and averaged, to save memory.
      remat: whether gradients compute the blocks of the network again, rather than keep all that they computed
        (`models.remat`): less memory, for another forward pass of it. Targets and teachers keep nothing anyway.
      flip: whether to mirror each image left to right with probability 1/2.
      ema_decays: decays of averages of the weights; each is warmed up (`curricula.ema_decay`).
      ema_stds: widths of power-function averages, as shares of the run so far (`curricula.power_ema_decay`). The first
        average is the model to sample with; those of `ema_decays` come first.
      seed: the seed of everything random: data order, flips, noise and dropout.
      optimizer: an `Optimizer`, or an optax transformation with its own learning rate that needs only gradients,
        parameters and the loss. A checkpoint holds the state of such a transformation but cannot describe it: resume
        with the same one.
    """

    method: Method = EasyConsistencyTuning()  # noqa: RUF009 (frozen)
    steps: Annotated[int, at_least(1)] = 12000
    batch_size: Annotated[int, at_least(1)] = 64
    accumulate: Annotated[int, at_least(1)] = 1
    remat: bool = False
    flip: bool = False
    ema_decays: Annotated[tuple[float, ...], each(within("[0, 1)"))] = (0.999,)
    ema_stds: tuple[float, ...] = ()
    seed: Annotated[int, within("[0, 2^32)")] = 0
    optimizer: Optimizer | optax.GradientTransformation = Optimizer()

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.method, Method):
            raise ValueError(f"method must be a training.Method, got {self.method!r:.60}.")
        if not isinstance(self.optimizer, Optimizer | optax.GradientTransformation):
            raise ValueError(
                "optimizer must be a training.Optimizer or an optax.GradientTransformation, "
                f"got {self.optimizer!r:.60}."
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size = {self.batch_size} into equal parts, got {self.accumulate}."
            )
        if not self.ema_decays + self.ema_stds:
            raise ValueError(
                "ema_decays must name an average, or ema_stds: one of them samples. (A decay of 0 is none.)"
            )
        for std in self.ema_stds:
            curricula.power_ema_exponent(std)
        self.method.check(self.steps)

    def decays(self, step: int | Array) -> list[Array]:
        """The decay of each average at a step, f32[] each."""
        warming = [curricula.ema_decay(step, final=decay) for decay in self.ema_decays]
        return warming + [curricula.power_ema_decay(step, std=std) for std in self.ema_stds]

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer's optax transformation over this run."""
        if isinstance(self.optimizer, Optimizer):
            return self.optimizer.transformation(*self.method.spans(self.steps))
        return self.optimizer

    def learning_rate(self, step: int) -> float | None:
        """The learning rate at a step; None for an optax transformation, which does not expose it."""
        if isinstance(self.optimizer, Optimizer):
            return float(np.asarray(self.optimizer.schedule(*self.method.spans(self.steps))(step)))
        return None

    def to_dict(self) -> dict[str, Any]:
        """Write the recipe as a dict, which `changed` reads. An optax transformation is recorded only by its kind.

        Raises:
          ValueError: the method is not one of `METHODS`, or the optimizer is of another class.
        """
        if isinstance(self.optimizer, Optimizer) and type(self.optimizer) is not Optimizer:
            raise ValueError(
                f"{type(self.optimizer).__name__} cannot be written down: "
                "give an Optimizer, or an optax transformation."
            )
        name = next((name for name, kind in METHODS.items() if type(self.method) is kind), None)
        if name is None:
            kind = type(self.method).__name__
            raise ValueError(f"{kind} has no name to be written down by: give it one, METHODS[name] = {kind}.")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()},
            "method": name,
            name: {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.method).items()},
            "optimizer": dataclasses.asdict(self.optimizer) if isinstance(self.optimizer, Optimizer) else OPTAX,
        }

    def words(self) -> str:
        """The recipe as a line that is the same in every process; of an optax transformation it says only that."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return repr(fields if isinstance(self.optimizer, Optimizer) else {**fields, "optimizer": OPTAX})

    def changed(self, changes: dict[str, Any], source: str) -> Recipe:
        """Copy this recipe with the changes that a file or the command line makes.

        Raises:
          ValueError: a name is unknown or a value is invalid; the message names `source`.
        """
        changes = dict(changes)
        old = self.to_dict()
        name = changes.pop("method", old["method"])
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"{source}: method must be one of {', '.join(METHODS)}, got {name!r}.")
        settings, optimizer = changes.pop(name, {}), changes.pop("optimizer", {})
        for part, given, kind in (
            ("", changes, Recipe), (f" [{name}]", settings, METHODS[name]), (" [optimizer]", optimizer, Optimizer)
        ):  # fmt: skip
            if not isinstance(given, dict):
                raise ValueError(f"{source}{part} must be a table of names and values, got {given!r:.60}.")
            known = [field.name for field in dataclasses.fields(kind)]
            if unknown := sorted(given.keys() - known):
                raise ValueError(unknown_names(unknown, known, f"{source}{part}"))
        try:
            method = METHODS[name](**{**(old[name] if name == old["method"] else {}), **settings})
            own = dataclasses.asdict(self.optimizer) if isinstance(self.optimizer, Optimizer) else {}
            optimizer = Optimizer(**{**own, **optimizer}) if own or optimizer else self.optimizer
            return dataclasses.replace(self, method=method, optimizer=optimizer, **changes)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
