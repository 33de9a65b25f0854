"""Distillation of diffusion models whose noise levels are those of a consistency model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import curricula, losses, ode
from cmjax._bounds import at_least, positive, within
from cmjax.parameterization import consistency_fn, denoiser_fn
from cmjax.training.methods.base import STAGES, Learner, Method, in_proportion, karras_grid
from cmjax.training.methods.consistency_training import ContinuousTraining
from cmjax.training.methods.guidance import guided

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["ConsistencyDistillation", "ContinuousDistillation", "ProgressiveDistillation"]

_RANGE = ("sigma_min", "sigma_max")  # the teacher steps between levels of the student's grid, and knows its own alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(Method):
    """Consistency distillation: neighbours on a diffusion model's trajectory agree. Song et al. 2023.

    Attributes:
      num_scales: N, the noise levels of the grid.
      decay: the decay of the target's average.
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    needs_teacher: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = _RANGE

    num_scales: Annotated[int, at_least(2)] = 18
    decay: Annotated[float, within("[0, 1)")] = 0.95
    guidance_scale: Annotated[float, positive()] = 1.0
    dropout: bool = False

    def target_decay(self, step: int | Array, steps: int) -> Array:
        """The same at every step."""
        return jnp.float32(self.decay)

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.consistency_distillation` with the teacher's Heun steps."""
        teacher, cond = guided(learner.teacher, cond, self.guidance_scale)
        return losses.consistency_distillation(
            consistency_fn(learner.model, learner.config),
            consistency_fn(learner.target, learner.config),
            partial(ode.heun, denoiser_fn(*teacher)),
            x0,
            key,
            num_scales=self.num_scales,
            cond=cond,
            dropout=self.dropout,
            **karras_grid(learner.config),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousDistillation(ContinuousTraining):
    """Continuous time, along the velocity of a diffusion model (sCD). Lu & Song 2024."""

    needs_teacher: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("sigma_data",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Method):
    """Progressive distillation: one step of the student learns two of the teacher. Salimans & Ho 2022, in noise levels.

    Each stage halves the number of steps. The learning rate falls within a stage, and the student then becomes the
    teacher of the next stage.

    Attributes:
      num_steps: M, the student's steps from noise to picture when the run ends. The first stage has
        M · 2^(stages - 1), and the teacher that is given should be good at twice as many.
      stages: relative lengths of the stages; the paper's last two are twice as long as the others.
      dropout: whether the student gets a dropout key.
    """

    needs_teacher: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = _RANGE

    num_steps: Annotated[int, at_least(1)] = 8
    stages: Annotated[tuple[float, ...], STAGES] = (1.0,)
    dropout: bool = False

    def check(self, steps: int) -> None:
        """Raise ValueError if a stage would have no steps, so that its student would teach what it never learned."""
        lengths = in_proportion(self.stages, steps)
        if min(lengths) < 1:
            raise ValueError(f"stages {list(self.stages)} of {steps} steps last {list(lengths)} steps: each needs one.")

    def made(self, config: Any, step: int, steps: int) -> Any:
        """The config of a denoiser, with the number of steps that it has been trained for."""
        return config.of_denoiser(int(self._num_steps(max(step - 1, 0), steps)))

    def spans(self, steps: int) -> tuple[int, ...]:
        """The stages: the learning rate has fallen at the end of each."""
        return in_proportion(self.stages, steps)

    def _num_steps(self, step: int | Array, steps: int) -> Array:
        return curricula.progressive_steps(step, self.spans(steps), final=self.num_steps)

    def target_decay(self, step: int | Array, steps: int) -> Array | None:
        """The target is the stage's teacher: it stays fixed, and becomes the student at the stage's last step."""
        if len(self.stages) == 1:
            return None
        return jnp.where(self._num_steps(step + 1, steps) < self._num_steps(step, steps), 0.0, 1.0)

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """The number of the student's steps."""
        return {"num_steps": int(self._num_steps(step, steps))}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.progressive_distillation` with the teacher's Euler steps (DDIM)."""
        given = partial(ode.euler, denoiser_fn(*learner.teacher))
        before = partial(ode.euler, denoiser_fn(learner.target, learner.config))
        is_first = step < self.spans(steps)[0]

        def teacher(*point: Any) -> Array:
            return given(*point) if len(self.stages) == 1 else jax.lax.cond(is_first, given, before, *point)

        return losses.progressive_distillation(
            denoiser_fn(learner.model, learner.config),
            teacher,
            x0,
            key,
            num_steps=self._num_steps(step, steps),
            cond=cond,
            dropout=self.dropout,
            **karras_grid(learner.config),
        )
