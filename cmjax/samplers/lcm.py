"""Latent consistency models (Luo et al. 2023): jump to clean data, noise it to the next timestep, jump again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cmjax import schedules
from cmjax._numerics import expand_like, f32, read
from cmjax.parameterization import x0_eps
from cmjax.samplers import _distilled, _vp
from cmjax.samplers._network import VPNetwork, network, whole_timesteps
from cmjax.samplers._vp_state import VPState
from cmjax.samplers.base import Prediction, build
from cmjax.types import Array

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from cmjax.types import Cond, Key, ModelFn

__all__ = ["LCMConfig", "LCMState", "VPConsistencyFn", "consistency_fn", "init"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LCMConfig(_distilled.DistilledConfig):
    """The keys of an `LCMScheduler`'s `scheduler_config.json`: those of `DistilledConfig`."""

    scheduler: ClassVar[str] = "LCMScheduler"


class LCMState(VPState):
    """The path of LCM.

    Attributes:
      alphas: f32[n + 1], α at the timesteps, then 1: the path ends at clean data.
      sigmas: f32[n + 1], σ at the timesteps, then 0.
      c_skip: f32[n], the boundary scaling of x at the timesteps.
      c_out: f32[n], the boundary scaling of the network's x0.
    """

    c_skip: Array
    c_out: Array

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """c_skip(t) x + c_out(t) x0 (the reference's `denoised`; x0 is bounded first) and ε, f32[B, *S] each."""
        x0, eps = x0_eps(self.prediction_type, f32(model_out), f32(x), *self.rates())
        return Prediction(self.now(self.c_skip) * f32(x) + self.now(self.c_out) * self.bound(x0), eps)

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """x_p = α_p x0 + σ_p z, f32[B, *S]. At the end (α_p, σ_p) = (1, 0)."""
        return self.next(self.alphas) * pred.x0 + self.next(self.sigmas) * f32(z)


def init(
    config: _vp.VPConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
) -> LCMState:
    """Plan the path of LCM. Give exactly one of num_steps and timesteps.

    Args:
      config: the model's config; another variance-preserving sampler's is read as LCM's.
      num_steps: n points, evenly spread over the grid that the model was distilled on.
      timesteps: strictly decreasing integers in [0, T - 1], in place of num_steps.
      original_inference_steps: O, the size of the grid, in place of the config's; T gives every timestep.
      strength: in (0, 1]. With num_steps, it keeps the clean end of the grid and still takes n steps. With timesteps,
        it keeps the last ⌊n · strength⌋ of them. The product is of binary floats, as in diffusers: 0.58 of 50 is 28.
        (`skip` instead drops the first steps of a path.)

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer, or timesteps are traced.

    Example:
      >>> init(LCMConfig(), num_steps=4, original_inference_steps=30).timesteps
      Array([989, 758, 494, 263], dtype=int32)

    References:
      Luo et al. 2023, algorithm 3 and equation 8.

    Differs from diffusers:
      Negative timesteps and a strength above 1 are refused. The last step never adds noise (in diffusers, it does
      for `timesteps` with a strength below 1).
    """
    config = _vp.as_config(config, LCMConfig)
    alpha, sigma = _vp.rate_tables(config)
    path = _distilled.path(config, num_steps, timesteps, original_inference_steps, strength)
    _vp.check_noisy(path, sigma)
    c_skip, c_out = schedules.boundary_scalings(path, config.timestep_scaling)
    return build(
        LCMState,
        index=0,
        timesteps=path,
        alphas=np.append(alpha[path], 1.0),
        sigmas=np.append(sigma[path], 0.0),
        c_skip=c_skip,
        c_out=c_out,
        prediction_type=config.prediction_type,
        bound=_vp.bound(config),
    )


# ---- the function that is trained ------------------------------------------------------------------------------------


class VPConsistencyFn(VPNetwork):
    """f(x, t) = c_skip(t) x + c_out(t) x0, with f(x, 0) = x exactly; see `consistency_fn`.

    Attributes:
      c_skip: f32[T], the boundary scaling of x at every timestep.
      c_out: f32[T], the boundary scaling of the network's x0.
    """

    c_skip: Array
    c_out: Array

    def __call__(self, x: Array, t: ArrayLike, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Map x at timestep t, i32[] or i32[B], to the clean end of its trajectory, f[B, *S]."""
        t = whole_timesteps("t", t, x)
        pred = self.predict(x, t, cond, key=key)
        skip, gain = (expand_like(read(table, t), x) for table in (self.c_skip, self.c_out))
        return (skip * f32(x) + gain * pred.x0).astype(x.dtype)


def consistency_fn(model: ModelFn, config: _vp.VPConfig) -> VPConsistencyFn:
    """Make the consistency function f of a variance-preserving model: x0 from x at any timestep.

    f(x, t) = c_skip(t) x + c_out(t) x0 with the boundary scalings of LCM, in which timestep 0 counts as clean. For a
    sigma-space model, use `cmjax.consistency_fn`.

    Args:
      model: a callable pytree `model(x, t, cond)`; training may pass `key=` for dropout.
      config: an `LCMConfig` (or a `TCDConfig`), whose `timestep_scaling` determines the boundary scalings.

    Returns:
      f(x, t, cond=None, *, key=None) -> x0, for x and x0 of f[B, *S] in one dtype (arithmetic is in float32) and t of
      i32[] or i32[B]. Outside of the table it is NaN. It is a pytree of the model's arrays and the tables, f32[T].

    Raises:
      ValueError: a value of the config is out of range.
      TypeError: config is for another kind of model.

    Example:
      >>> import jax.numpy as jnp
      >>> f = consistency_fn(lambda x, t, cond: 0.5 * x, LCMConfig())
      >>> f(jnp.ones((2, 3)), jnp.array([0, 499]))[:, 0].round(2)
      Array([1.  , 1.09], dtype=float32)

    References:
      Luo et al. 2023, equation 8.

    Differs from diffusers:
      x0 is not clipped or thresholded, whatever the config says. (The sampler does it.)
    """
    config = _vp.as_config(config, LCMConfig)
    c_skip, c_out = schedules.boundary_scalings(np.arange(config.num_train_timesteps), config.timestep_scaling)
    return network(
        VPConsistencyFn,
        model,
        config,
        c_skip=f32(c_skip.astype(np.float32)),
        c_out=f32(c_out.astype(np.float32)),
    )


Config, State = LCMConfig, LCMState
ConsistencyFn = VPConsistencyFn  # its former name
