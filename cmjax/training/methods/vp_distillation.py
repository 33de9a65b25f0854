"""Distillation of variance-preserving diffusion models, of labels or texts: TCD and its kin, and LCM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax import losses
from cmjax._bounds import at_least, one_of, positive, within
from cmjax.samplers import lcm, tcd
from cmjax.samplers.lcm import LCMConfig
from cmjax.samplers.tcd import TCDConfig
from cmjax.schedules import training_grid
from cmjax.training.methods.base import STAGES, Learner, in_proportion
from cmjax.training.methods.guidance import RANGE, check_one_scale, guided_as_drawn
from cmjax.training.methods.of_vp_teacher import OfVPTeacher

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = [
    "LatentConsistencyDistillation",
    "PhasedConsistency",
    "SegmentedTrajectory",
    "TrajectoryDistillation",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Distillation(OfVPTeacher):
    """The base of all: a teacher with the same rates, guided or not, a grid, and an average as the target."""

    shared: ClassVar[tuple[str, ...]] = (*OfVPTeacher.shared, "original_inference_steps")
    sample_steps: ClassVar[int] = 4

    skip: Annotated[int, at_least(1)] = 1
    grid: Annotated[int | None, at_least(1)] = None
    decay: Annotated[float | None, within("[0, 1)", why="At 0 the student is its own target.")] = 0.95
    guidance_scale: Annotated[float, positive()] = 1.0
    guidance_range: Annotated[tuple[float, ...], RANGE] = ()
    dropout: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_scale(self.guidance_scale, self.guidance_range)

    def check_teacher(self, config: Any, teacher_config: Any) -> None:
        """As every method; and the grid must not have more timesteps than there are."""
        super().check_teacher(config, teacher_config)
        if self.grid is not None and self.grid > config.num_train_timesteps:
            raise ValueError(
                f"grid must be at most {config.num_train_timesteps}, the timesteps that there are, got {self.grid}."
            )

    def target_decay(self, step: int | Array, steps: int) -> Array | None:
        """The same at every step."""
        return jnp.float32(self.decay) if self.decay else None

    def _timesteps(self, config: Any) -> np.ndarray | None:
        """The grid that the method has, or None for the config's."""
        return None if self.grid is None else training_grid(config.num_train_timesteps, self.grid)

    def _guided(self, learner: Learner, cond: Cond, key: Key, batch: int) -> tuple[Any, Cond, Array | None, Key]:
        return guided_as_drawn(learner.teacher, cond, key, self.guidance_scale, self.guidance_range, batch)


