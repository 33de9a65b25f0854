"""Flow matching (Lipman et al. 2023; Liu et al. 2023): straight paths to data, by landing or by fresh noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, is_traced, safe_sqrt
from cmjax._struct import static
from cmjax.samplers import _flow
from cmjax.samplers._checks import etas
from cmjax.samplers._eta import weight
from cmjax.samplers.base import Prediction, SamplerState, build
from cmjax.types import Array

__all__ = ["FlowConfig", "FlowLCMConfig", "FlowState", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig(_flow.FlowKeys):
    """The keys of a `FlowMatchEulerDiscreteScheduler`'s `scheduler_config.json`.

    Attributes:
      stochastic_sampling: whether each step noises x0 anew (eta 1), not Euler's step (eta 0).
    """

    scheduler: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"

    stochastic_sampling: bool = False

    @property
    def default_eta(self) -> float:
        """The eta of this scheduler."""
        return 1.0 if self.stochastic_sampling else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLCMConfig(_flow.FlowKeys):
    """The keys of a `FlowMatchLCMScheduler`'s `scheduler_config.json`: its eta is 1.

    Attributes:
      scale_factors: refused by `init`, since a path keeps the size of its samples: factors between steps.
      upscale_mode: has no effect without them.
    """

    scheduler: ClassVar[str] = "FlowMatchLCMScheduler"
    default_eta: ClassVar[float] = 1.0

    scale_factors: tuple[float, ...] | None = None
    upscale_mode: str = "bicubic"


class FlowState(SamplerState):
    """The path of a flow: x = (1 - s) x0 + s ε, for s from 1 (noise) to 0 (data).

    Attributes:
      sigmas: f32[n + 1], s, descending; the last is 0.
      etas: f32[n], or f32[B, n] of one per image, η of each step: how much of the next noise is fresh.
      inverted: whether the network's time runs towards data, so that it predicts x0 - ε.
    """

    sigmas: Array
    etas: Array
    inverted: bool = static(default=False)

    @property
    def init_noise_sigma(self) -> Array:
        """The path's first level, f32[]; 1, but for paths given by hand."""
        return self.sigmas[..., 0]

    def rates(self) -> tuple[Array, Array]:
        """(1 - s, s), f32[] each."""
        s = self.now(self.sigmas)
        return 1.0 - s, s

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """x0 = x - s v and ε = x + (1 - s) v, f32[B, *S] each, from the velocity v = ε - x0."""
        alpha, s = self.rates()
        v = -f32(model_out) if self.inverted else f32(model_out)
        return Prediction(f32(x) - s * v, f32(x) + alpha * v)

    def land(self, pred: Prediction) -> Array:
        """x_r = (1 - r) x0 + r ε at r = (1 - η) s': the sample before fresh noise. f32[B, *S]."""
        r = self._landing(pred)
        return (1.0 - r) * pred.x0 + r * pred.eps

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Noise it to s', x' = k x_r + √(s'² - k² r²) z with k = (1 - s') / (1 - r), f32[B, *S]; none at the end."""
        r, s = self._landing(pred), self.next(self.sigmas)
        kept = (1.0 - s) / (1.0 - r)
        fresh = safe_sqrt((s - r) / (1.0 - r) * (s + kept * r))  # (s' - k r)(s' + k r), with all digits where r ≈ s'
        return kept * self.land(pred) + fresh * f32(z)

    def _landing(self, pred: Prediction | None = None) -> Array:
        """Where a step lands, r = (1 - η) s', f32[], or, of one η per image, in axes that multiply x0."""
        eta = self.now(self.etas) if pred is None else weight(self, self.etas, pred)
        return (1.0 - eta) * self.next(self.sigmas)


