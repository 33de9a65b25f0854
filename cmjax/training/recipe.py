"""A recipe: everything about a run but the data, the network and the noise levels. What a short TOML file says.

method = "ect"          # one of `methods.METHODS`; its own settings stand under [ect]
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
_OPTIMIZERS = {"adam": optax.adam, "radam": optax.radam, "adamw": optax.adamw}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How gradients become steps.

    Attributes:
      name: `"adam"`, `"radam"` or `"adamw"`.
      learning_rate, final_learning_rate, warmup_steps, hold: the rate rises over the warm-up, stays for `hold`, a share
        of the run, and then falls geometrically to the final one.
      b1, b2: Adam's.
      weight_decay: of `"adamw"`.
      clip_norm: the largest global norm of a gradient; 0 for any.
    """

    name: Annotated[str, one_of(*_OPTIMIZERS, says=f"be one of {', '.join(_OPTIMIZERS)}")] = "adam"
    learning_rate: Annotated[float, positive()] = 1e-3
    final_learning_rate: Annotated[float, positive()] = 1e-4
    warmup_steps: Annotated[int, at_least(0)] = 200
    hold: Annotated[float, within("[0, 1]", says=", a share of the run")] = 1 / 3
    b1: Annotated[float, within("[0, 1)")] = 0.9
    b2: Annotated[float, within("[0, 1)")] = 0.99
    weight_decay: Annotated[float, at_least(0)] = 0.0
    clip_norm: Annotated[float, at_least(0)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.weight_decay and self.name != "adamw":
            raise ValueError(f"weight_decay is for 'adamw', but the optimizer is {self.name!r}.")

    def schedule(self, *spans: int) -> optax.Schedule:
        """The learning rate at each step of a run of so many steps; of several spans, in each of them anew."""
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
        """The optax transformation for a run of so many steps."""
        options = {"weight_decay": self.weight_decay} if self.name == "adamw" else {}
        optimizer = _OPTIMIZERS[self.name](self.schedule(*spans), b1=self.b1, b2=self.b2, **options)
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Say how to train: all but the data, the network and the noise levels.

    Attributes:
      method: what is learned, and from which pairs; see `methods`.
      steps: of the optimizer.
      batch_size: images a step.
      accumulate: parts of a batch whose gradients are taken one after the other and averaged: memory for time.
      flip: whether an image may be seen mirrored, left to right, half of the time.
      ema_decays: of averages of the weights; each warms up (`curricula.ema_decay`).
      ema_stds: the widths of power-function averages, as shares of the run so far (`curricula.power_ema_decay`). Of all
        averages, the decays' first, the first is the one that samples.
      seed: of everything that is random: data order, flips, noise, dropout.
      optimizer: how gradients become steps: an `Optimizer`, or an optax transformation with its own learning rate that
        needs no more than gradients, parameters and the loss. Of the latter a checkpoint holds the state, but cannot
        say what it was: resume with the same.
    """

    method: Method = EasyConsistencyTuning()  # noqa: RUF009 (frozen)
    steps: Annotated[int, at_least(1)] = 12000
    batch_size: Annotated[int, at_least(1)] = 64
    accumulate: Annotated[int, at_least(1)] = 1
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
        """The learning rate at a step; None for an optax transformation, which does not say."""
        if isinstance(self.optimizer, Optimizer):
            return float(np.asarray(self.optimizer.schedule(*self.method.spans(self.steps))(step)))
        return None

    def to_dict(self) -> dict[str, Any]:
        """What a file says: `changed` reads it back. Of an optax transformation, only that it was one.

        Raises:
          ValueError: for a method that is not one of `METHODS`, or an optimizer of another class.
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

    def changed(self, changes: dict[str, Any], source: str) -> Recipe:
        """This recipe, but for what a file, or the command line, says otherwise.

        Raises:
          ValueError: for names that no recipe has, and values that none may have; `source` says where they stand.
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
