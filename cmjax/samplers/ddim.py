"""DDIM (Song, Meng & Ermon 2021): along the probability flow in straight pieces of (x0, ε), with fresh noise by η."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cmjax._numerics import f32
from cmjax.samplers import _levels, _vp
from cmjax.samplers._checks import exactly_one
from cmjax.samplers._eta import weight
from cmjax.samplers._spacing import spaced
from cmjax.samplers._vp_state import VPState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

__all__ = ["DDIMConfig", "DDIMState", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIMConfig(_vp.VPConfig):
    """The keys of a `DDIMScheduler`'s `scheduler_config.json`: those of `VPConfig`, and these.

    A `PNDMScheduler`'s file is read as this too, as published models of Stable Diffusion have it: the same noise levels
    and timesteps, without PNDM's memory of four steps, and without clipping unless the file says so.

    Attributes:
      clip_sample: whether x0 is clipped to ± clip_sample_range. For latents it must be false.
      clip_sample_range: the limit of clip_sample.
      set_alpha_to_one: whether the last step lands at clean data, or else at the noise level of timestep 0.
      thresholding: whether x0 is bounded by its own quantile, image by image; takes precedence over clip_sample.
      dynamic_thresholding_ratio: that quantile.
      sample_max_value: the largest bound that thresholding may choose.
    """

    scheduler: ClassVar[str] = "DDIMScheduler"

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0


class DDIMState(VPState):
    """The path of DDIM.

    Attributes:
      alphas: f32[n + 1], α at the timesteps, then where the path ends.
      sigmas: f32[n + 1], σ there.
      kept: f32[n], or f32[B, n] of one η per image, the weight of ε at the next level: σ' where η is 0.
      fresh: of that shape, the weight of fresh noise, the paper's σ(η); kept² + fresh² = σ'². The last is 0.
    """

    kept: Array
    fresh: Array

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Step to x' = α' x0 + √(σ'² - σ(η)²) ε + σ(η) z, f32[B, *S]."""
        return (
            self.next(self.alphas) * pred.x0
            + weight(self, self.kept, pred) * pred.eps
            + weight(self, self.fresh, pred) * f32(z)
        )


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    eta: float | Sequence[float] | Sequence[Sequence[float]] | Array = 0.0,
    timesteps: Sequence[int] | None = None,
) -> DDIMState:
    """Plan the path of DDIM. Give exactly one of num_steps and timesteps.

    Args:
      config: the model's config; another variance-preserving sampler's is read as DDIM's.
      num_steps: n in [1, T], spaced as the config says. 25 to 50 are usual.
      eta: η in [0, 1]: 0 is deterministic, 1 adds as much noise as DDPM. A scalar, one value per
        step, f[n], or one per image, f[1, B] or f[n, B], for batches of B. May be traced: then out of range gives NaN.
      timesteps: strictly decreasing integers in [0, T - 1], in place of num_steps.

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer, timesteps are traced, or config is for another kind of model.

    Example:
      >>> config = DDIMConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
      >>> init(config, num_steps=5).timesteps
      Array([801, 601, 401, 201,   1], dtype=int32)

    References:
      Song, Meng & Ermon 2021, equations 12 and 16; Lin et al. 2023, table 2 (the three spacings).

    Differs from diffusers:
      A step lands at the next timestep of the path. diffusers lands ⌊T / n⌋ below, which is another timestep for
      `"linspace"`, and for `"trailing"` where n does not divide T: the network is then told one noise level and given
      another. The last step adds no noise, whatever eta and set_alpha_to_one are, and lands at the end of the path (in
      diffusers, with more than T / 2 steps and an offset, at timestep 0). `"trailing"` never has a timestep -1.
    """
    config = _vp.as_config(config, DDIMConfig)
    exactly_one(num_steps=num_steps, timesteps=timesteps)
    alpha, sigma = _vp.rate_tables(config)
    if timesteps is None:
        path = np.round(spaced(config, num_steps)).astype(np.int64)
    else:
        path = _vp.custom_path(config, timesteps)
    _vp.check_noisy(path, sigma)
    end = (1.0, 0.0) if config.set_alpha_to_one else (alpha[0], sigma[0])
    alphas, sigmas = np.append(alpha[path], end[0]), np.append(sigma[path], end[1])
    kept, fresh = _levels.jump(alphas, sigmas, eta)
    return build(
        DDIMState,
        index=0,
        timesteps=path,
        alphas=alphas,
        sigmas=sigmas,
        kept=kept,
        fresh=fresh,
        prediction_type=config.prediction_type,
        bound=_vp.bound(config),
    )


Config, State = DDIMConfig, DDIMState