def init(
    config: FlowConfig | FlowLCMConfig,
    num_steps: int | None = None,
    *,
    sigmas: Sequence[float] | np.ndarray | Array | None = None,
    timesteps: Sequence[float] | np.ndarray | Array | None = None,
    eta: float | Sequence[float] | Sequence[Sequence[float]] | Array | None = None,
    spacing: str = "linspace",
    mu: float | None = None,
    image_seq_len: int | None = None,
    strength: float = 1.0,
) -> FlowState:
    """Plan the path of a flow. Give exactly one of num_steps, sigmas and timesteps.

    Args:
      config: the model's config.
      num_steps: n levels, spaced by `spacing`, then shifted as the config says.
      sigmas: levels before the shift, strictly decreasing, in (0, 1]; the final 0 is added. May be traced, f32[n]: then
        they are not checked, nor spaced anew.
      timesteps: T s of each level after the shift, strictly decreasing, in (0, T]: what the network is told.
      eta: η in [0, 1], as TCD's: 0 is Euler's step, which lands on the next level, 1 noises x0 anew, and between them a
        step lands at (1 - η) s'. A scalar, one value per step, f[n], or one per image, f[1, B] or f[n, B], for batches
        of B. May be traced: then out of range gives NaN. The default is the scheduler's: 0, or 1 for LCM and stochastic
        sampling.
      spacing: for num_steps: `"linspace"`, from 1 to 1/T, as the scheduler does alone (Stable Diffusion 3), or
        `"trailing"`, from 1 to 1/n, as the pipelines of FLUX, Qwen-Image and Z-Image do.
      mu: the shift for one size of pictures, where the config has use_dynamic_shifting.
      image_seq_len: the number of tokens that the network makes of a picture, in place of mu, which is then linear from
        base_shift to max_shift. Where the two are equal, neither is needed.
      strength: in (0, 1], for image-to-image. With num_steps, it keeps the clean end of the grid, ⌊T · strength⌋
        levels, and still takes n steps. With sigmas or timesteps, it keeps the last ⌊n · strength⌋. (`skip` drops the
        first steps of a path, as diffusers' pipelines do.)

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer.

    Example:
      >>> init(FlowConfig(shift=3.0), num_steps=4, spacing="trailing").sigmas
      Array([1.  , 0.9 , 0.75, 0.5 , 0.  ], dtype=float32)

      The shift of a picture of 4096 tokens:

      >>> init(FlowConfig(use_dynamic_shifting=True), num_steps=4, image_seq_len=4096).timesteps.round()
      Array([1000.,  863.,  613.,    3.], dtype=float32)

    References:
      Esser et al. 2024, section 5.3.2 (the shift); Liu et al. 2023, algorithm 1; Kim et al. 2023, algorithm 3 (η, there
      γ).

    Differs from diffusers:
      Timesteps alone are what they say; there, the network is told them, and the levels are shifted all the same. The
      prior of a path given by hand has its first level (there, always 1). With invert_sigmas, x0 is right, and so are
      stochastic steps and image-to-image; there, they take the inverted levels for the others. Upscaling between steps
      (`scale_factors`), levels per token and the arguments s_churn ... s_noise, which have no effect there, are absent.
    """
    _flow.check(config, FlowConfig)
    if getattr(config, "scale_factors", None):
        raise ValueError(
            "scale_factors enlarge samples between steps, which a path cannot do: set them to None, and walk one path "
            "for each size."
        )
    levels = _flow.path(config, num_steps, timesteps, sigmas, spacing, mu, image_seq_len, strength)
    told = (1 - levels if config.invert_sigmas else levels) * np.float32(config.num_train_timesteps)
    eta = config.default_eta if eta is None else eta
    path = jnp.append(levels, 0.0) if is_traced(levels) else np.append(levels, np.float32(0))
    return build(
        FlowState,
        index=0,
        timesteps=told,
        sigmas=path,
        etas=etas(eta, len(levels), per_image=True),
        inverted=config.invert_sigmas,
    )


Config, State = FlowConfig, FlowState
CONFIGS = (FlowConfig, FlowLCMConfig)
