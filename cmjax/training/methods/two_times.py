"""Training of networks that are told where a step lands: CTM, MeanFlow and shortcut models."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import jax
import jax.numpy as jnp

from cmjax import losses, ode
from cmjax._bounds import at_least, positive, within
from cmjax.parameterization import ctm_fn, denoiser_fn, mean_flow_fn
from cmjax.samplers.ctm import CTMConfig
from cmjax.samplers.meanflow import MeanFlowConfig, ShortcutConfig
from cmjax.training.methods.base import Learner, Method
from cmjax.training.methods.guidance import guided, some_left_out

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["ConsistencyTrajectory", "MeanFlow", "Shortcut"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyTrajectory(Method):
    """Jumps from any noise level to any lower one, along a diffusion model's trajectory. Kim et al. 2023.

    The paper's adversarial term is left out.

    Attributes:
      num_scales: N, the noise levels of the grid.
      max_steps: the most steps that the teacher takes for one pair.
      decay: the decay of the target's average.
      denoising_weight: of the denoising term, which teaches g(x, t, t).
      guidance_scale: the guidance scale of a teacher trained with `label_dropout`; 1 leaves the teacher as it is.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    config_type: ClassVar[type] = CTMConfig
    needs_teacher: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max")
    is_told_target: ClassVar[bool] = True

    num_scales: Annotated[int, at_least(2)] = 18
    max_steps: Annotated[int, at_least(1)] = 17
    decay: Annotated[float, within("[0, 1)")] = 0.999
    denoising_weight: Annotated[float, at_least(0)] = 1.0
    guidance_scale: Annotated[float, positive()] = 1.0
    dropout: bool = False

    def target_decay(self, step: int | Array, steps: int) -> Array:
        """The same at every step."""
        return jnp.float32(self.decay)

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.consistency_trajectory` with the teacher's Heun steps, and `losses.denoising`."""
        config = learner.config
        g, target = ctm_fn(learner.model, config), ctm_fn(learner.target, config)
        teacher, cond = guided(learner.teacher, cond, self.guidance_scale)
        jump_key, denoise_key = jax.random.split(key)
        levels = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
        jump = losses.consistency_trajectory(
            g,
            target,
            partial(ode.heun, denoiser_fn(*teacher)),
            x0,
            jump_key,
            num_scales=self.num_scales,
            max_steps=self.max_steps,
            cond=cond,
            dropout=self.dropout,
            rho=config.rho,
            **levels,
        )
        denoise = losses.denoising(
            g.denoise,
            x0,
            denoise_key,
            cond=cond,
            dropout=self.dropout,
            weighting=losses.edm(config.sigma_data),
            **levels,
        )
        return jump + self.denoising_weight * denoise


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(Method):
    """The average velocity of a flow, from images alone. Geng et al. 2025.

    Attributes:
      improved: whether the derivative goes along the network's own velocity (Improved Mean Flows).
      instant: the share of examples that are plain flow matching.
      time_mean: the mean of ln(t / (1 - t)), which is drawn from a normal distribution.
      time_std: its standard deviation.
      power: of the weight 1 / ‖error‖^(2 power).
      label_dropout: the share of labels to drop, so that the model can be guided.
      dropout: whether the network gets a dropout key.
    """

    config_type: ClassVar[type] = MeanFlowConfig
    is_told_target: ClassVar[bool] = True

    improved: bool = False
    instant: Annotated[float, within("[0, 1]")] = 0.75
    time_mean: float = -0.4
    time_std: Annotated[float, positive()] = 1.0
    power: Annotated[float, at_least(0)] = 1.0
    label_dropout: Annotated[float, within("[0, 1)")] = 0.0
    dropout: bool = False

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.mean_flow`."""
        cond, key = some_left_out(learner.model, cond, key, self.label_dropout)
        return losses.mean_flow(
            mean_flow_fn(learner.model, learner.config).velocity,
            x0,
            key,
            cond=cond,
            improved=self.improved,
            instant=self.instant,
            proposal=losses.logit_normal(self.time_mean, self.time_std),
            power=self.power,
            dropout=self.dropout,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """Steps of 1, 1/2, 1/4, ... of a flow, each learned from two shorter ones, from images alone. Frans et al. 2025.

    The config says how fine the finest path is.

    Attributes:
      share: of the examples that learn a step from two.
      decay: the decay of the average that takes the two steps.
      label_dropout: the share of labels to drop, so that the model can be guided.
      dropout: whether the network gets a dropout key (the same for student and target).
    """

    config_type: ClassVar[type] = ShortcutConfig
    is_told_target: ClassVar[bool] = True

    share: Annotated[float, within("(0, 1)")] = 0.25
    decay: Annotated[float, within("[0, 1)")] = 0.999
    label_dropout: Annotated[float, within("[0, 1)")] = 0.0
    dropout: bool = False

    def target_decay(self, step: int | Array, steps: int) -> Array:
        """The same at every step."""
        return jnp.float32(self.decay)

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.shortcut`."""
        cond, key = some_left_out(learner.model, cond, key, self.label_dropout)
        return losses.shortcut(
            mean_flow_fn(learner.model, learner.config).velocity,
            mean_flow_fn(learner.target, learner.config).velocity,
            x0,
            key,
            finest=learner.config.finest,
            share=self.share,
            cond=cond,
            dropout=self.dropout,
        )