class _Trajectory(_Distillation):
    """The base of the methods whose student jumps to any lower timestep."""

    config_type: ClassVar[type] = TCDConfig

    def drawn_with(self, config: Any) -> Mapping[str, Any]:
        """By `tcd`, in about four steps."""
        return {"sampler": "tcd", "steps": self.sample_steps, "eta": 0.3}

    def _loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, order: int, **options: Any) -> Array:
        teacher, cond, _, key = self._guided(learner, cond, key, x0.shape[0])
        return losses.trajectory_distillation(
            tcd.trajectory_fn(learner.model, learner.config, order=order),
            tcd.trajectory_fn(learner.target, learner.config, order=order),
            tcd.trajectory_fn(*teacher),
            x0,
            key,
            timesteps=self._timesteps(learner.config),
            skip=self.skip,
            cond=cond,
            dropout=self.dropout,
            **options,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryDistillation(_Trajectory):
    """From any timestep to any lower one, along the DDIM steps of a variance-preserving teacher. Zheng et al. 2024.

    Attributes:
      order: the order of the jumps of student and target, 1 or 2.
      skip: the number of grid points that the teacher's step goes down.
      grid: the number of timesteps of the grid, evenly spread; None for the config's original_inference_steps.
      decay: the decay of the target's average; None or 0 if the student is its own target.
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      guidance_range: the lowest and the highest scale, of which one is drawn for each example; () for guidance_scale.
      huber_c: the length c of the pseudo-Huber distance; None or 0 for the squared distance.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    order: Annotated[int, one_of(1, 2, says="be 1 or 2")] = 1
    huber_c: Annotated[float | None, at_least(0, why="0 is the squared distance.")] = None

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.trajectory_distillation`."""
        return self._loss(learner, x0, cond, key, self.order, metric=_metric(self.huber_c))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhasedConsistency(_Trajectory):
    """From any timestep to where its phase begins: a path of as many steps as there are phases. Wang et al. 2024.

    The adversarial term of the paper is left out.

    Attributes:
      phases: the number of phases, and of the steps to sample with, by `tcd` with eta 0.
      skip: the number of grid points that the teacher's step goes down, at most to where the phase begins.
      grid: as for `TrajectoryDistillation`.
      decay: as for `TrajectoryDistillation`.
      guidance_scale: as for `TrajectoryDistillation`.
      guidance_range: as for `TrajectoryDistillation`.
      huber_c: as for `TrajectoryDistillation`.
      dropout: as for `TrajectoryDistillation`.
    """

    phases: Annotated[int, at_least(1)] = 4
    huber_c: Annotated[float | None, at_least(0, why="0 is the squared distance.")] = None

    def drawn_with(self, config: Any) -> Mapping[str, Any]:
        """By `tcd` without fresh noise, a step a phase."""
        found = {"sampler": "tcd", "steps": self.phases, "eta": 0.0}
        if self.grid is None:
            return found
        levels = np.union1d([0], training_grid(config.num_train_timesteps, self.grid))
        ends = -(-np.arange(1, self.phases + 1) * (len(levels) - 1) // self.phases)
        return found | {"timesteps": tuple(int(t) for t in levels[ends][::-1])}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.trajectory_distillation` in segments, to where each begins."""
        return self._loss(learner, x0, cond, key, 1, segments=self.phases, to_start=True, metric=_metric(self.huber_c))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentedTrajectory(_Trajectory):
    """Trajectories within segments of time, fewer from stage to stage, until there is one. Ren et al. 2024 (Hyper-SD).

    The adversarial term and the human feedback of the paper are left out.

    Attributes:
      segments: the number of segments in each stage.
      stages: relative lengths of the stages; () for equal ones.
      skip: the number of grid points that the teacher's step goes down, at most to where the segment begins.
      grid: as for `TrajectoryDistillation`.
      decay: as for `TrajectoryDistillation`.
      guidance_scale: as for `TrajectoryDistillation`.
      guidance_range: as for `TrajectoryDistillation`.
      huber_c: as for `TrajectoryDistillation`.
      dropout: as for `TrajectoryDistillation`.
    """

    segments: Annotated[tuple[int, ...], STAGES] = (8, 4, 2, 1)
    stages: tuple[float, ...] = ()
    huber_c: Annotated[float | None, at_least(0, why="0 is the squared distance.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages and (len(self.stages) != len(self.segments) or min(self.stages) <= 0):
            raise ValueError(
                f"stages must be () or one positive length for each of {len(self.segments)} segments, got "
                f"{list(self.stages)}."
            )

    def check(self, steps: int) -> None:
        """Raise ValueError if a stage would have no steps."""
        if min(lengths := self._lengths(steps)) < 1:
            raise ValueError(f"stages of {steps} steps last {list(lengths)} steps: each needs one.")

    def _lengths(self, steps: int) -> tuple[int, ...]:
        return in_proportion(self.stages or (1.0,) * len(self.segments), steps)

    def _segments(self, step: int | Array, steps: int) -> Array:
        ends = jnp.asarray(np.cumsum(self._lengths(steps))[:-1])
        return jnp.asarray(self.segments, jnp.int32)[jnp.sum(jnp.asarray(step) >= ends)]

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """The number of segments."""
        return {"segments": int(self._segments(step, steps))}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.trajectory_distillation` in segments."""
        return self._loss(learner, x0, cond, key, 1, segments=self._segments(step, steps), metric=_metric(self.huber_c))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConsistencyDistillation(_Distillation):
    """From any timestep to the clean end, along the DDIM steps of a variance-preserving teacher. Luo et al. 2023.

    Attributes:
      skip: the number of grid points that the teacher's step goes down.
      grid: the number of timesteps of the grid, evenly spread; None for the config's original_inference_steps.
      decay: the decay of the target's average; None or 0 if the student is its own target.
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      guidance_range: the lowest and the highest scale, of which one is drawn for each example; () for guidance_scale.
      tell_guidance: whether the student is told each example's scale, which a network with `time_cond_proj_dim` reads.
      huber_c: the length c of the element-wise Huber distance; None or 0 for the squared distance.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    config_type: ClassVar[type] = LCMConfig

    huber_c: Annotated[float | None, at_least(0, why="0 is the squared distance.")] = 0.001
    tell_guidance: bool = False

    def drawn_with(self, config: Any) -> Mapping[str, Any]:
        """By `lcm`, in about four steps."""
        return {"sampler": "lcm", "steps": self.sample_steps}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.latent_consistency_distillation`."""
        teacher, cond, scales, key = self._guided(learner, cond, key, x0.shape[0])
        student_cond = None
        if self.tell_guidance:
            scales = jnp.full(x0.shape[:1], self.guidance_scale, jnp.float32) if scales is None else scales
            if not hasattr(cond, "guidance"):
                raise ValueError(
                    "tell_guidance needs conditions with a guidance, such as a TextCond, and a network that reads it; "
                    "leave it out."
                )
            student_cond = cond.replace(guidance=scales)
        metric = partial(losses.elementwise_huber, c=self.huber_c) if self.huber_c else losses.l2
        return losses.latent_consistency_distillation(
            lcm.consistency_fn(learner.model, learner.config),
            lcm.consistency_fn(learner.target, learner.config),
            tcd.trajectory_fn(*teacher),
            x0,
            key,
            timesteps=self._timesteps(learner.config),
            skip=self.skip,
            cond=cond,
            student_cond=student_cond,
            dropout=self.dropout,
            metric=metric,
        )


def _metric(huber_c: float | None) -> losses.Metric:
    return partial(losses.pseudo_huber, c=huber_c) if huber_c else losses.l2
