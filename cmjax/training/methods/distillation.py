"""Distillation of diffusion models whose noise levels are those of a consistency model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import curricula, losses, ode
from cmjax._bounds import at_least, positive, within
from cmjax.parameterization import consistency_fn, denoiser_fn, trigflow_fn
from cmjax.samplers._vp import VPConfig, rate_tables
from cmjax.samplers.lcm import LCMConfig
from cmjax.training.methods.base import STAGES, Learner, Method, in_proportion, karras_grid
from cmjax.training.methods.consistency_training import ContinuousTime
from cmjax.training.methods.guidance import RANGE, check_one_scale, guided, guided_as_drawn
from cmjax.training.methods.of_vp_teacher import RATES
from cmjax.vp_model import trigflow_of_vp

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
class ContinuousDistillation(ContinuousTime):
    """Continuous time, along the velocity of a diffusion model (sCD). Lu & Song 2024.

    The model has noise levels, or timesteps, as text-to-image models have. Those are angles as well: with data of unit
    variance, such as latents, a sample of timestep t has the angle arctan(σ_t / α_t) (`models.trigflow_of_vp`).

    Attributes:
      proposal_mean: the mean of ln σ, which is drawn from a normal distribution, of noise levels σ = σ_t / α_t; None
        for the paper's -1 with noise levels, and 0.5 with timesteps.
      proposal_std: its standard deviation; None for 1.4 and 1.5. On the schedule of Stable Diffusion, timesteps that
        are drawn evenly have a mean of 0.5 and a standard deviation of 1.2.
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      guidance_range: the lowest and the highest scale, of which one is drawn for each example; () for guidance_scale.
      warmup: the share of the run over which the unstable part of the tangent is warmed up.
      tangent_constant: c, which stabilizes the tangent's normalization.
      dropout: whether the network gets a dropout key (the same for the tangent).
    """

    needs_teacher: ClassVar[bool] = True
    also_for: ClassVar[tuple[type, ...]] = (LCMConfig,)
    shared: ClassVar[tuple[str, ...]] = ("sigma_data",)

    proposal_mean: float | None = None
    proposal_std: Annotated[float | None, positive()] = None
    guidance_scale: Annotated[float, positive()] = 1.0
    guidance_range: Annotated[tuple[float, ...], RANGE] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_scale(self.guidance_scale, self.guidance_range)

    def check_teacher(self, config: Any, teacher_config: Any) -> None:
        """As every method; a model of timesteps has a teacher of the same timesteps, whatever walks it."""
        if isinstance(config, VPConfig):
            self._check_teacher(config, teacher_config, VPConfig, RATES)
        else:
            super().check_teacher(config, teacher_config)

    def drawn_with(self, config: Any) -> Mapping[str, Any]:
        """By `lcm`, in about four steps."""
        return {"sampler": "lcm", "steps": 4}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.continuous_consistency`, along the velocity of the teacher, guided or not."""
        ends, batch = self.guidance_range, x0.shape[0]
        teacher, cond, _, key = guided_as_drawn(learner.teacher, cond, key, self.guidance_scale, ends, batch)
        config, options = learner.config, self._options(step, steps)
        if isinstance(config, VPConfig):
            present: Callable[..., Any] = trigflow_of_vp
            mean, std = 0.5, 1.5
            levels = {"sigma_data": 1.0} | _levels(config)
        else:
            present, mean, std = trigflow_fn, -1.0, 1.4
            levels = {name: getattr(config, name) for name in ("sigma_data", *_RANGE)}
        return losses.continuous_consistency(
            present(learner.model, config),
            x0,
            key,
            teacher=present(*teacher),
            cond=cond,
            proposal=losses.lognormal(
                mean if self.proposal_mean is None else self.proposal_mean,
                std if self.proposal_std is None else self.proposal_std,
            ),
            **levels,
            **options,
        )


def _levels(config: VPConfig) -> dict[str, float]:
    """The least and the largest noise level of a table, where there is both signal and noise."""
    alpha, sigma = rate_tables(config)
    of_both = (alpha > 0) & (sigma > 0)
    levels = sigma[of_both] / alpha[of_both]
    return {"sigma_min": float(levels[0]), "sigma_max": float(levels[-1])}


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
