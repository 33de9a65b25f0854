"""Present a sigma-space model as a variance-preserving one, so that TCD and LCM can sample it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like, f32, read
from cmjax._struct import Struct
from cmjax.parameterization import ConsistencyFn, consistency_fn, denoiser_fn
from cmjax.samplers._vp import VPConfig, rate_tables
from cmjax.samplers.cm import CMConfig
from cmjax.types import Array, Cond, ModelFn

__all__ = ["VPModel", "vp_from_sigma"]


class VPModel(Struct):
    """A VP model of prediction type "sample" made of a consistency function; see `vp_from_sigma`.

    Attributes:
      f: the consistency function f(x, sigma, cond).
      gains: f32[T], the factor of x at each timestep: 1 / alpha, limited to noise levels for which f is defined.
      sigmas: f32[T], the noise level that f is told at each timestep.
    """

    f: ConsistencyFn
    gains: Array
    sigmas: Array

    def __call__(self, x: Array, t: Array, cond: Cond = None, **options: Any) -> Array:
        """Estimate x0, f[B, *S].

        Args:
          x: f[B, *S], the VP sample.
          t: its timestep, whole numbers f[] or f[B]; values outside 0 ... T - 1 give NaN.
          cond: passed to the network.
          **options: passed to the network.

        Returns:
          f[B, *S].
        """
        index = jnp.round(f32(t)).astype(jnp.int32)
        x_in = expand_like(read(self.gains, index), x) * f32(x)
        return self.f(x_in.astype(x.dtype), read(self.sigmas, index), cond, **options)


def vp_from_sigma(model: ModelFn, config: CMConfig, vp: VPConfig | np.ndarray) -> VPModel:
    """Present a sigma-space consistency model, or a denoiser, as a VP model that predicts x0, for `tcd` and `lcm`.

    A VP sample is x = alpha x0 + sigma eps, so x / alpha = x0 + (sigma / alpha) eps is a sample at noise level
    sigma / alpha: x0 = f(x / alpha, sigma / alpha).

    For a denoiser (`config.denoiser_steps`), its x0 takes the place of f; `tcd` with eta 0 then is DDIM.

    Where sigma / alpha exceeds sigma_max, f is not defined (with zero terminal SNR it is infinite); there x is scaled
    to noise of level sigma_max. Below sigma_min, f is the identity.

    Args:
      model: the raw network, `model(x_in, t, cond)`.
      config: its config.
      vp: the alpha and sigma of each timestep: the sampler's `TCDConfig` or `LCMConfig`, whose prediction_type must be
        "sample"; or alphas_cumprod itself, f[T].

    Returns:
      The VP model. The network's arrays and the two tables are its leaves; the CM config's numbers are static.

    Raises:
      ValueError: the prediction_type is not "sample", or the table does not hold decreasing numbers in [0, 1].

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> config = cmjax.tcd.TCDConfig(prediction_type="sample")
      >>> net = vp_from_sigma(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig(), config)
      >>> state = cmjax.tcd.init(config, num_steps=4)
      >>> cmjax.prior(state, jax.random.key(0), (1, 8, 8, 1)).shape
      (1, 8, 8, 1)

    References:
      Karras et al. 2022, section 2 and appendix B (the two families differ by a scaling); Zheng et al. 2024 (TCD).
    """
    alpha, sigma = _rates(vp)
    with np.errstate(divide="ignore"):
        gains = np.minimum(1 / alpha, np.where(sigma > 0, config.sigma_max / sigma, np.inf))
        levels = np.clip(sigma / alpha, config.sigma_min, config.sigma_max)
    f = consistency_fn(model, config) if config.denoiser_steps is None else denoiser_fn(model, config)
    return VPModel(f, f32(gains.astype(np.float32)), f32(levels.astype(np.float32)))


def _rates(vp: VPConfig | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) at every timestep, f64[T] each."""
    if isinstance(vp, VPConfig):
        if vp.prediction_type != "sample":
            raise ValueError(
                f"prediction_type must be 'sample', got {vp.prediction_type!r}: the model says x0, so give this "
                "function and the sampler dataclasses.replace(config, prediction_type='sample')."
            )
        return rate_tables(vp)
    table = np.asarray(vp, np.float64)
    if table.ndim != 1 or not table.size or not ((table >= 0) & (table <= 1)).all() or (np.diff(table) > 0).any():
        raise ValueError(
            f"vp must be a TCDConfig, an LCMConfig or alphas_cumprod, decreasing numbers in [0, 1]; got {vp!r:.80}."
        )
    return schedules.rates(table)
