"""Consistency training: methods that learn from images alone, without a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cmjax import curricula, losses
from cmjax._bounds import positive, within
from cmjax.parameterization import consistency_fn, trigflow_fn
from cmjax.training.methods.base import STAGES, Learner, Method, in_proportion, karras_grid

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = [
    "ConsistencyTraining",
    "ContinuousTime",
    "ContinuousTraining",
    "EasyConsistencyTuning",
    "ImprovedConsistencyTraining",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasyConsistencyTuning(Method):
    """Denoising first, then pairs of noise levels whose gap halves from stage to stage. Geng et al. 2024.

    The last gap limits sharpness. A pair of levels r < t keeps a share of the detail of standard deviation s, the
    correlation of its two samples, ρ = (s² + r t) / √((s² + t²) (s² + r²)); the way from noise to picture keeps the
    product over all pairs. For s = 0.2 the product is 0.44 at a last gap of 1/2, 0.47 at 1/4, 0.82 at 1/8, 0.92 at 1/16
    and 0.96 at 1/32 (the sharpness of `fashion-mnist-cm` was 0.56, 0.65, 0.89 and 0.94 of real at the first four). Wide
    gaps are only steps towards narrow ones, and blurred.

    Attributes:
      stages: relative lengths of the stages, for the initial gap, half of it, a quarter of it, ...
      initial_gap: 1 to start with denoising; less for a model that has already learned to denoise.
      proposal_mean: the mean of ln σ, which is drawn from a normal distribution.
      proposal_std: its standard deviation.
      huber_c: the pseudo-Huber length c; None for 0.00054 √d.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    stages: Annotated[tuple[float, ...], STAGES] = (4.0, 1.0, 0.5, 2.5, 4.0)
    initial_gap: Annotated[float, within("(0, 1]", why="1 is denoising.")] = 1.0
    proposal_mean: float = -0.4
    proposal_std: Annotated[float, positive()] = 2.0
    huber_c: Annotated[float | None, positive()] = None
    dropout: bool = False

    def stage_steps(self, steps: int) -> tuple[int, ...]:
        """The number of steps of each stage."""
        return in_proportion(self.stages, steps)

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """The gap."""
        return {"gap": float(curricula.gap(step, self.stage_steps(steps), initial=self.initial_gap))}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.easy_consistency_tuning` with the model as its own target."""
        return losses.easy_consistency_tuning(
            consistency_fn(learner.model, learner.config),
            consistency_fn(learner.target, learner.config),
            x0,
            key,
            gap=curricula.gap(step, self.stage_steps(steps), initial=self.initial_gap),
            cond=cond,
            dropout=self.dropout,
            sigma_min=learner.config.sigma_min,
            sigma_max=learner.config.sigma_max,
            proposal=losses.lognormal(self.proposal_mean, self.proposal_std),
            weighting=losses.edm(learner.config.sigma_data, power=0.5),
            metric=partial(losses.pseudo_huber, c=self.huber_c),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImprovedConsistencyTraining(Method):
    """Neighbouring levels of a grid that doubles during training, from scratch. Song & Dhariwal 2023.

    Attributes:
      initial_scales: s0, the intervals of the first grid.
      final_scales: s1, those of the last grid.
      proposal_mean: the mean of ln σ, which is drawn from a normal distribution.
      proposal_std: its standard deviation.
      huber_c: the pseudo-Huber length c; None for 0.00054 √d.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    initial_scales: int = 10
    final_scales: int = 1280
    proposal_mean: float = -1.1
    proposal_std: Annotated[float, positive()] = 2.0
    huber_c: Annotated[float | None, positive()] = None
    dropout: bool = True

    def check(self, steps: int) -> None:
        """Raise ValueError if the grid cannot double that often in so few steps."""
        self._num_scales(0, steps)

    def _num_scales(self, step: int | Array, steps: int) -> Array:
        return curricula.num_scales(step, total_steps=steps, initial=self.initial_scales, final=self.final_scales)

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """The points of the grid."""
        return {"num_scales": int(self._num_scales(step, steps))}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.consistency_training` with the model as its own target."""
        return losses.consistency_training(
            consistency_fn(learner.model, learner.config),
            consistency_fn(learner.target, learner.config),
            x0,
            key,
            num_scales=self._num_scales(step, steps),
            cond=cond,
            dropout=self.dropout,
            sigma_min=learner.config.sigma_min,
            sigma_max=learner.config.sigma_max,
            rho=learner.config.rho,
            proposal=losses.lognormal(self.proposal_mean, self.proposal_std),
            metric=partial(losses.pseudo_huber, c=self.huber_c),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(Method):
    """The first recipe: neighbours on a growing grid, with an average of the weights as the target. Song et al. 2023.

    Attributes:
      initial_scales: s0, the intervals of the first grid.
      final_scales: s1, those of the last grid.
      initial_decay: μ0, the decay of the target's average on the first grid.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    initial_scales: int = 2
    final_scales: int = 150
    initial_decay: float = 0.9
    dropout: bool = False

    def check(self, steps: int) -> None:
        """Raise ValueError if 1 <= initial_scales <= final_scales does not hold."""
        self._num_scales(0, steps)
        self.target_decay(0, steps)

    def _num_scales(self, step: int | Array, steps: int) -> Array:
        return curricula.progressive_scales(
            step, total_steps=steps, initial=self.initial_scales, final=self.final_scales
        )

    def target_decay(self, step: int | Array, steps: int) -> Array:
        """It grows with the grid."""
        return curricula.target_decay(
            step, total_steps=steps, decay=self.initial_decay, initial=self.initial_scales, final=self.final_scales
        )

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """The points of the grid."""
        return {"num_scales": int(self._num_scales(step, steps))}

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.consistency_training` as the first paper has it, with the squared distance."""
        return losses.consistency_training(
            consistency_fn(learner.model, learner.config),
            consistency_fn(learner.target, learner.config),
            x0,
            key,
            num_scales=self._num_scales(step, steps),
            cond=cond,
            dropout=self.dropout,
            **karras_grid(learner.config),
            weighting=losses.uniform,
            metric=losses.l2,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousTime(Method):
    """The base of methods that drive the tangent of a consistency function to zero.

    Attributes:
      warmup: the share of the run over which the unstable part of the tangent is warmed up.
      tangent_constant: c, which stabilizes the tangent's normalization.
      dropout: whether the network gets a dropout key (the same for the tangent).
    """

    warmup: Annotated[float, within("[0, 1]", says=", a share of the run")] = 0.1
    tangent_constant: Annotated[float, positive()] = 0.1
    dropout: bool = False

    def _warmup(self, step: int | Array, steps: int) -> Array:
        return curricula.tangent_warmup(step, warmup_steps=round(self.warmup * steps))

    def figures(self, step: int, steps: int) -> Mapping[str, float]:
        """The warm-up of the tangent."""
        return {"warmup": float(self._warmup(step, steps))}

    def _options(self, step: int | Array, steps: int) -> dict[str, Any]:
        """Arguments of `losses.continuous_consistency`."""
        return {
            "dropout": self.dropout,
            "warmup": self._warmup(step, steps),
            "tangent_constant": self.tangent_constant,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousTraining(ContinuousTime):
    """Continuous time, from images alone (sCT): training drives the tangent of the consistency function to zero.

    The paper also learns a weight for each noise level. Here all levels have the same weight
    (`losses.continuous_consistency` accepts a learned one).

    Attributes:
      proposal_mean: the mean of ln (σ_d tan t), which is drawn from a normal distribution.
      proposal_std: its standard deviation.
      warmup: the share of the run over which the unstable part of the tangent is warmed up.
      tangent_constant: c, which stabilizes the tangent's normalization.
      dropout: whether the network gets a dropout key (the same for the tangent).

    References:
      Lu & Song 2024, algorithm 1.
    """

    proposal_mean: float = -1.0
    proposal_std: Annotated[float, positive()] = 1.4

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.continuous_consistency`, from data alone."""
        return losses.continuous_consistency(
            trigflow_fn(learner.model, learner.config),
            x0,
            key,
            cond=cond,
            sigma_data=learner.config.sigma_data,
            sigma_min=learner.config.sigma_min,
            sigma_max=learner.config.sigma_max,
            proposal=losses.lognormal(self.proposal_mean, self.proposal_std),
            **self._options(step, steps),
        )
