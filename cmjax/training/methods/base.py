"""The base class of training methods, and the models that take part in a step."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from cmjax._bounds import Rule
from cmjax._typed import check_fields
from cmjax.losses import karras
from cmjax.samplers._vp import VPConfig
from cmjax.samplers.cm import CMConfig

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key, ModelFn

__all__ = ["STAGES", "Learner", "Method", "in_proportion", "karras_grid"]

STAGES = Rule("be one or more positive lengths", lambda stages: bool(stages) and min(stages) > 0)


class Learner(NamedTuple):
    """The models that take part in a step.

    Attributes:
      model: the model being trained, a ModelFn.
      target: the model that computes the targets: the model itself, or an average of its weights.
      config: the sampler config that defines their noise levels.
      teacher: the model that is distilled and its config, or None.
    """

    model: ModelFn
    target: ModelFn
    config: Any
    teacher: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A training method. Stages are shares of the run, so that a run may be longer or shorter."""

    config_type: ClassVar[type] = CMConfig
    also_for: ClassVar[tuple[type, ...]] = ()  # configs of other models that it trains
    needs_teacher: ClassVar[bool] = False
    teacher_type: ClassVar[type] = CMConfig
    shared: ClassVar[tuple[str, ...]] = ()  # what a student's config has in common with its teacher's
    is_told_target: ClassVar[bool] = False  # whether the network is told where a step lands, too
    sample_steps: ClassVar[int] = 2  # of the pictures that show how far a run is

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, steps: int) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raise ValueError if the run is too short for this method."""

    def kind_of(self, config: Any) -> type:
        """The class of the student's config, for a model with this one: of noise levels, timesteps, or neither."""
        kinds = (self.config_type, *self.also_for)
        is_vp = isinstance(config, VPConfig)
        return next((kind for kind in kinds if issubclass(kind, VPConfig) == is_vp), self.config_type)

    def check_teacher(self, config: Any, teacher_config: Any) -> None:
        """Raise ValueError if the teacher is of another kind, or defines other noise levels."""
        self._check_teacher(config, teacher_config, self.teacher_type, self.shared)

    def _check_teacher(self, config: Any, teacher_config: Any, kind: type, shared: tuple[str, ...]) -> None:
        if not isinstance(teacher_config, kind):
            wanted, got = kind.__name__, type(teacher_config).__name__
            raise ValueError(f"the teacher's config must be a {wanted} for {type(self).__name__}, got {got}.")
        for name in shared:
            own, its = getattr(config, name), getattr(teacher_config, name)
            if own != its:
                raise ValueError(f"{name} must be the teacher's, {its!r:.60}, got {own!r:.60}.")

    def made(self, config: Any, step: int, steps: int) -> Any:
        """The config that the model is saved and sampled with after this many steps; here, a consistency model's."""
        return config.of_consistency_model() if isinstance(config, CMConfig) else config

    def begin(self, model: Any) -> Any:
        """What is trained in the place of a model: more than one, if the method has further networks."""
        return model

    def student(self, model: Any) -> Any:
        """The model that draws, of what is trained."""
        return model

    def drawn_with(self, config: Any) -> Mapping[str, Any] | None:
        """How to draw with what was trained of a text-to-image model: sampler, steps, eta and timesteps.

        None where the model's own sampler goes on to be the right one.
        """
        return None

    def spans(self, steps: int) -> tuple[int, ...]:
        """The parts of a run over which the learning rate falls; usually one."""
        return (steps,)

    def target_decay(self, step: int | Array, steps: int) -> Array | None:
        """The decay of the target's average at a step; None if the target is the model itself."""
        return None

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """Values to log beside the loss."""
        return {}

    @abc.abstractmethod
    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """Compute one value per example, f32[B]."""


def in_proportion(stages: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Divide the steps of a run among stages in proportion."""
    ends = np.rint(np.cumsum(stages) / sum(stages) * steps).astype(int)
    return tuple(int(n) for n in np.diff(ends, prepend=0))


def karras_grid(config: CMConfig) -> dict[str, Any]:
    """The grid of a config, and a proposal that draws its intervals equally often."""
    return {
        "sigma_min": config.sigma_min,
        "sigma_max": config.sigma_max,
        "rho": config.rho,
        "proposal": karras(config.rho),
    }
