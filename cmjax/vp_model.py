"""Present a model in other terms: noise levels as timesteps, for TCD and LCM; timesteps as angles, for sCD and SCM."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like, f32, read
from cmjax._struct import Struct, static
from cmjax.parameterization import ConsistencyFn, consistency_fn, denoiser_fn, model_out, x0_eps
from cmjax.samplers._vp import VPConfig, rate_tables
from cmjax.samplers.cm import CMConfig
from cmjax.types import Array, Cond, ModelFn

__all__ = ["TrigFlowOfVP", "VPModel", "trigflow_of_vp", "vp_from_sigma"]


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


# ---- angles for timesteps --------------------------------------------------------------------------------------------


class TrigFlowOfVP(Struct):
    """A variance-preserving network that is called with angles; see `trigflow_of_vp`.

    Attributes:
      model: `model(x, t, cond)`, t in timesteps.
      angles: f32[T], the angle of each timestep, arctan(σ_t / α_t), ascending.
      slopes: f32[T], timesteps for each unit of angle, from each timestep to the next.
      prediction_type: what the model predicts.
    """

    model: ModelFn
    angles: Array
    slopes: Array
    prediction_type: str = static()

    def timestep(self, angle: Array) -> Array:
        """The timestep of an angle, f32[] or f32[B]; between two of the table it is a fraction."""
        i = jnp.searchsorted(self.angles, angle, side="right") - 1
        i = jnp.clip(i, 0, self.angles.shape[0] - 1)
        return i + (angle - self.angles[i]) * self.slopes[i]

    def __call__(self, x: Array, t: Array | float, cond: Cond = None, **options: Any) -> Array:
        """F(x, t), f[B, *S], for the angle t of f32[] or f32[B]."""
        wanted = jnp.maximum(f32(t), self.angles[0])
        angle = jnp.minimum(wanted, self.angles[-1])
        out = self.model(x, self.timestep(angle), cond, **options)
        alpha, sigma = expand_like(jnp.cos(angle), x), expand_like(jnp.sin(angle), x)
        v = f32(out)
        if self.prediction_type != "v_prediction":
            v = model_out("v_prediction", *x0_eps(self.prediction_type, v, f32(x), alpha, sigma), alpha, sigma)
        beyond = expand_like(jnp.cos(wanted), x) - alpha  # 0 but where there is more noise than the table has
        return ((beyond * f32(x) + sigma * v) / expand_like(jnp.sin(wanted), x)).astype(out.dtype)


def trigflow_of_vp(model: ModelFn, config: VPConfig) -> TrigFlowOfVP:
    """Present a variance-preserving network as a TrigFlow network of any angle, so that sCD distils it.

    x = α_t x0 + σ_t ε lies on the circle x = cos a x0 + sin a ε of TrigFlow with σ_d = 1: the angle of timestep t is
    arctan(σ_t / α_t), and F is v = α_t ε - σ_t x0, whatever the network predicts. So a network of v-prediction is a
    TrigFlow network already, but for its time. Between two timesteps the network is told a fraction, by linear
    interpolation of the table; all networks of `cmjax.models` take it.

    For angles below the table it is told the first timestep, and for angles above it the last. There
    x0 = cos a x - sin a F is the network's estimate at the last timestep. A text-to-image network of epsilon has 1.502,
    arctan 14.6, as the last angle, and a published sampler of angles begins with 1.571.

    Args:
      model: a callable pytree `model(x, t, cond)`, guided or not; options as `key=` are passed on.
      config: of any sampler of variance-preserving models: the rates, and what the network predicts.

    Returns:
      F(x, t, cond=None), for x of f[B, *S] and angles t in [0, π/2], f32[] or f32[B]. A pytree: its leaves are the
      model's and two tables.

    Raises:
      ValueError: a value of the config is out of range.
      TypeError: the config is for another kind of model.

    Example:
      >>> import cmjax, jax
      >>> config = cmjax.lcm.LCMConfig(prediction_type="v_prediction")
      >>> net = trigflow_of_vp(lambda x, t, cond: 0.5 * x, config)
      >>> round(float(net.timestep(jnp.float32(1.2))), 1)
      632.5
      >>> state = cmjax.scm.init(cmjax.scm.SCMConfig(sigma_data=1.0), num_steps=2)
      >>> cmjax.generate(net, state, jax.random.key(0), (1, 2)).shape
      (1, 2)

    References:
      Lu & Song 2024, section 3 and appendix B (TrigFlow, and v as its velocity); Salimans & Ho 2022, appendix D (v and
      the angle of a variance-preserving sample).
    """
    alpha, sigma = rate_tables(config)
    angles = np.arctan2(sigma, alpha)
    gaps = np.diff(angles)
    slopes = np.divide(1.0, gaps, out=np.zeros_like(gaps), where=gaps > 0)
    slopes = np.append(slopes, slopes[-1:] if len(slopes) else 0.0)
    return TrigFlowOfVP(model, f32(angles.astype(np.float32)), f32(slopes.astype(np.float32)), config.prediction_type)
