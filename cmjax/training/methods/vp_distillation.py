"""Distillation of variance-preserving diffusion models: TCD and LCM."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jax.numpy as jnp

from cmjax import losses
from cmjax._bounds import at_least, one_of, positive, within
from cmjax.samplers import lcm, tcd
from cmjax.samplers._vp import VPConfig, as_config
from cmjax.samplers.lcm import LCMConfig
from cmjax.samplers.tcd import TCDConfig
from cmjax.training.methods.base import Learner, Method
from cmjax.training.methods.guidance import guided

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["LatentConsistencyDistillation", "TrajectoryDistillation"]

# The teacher's rates noise the data, on the teacher's grid: what the student makes of a timestep has to be the same.
_SHARED = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
    "original_inference_steps",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Distillation(Method):
    """The base of both distillations: a teacher with the same rates and grid, and an average as the target."""

    needs_teacher: ClassVar[bool] = True
    teacher_type: ClassVar[type] = VPConfig
    shared: ClassVar[tuple[str, ...]] = _SHARED
    sample_steps: ClassVar[int] = 4

    skip: Annotated[int, at_least(1)] = 1
    decay: Annotated[float | None, within("[0, 1)", why="At 0 the student is its own target.")] = 0.95
    guidance_scale: Annotated[float, positive()] = 1.0
    dropout: bool = False

    def check_teacher(self, config: Any, teacher_config: Any) -> None:
        """As every method; a teacher that an ordinary sampler walks is read as the student's kind."""
        is_vp = isinstance(teacher_config, VPConfig)
        super().check_teacher(config, as_config(teacher_config, self.config_type) if is_vp else teacher_config)

    def target_decay(self, step: int | Array, steps: int) -> Array | None:
        """The same at every step."""
        return jnp.float32(self.decay) if self.decay else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryDistillation(_Distillation):
    """From any timestep to any lower one, along the DDIM steps of a variance-preserving teacher. Zheng et al. 2024.

    Attributes:
      order: the order of the jumps of student and target, 1 or 2.
      skip: the number of grid points that the teacher's step goes down.
      decay: the decay of the target's average; None or 0 if the student is its own target.
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    config_type: ClassVar[type] = TCDConfig

    order: Annotated[int, one_of(1, 2, says="be 1 or 2")] = 1

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.trajectory_distillation`."""
        teacher, cond = guided(learner.teacher, cond, self.guidance_scale)
        return losses.trajectory_distillation(
            tcd.trajectory_fn(learner.model, learner.config, order=self.order),
            tcd.trajectory_fn(learner.target, learner.config, order=self.order),
            tcd.trajectory_fn(*teacher),
            x0,
            key,
            skip=self.skip,
            cond=cond,
            dropout=self.dropout,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConsistencyDistillation(_Distillation):
    """From any timestep to the clean end, along the DDIM steps of a variance-preserving teacher. Luo et al. 2023.

    Attributes:
      skip: the number of grid points that the teacher's step goes down.
      decay: the decay of the target's average; None or 0 if the student is its own target.
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      huber_c: the length c of the element-wise Huber distance; None or 0 for the squared distance.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    config_type: ClassVar[type] = LCMConfig

    huber_c: Annotated[float | None, at_least(0, why="0 is the squared distance.")] = 0.001

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.latent_consistency_distillation`."""
        teacher, cond = guided(learner.teacher, cond, self.guidance_scale)
        metric = partial(losses.elementwise_huber, c=self.huber_c) if self.huber_c else losses.l2
        return losses.latent_consistency_distillation(
            lcm.consistency_fn(learner.model, learner.config),
            lcm.consistency_fn(learner.target, learner.config),
            tcd.trajectory_fn(*teacher),
            x0,
            key,
            skip=self.skip,
            cond=cond,
            dropout=self.dropout,
            metric=metric,
        )
