"""Training of diffusion models, the teachers of the distillation methods."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cmjax import losses
from cmjax._bounds import at_least, positive, within
from cmjax.parameterization import denoiser_fn
from cmjax.samplers import tcd
from cmjax.samplers.tcd import TCDConfig
from cmjax.training.methods.base import Learner, Method
from cmjax.training.methods.guidance import some_left_out, told

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key

__all__ = ["Denoising", "NoisePrediction"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Method):
    """A diffusion model of noise levels, such as the teacher of the methods that have one. Karras et al. 2022.

    Attributes:
      proposal_mean: the mean of ln σ, which is drawn from a normal distribution.
      proposal_std: its standard deviation.
      label_dropout: the share of labels, or texts, to drop, so that the model can be guided.
      dropout: whether the network gets a dropout key.
    """

    sample_steps: ClassVar[int] = 20

    proposal_mean: float = -1.2
    proposal_std: Annotated[float, positive()] = 1.2
    label_dropout: Annotated[float, within("[0, 1)")] = 0.0
    dropout: bool = False

    def made(self, config: Any, step: int, steps: int) -> Any:
        """The config of a denoiser."""
        return config.of_denoiser(self.sample_steps)

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.denoising`."""
        cond, key = some_left_out(learner.model, cond, key, self.label_dropout)
        return losses.denoising(
            denoiser_fn(learner.model, learner.config),
            x0,
            key,
            cond=told(cond),
            dropout=self.dropout,
            sigma_min=learner.config.sigma_min,
            sigma_max=learner.config.sigma_max,
            proposal=losses.lognormal(self.proposal_mean, self.proposal_std),
            weighting=losses.edm(learner.config.sigma_data),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisePrediction(Method):
    """A variance-preserving diffusion model, such as the teacher of tcd and lcd, or a LoRA of one. Ho et al. 2020.

    Its config holds the prediction type, the timesteps, and whether the last one is noise alone.

    Attributes:
      min_snr: γ of the weight min(SNR, γ) of the error of x0; None weights the errors of the network's own output
        equally.
      noise_offset: the share of noise that is one number for each channel of an example; see `losses.noise_prediction`.
      label_dropout: the share of labels, or texts, to drop, so that the model can be guided.
      dropout: whether the network gets a dropout key.
    """

    config_type: ClassVar[type] = TCDConfig
    sample_steps: ClassVar[int] = 25

    min_snr: Annotated[float | None, positive()] = None
    noise_offset: Annotated[float, at_least(0)] = 0.0
    label_dropout: Annotated[float, within("[0, 1)")] = 0.0
    dropout: bool = False

    def loss(self, learner: Learner, x0: Array, cond: Cond, key: Key, step: Array, steps: int) -> Array:
        """`losses.noise_prediction`."""
        cond, key = some_left_out(learner.model, cond, key, self.label_dropout)
        return losses.noise_prediction(
            tcd.trajectory_fn(learner.model, learner.config),
            x0,
            key,
            cond=told(cond),
            dropout=self.dropout,
            noise_offset=self.noise_offset,
            weighting=None if self.min_snr is None else losses.min_snr(self.min_snr),
        )
