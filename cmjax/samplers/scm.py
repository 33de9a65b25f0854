"""Continuous-time consistency models (Lu & Song 2024): jump to clean data, noise it to the next angle, jump again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, is_traced
from cmjax.samplers._checks import (
    concrete,
    count_steps,
    exactly_one,
    fraction,
    last_part,
    right_config,
    strictly_decreasing,
)
from cmjax.samplers.base import Prediction, SamplerConfig, SamplerState, build
from cmjax.types import Array

__all__ = ["SCMConfig", "SCMState", "init"]

_RIGHT_ANGLE = 1.5708  # what published pipelines start from: π / 2, rounded up
_SECOND = 1.3  # the second of two angles, where nothing else is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class SCMConfig(SamplerConfig):
    """The keys of an `SCMScheduler`'s `scheduler_config.json`.

    Attributes:
      num_train_timesteps: the largest number of steps.
      prediction_type: what the network predicts: `"trigflow"`, the velocity of TrigFlow.
      sigma_data: σ_d, the standard deviation of the data, and of the noise that is added to them.
    """

    scheduler: ClassVar[str] = "SCMScheduler"

    num_train_timesteps: int = 1000
    prediction_type: str = "trigflow"
    sigma_data: float = 0.5


class SCMState(SamplerState):
    """The path of a consistency model in angles: x = cos a x0 + sin a σ_d ε, for a from π/2 (noise) to 0 (data).

    Attributes:
      angles: f32[n + 1], descending; the last is 0.
      sigma_data: f32[], σ_d.
    """

    angles: Array
    sigma_data: Array

    @property
    def init_noise_sigma(self) -> Array:
        """σ_d, f32[]: noisy samples have it at every angle."""
        return self.sigma_data

    def rates(self) -> tuple[Array, Array]:
        """(cos a, σ_d sin a), f32[] each."""
        angle = self.now(self.angles)
        return jnp.cos(angle), self.sigma_data * jnp.sin(angle)

    def model_input(self, x: Array) -> tuple[Array, Array]:
        """(x / σ_d, a): x at unit variance, f[B, *S], and the angle, f32[]."""
        return (f32(x) / self.sigma_data).astype(x.dtype), self.now(self.timesteps)

    def predict(self, model_out: Array, x: Array) -> Prediction:
        """x0 = cos a x - sin a σ_d F and ε = sin a x / σ_d + cos a F, f32[B, *S] each."""
        angle, out, x = self.now(self.angles), f32(model_out), f32(x)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return Prediction(cos * x - sin * self.sigma_data * out, sin * x / self.sigma_data + cos * out)

    def renoise(self, pred: Prediction, z: Array) -> Array:
        """Return to the next angle, x' = cos a' x0 + sin a' σ_d z, f32[B, *S]. At the end a' = 0: exactly no noise."""
        angle = self.next(self.angles)
        return jnp.cos(angle) * pred.x0 + jnp.sin(angle) * self.sigma_data * f32(z)


def init(
    config: SCMConfig,
    num_steps: int | None = None,
    *,
    timesteps: Sequence[float] | np.ndarray | Array | None = None,
    max_timesteps: float = _RIGHT_ANGLE,
    intermediate_timesteps: float | None = _SECOND,
    strength: float = 1.0,
) -> SCMState:
    """Plan the path of a consistency model in angles. Give exactly one of num_steps and timesteps.

    Args:
      config: the model's config.
      num_steps: n angles, evenly spaced from max_timesteps; two steps take intermediate_timesteps as the second.
      timesteps: the angles to visit, strictly decreasing, in (0, 1.5708]; the final 0 is added. May be traced, f32[n]:
        then they are not checked.
      max_timesteps: the first angle, in (0, 1.5708]. The paper has arctan(80 / σ_d).
      intermediate_timesteps: the second of two angles; None spaces two steps evenly. It is for two steps alone.
      strength: in (0, 1], for image-to-image. With num_steps, it scales all angles. With timesteps, it keeps the last
        ⌊n · strength⌋ of them. (`skip` drops the first steps of a path.)

    Returns:
      A state at index 0.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer.

    Example:
      >>> init(SCMConfig(), num_steps=2).angles
      Array([1.5708, 1.3   , 0.    ], dtype=float32)

      rCM (Zheng et al. 2025) is this rule with σ_d = 1 and angles of its own; `parameterization.trigflow_of_flow`
      presents its networks, which were trained as flows:

      >>> import math
      >>> init(SCMConfig(sigma_data=1.0), timesteps=[math.atan(80.0), 1.3, 1.0, 0.6]).num_steps
      4

    References:
      Lu & Song 2024, section 3; Chen et al. 2025 (SANA-Sprint), section 3.

    Differs from diffusers:
      The prior has the standard deviation σ_d, and the network is given x / σ_d and returns F; there, the pipeline
      scales all three. Even angles are spaced in float64; there, in float32, which moves some by a last digit. Given
      timesteps have no final 0. Other numbers of steps than two need no `intermediate_timesteps=None`.
    """
    exactly_one(num_steps=num_steps, timesteps=timesteps)
    _check(config)
    strength = fraction("strength", strength)
    if is_traced(timesteps):
        angles: Any = f32(jnp.asarray(timesteps))
        if angles.ndim != 1:
            raise ValueError(f"timesteps must be a list of angles, got shape {angles.shape}.")
        angles = last_part(angles, strength, "timesteps")
    elif timesteps is not None:
        angles = last_part(strictly_decreasing("timesteps", concrete("timesteps", timesteps)), strength, "timesteps")
        for angle in angles[[0, -1]]:
            _check_angle("timesteps", angle, " (the final 0 is added)" if angle == 0 else "")
    else:
        n = count_steps(num_steps, config.num_train_timesteps, f"num_train_timesteps = {config.num_train_timesteps}")
        angles = strength * _grid(n, max_timesteps, intermediate_timesteps)
    path = jnp.append(angles, 0.0) if is_traced(angles) else np.append(angles, 0.0)
    return build(SCMState, index=0, timesteps=angles, angles=path, sigma_data=config.sigma_data)


def _grid(num_steps: int, highest: float, second: float | None) -> np.ndarray:
    """Compute the angles to visit, f64[n]."""
    highest = _check_angle("max_timesteps", highest)
    if num_steps != 2 and second not in (None, _SECOND):
        raise ValueError(
            f"intermediate_timesteps is the second angle of two, but num_steps = {num_steps}: "
            "leave it out, or give all angles as timesteps."
        )
    if num_steps != 2 or second is None:
        return np.linspace(highest, 0.0, num_steps + 1)[:-1]
    second = _check_angle("intermediate_timesteps", second)
    if not second < highest:
        raise ValueError(
            f"intermediate_timesteps must be below max_timesteps = {highest:g}, got {second:g}; "
            "None spaces them evenly."
        )
    return np.array([highest, second])


def _check_angle(name: str, value: Any, remedy: str = "") -> float:
    angle = concrete(name, value)
    if angle.ndim or not 0 < np.float32(angle) <= np.float32(_RIGHT_ANGLE):
        raise ValueError(f"{name} must lie in (0, {_RIGHT_ANGLE}], angles from data to noise, got {value}{remedy}.")
    return float(angle)


def _check(config: SCMConfig) -> None:
    right_config(config, SCMConfig)
    if config.prediction_type != "trigflow":
        raise ValueError(
            f"prediction_type must be 'trigflow', the velocity in angles, got {config.prediction_type!r}; "
            "a network of another kind is presented as one by parameterization.trigflow_fn or trigflow_of_flow."
        )
    if not config.num_train_timesteps >= 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {config.num_train_timesteps}.")
    if not np.float32(config.sigma_data) > 0:
        raise ValueError(f"sigma_data must be positive, got {config.sigma_data:g}.")


Config, State = SCMConfig, SCMState
