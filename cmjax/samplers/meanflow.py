"""MeanFlow and shortcut models: jump along a flow to any lower level, which the network is told.

The network predicts u, the average velocity from s to r, so that x_r = x - (s - r) u (Geng et al. 2025; Frans et al.
2025).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cmjax._numerics import f32, is_traced
from cmjax._struct import static
from cmjax.samplers._checks import concrete, count_steps, etas, exactly_one, right_config, strictly_decreasing
from cmjax.samplers.base import SamplerConfig, build
from cmjax.samplers.flow import FlowState
from cmjax.types import Array

__all__ = ["MeanFlowConfig", "MeanFlowState", "ShortcutConfig", "init"]

_MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlowConfig(SamplerConfig):
    """The keys of a MeanFlow's `scheduler_config.json`; diffusers has no such scheduler.

    Attributes:
      num_train_timesteps: T; the network is told T s for level s, and T r for where the step lands.
    """

    scheduler: ClassVar[str] = "MeanFlowScheduler"

    num_train_timesteps: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortcutConfig(MeanFlowConfig):
    """The keys of a shortcut model's `scheduler_config.json`; diffusers has no such scheduler.

    Attributes:
      num_train_timesteps: as for MeanFlow.
      finest: the steps of its finest path, a power of two. It has learned steps of 1/1, 1/2, 1/4, ... 1/finest.
    """

    scheduler: ClassVar[str] = "ShortcutScheduler"

    finest: int = 128


class MeanFlowState(FlowState):
    """The path of a flow whose network is told where a step lands: x = (1 - s) x0 + s ε, for s from 1 to 0.

    The network's estimate x0 serves the jump to r: it is where the straight line through x and the landing meets clean
    data, and a picture only in the last step.

    Attributes:
      scale: T, what the network is told at level 1.
    """

    scale: float = static(kw_only=True, repr=False)

    def model_options(self) -> dict[str, Array]:
        """What the network is told of where the step lands, s = T r, f32[]."""
        return {"s": self.scale * self._landing()}


def init(
    config: MeanFlowConfig,
    num_steps: int | None = None,
    *,
    sigmas: Sequence[float] | np.ndarray | Array | None = None,
    eta: float | Sequence[float] | Array = 0.0,
) -> MeanFlowState:
    """Plan the path of a flow that is told where its steps land. Give exactly one of num_steps and sigmas.

    Args:
      config: the model's config.
      num_steps: n equal steps from 1 to 0; for a shortcut model a power of two.
      sigmas: levels to visit, strictly decreasing, in (0, 1]; the final 0 is added. May be traced, f32[n]: then they
        are not checked. Not for shortcut models, which know equal steps alone.
      eta: η in [0, 1]: 0 follows the trajectory, 1 jumps to clean data and adds noise anew, and between them a step
        lands at (1 - η) s', and adds noise up to s'. A scalar, or one value per step, f[n]. May be traced: then out of
        range gives NaN. 0 for shortcut models.

    Returns:
      A state at index 0. The model is called as `model(x, t, cond, s=...)`; by hand, with `**state.model_options()`.

    Raises:
      ValueError: an argument or a value of the config is out of range.
      TypeError: num_steps is not an integer.

    Example:
      >>> state = init(MeanFlowConfig(), num_steps=4)
      >>> state.sigmas, state.model_options()
      (Array([1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32), {'s': Array(750., dtype=float32)})

    References:
      Geng et al. 2025 (Mean Flows), section 4 and algorithm 2; Frans et al. 2025 (shortcut models), algorithm 2.

    Differs from the papers:
      They have no noise between steps (η = 0). Shortcut models count time from noise to data, and are told the step's
      length: `models.told_length` presents such a network in these terms.
    """
    exactly_one(num_steps=num_steps, sigmas=sigmas)
    _check(config)
    if isinstance(config, ShortcutConfig):
        _check_shortcut(config, num_steps, eta)
    levels = _given(sigmas) if num_steps is None else _equal(num_steps)
    path = jnp.append(levels, 0.0) if is_traced(levels) else np.append(levels, 0.0)
    scale = config.num_train_timesteps
    return build(
        MeanFlowState,
        index=0,
        timesteps=levels * scale,
        sigmas=path,
        etas=etas(eta, len(levels)),
        scale=float(scale),
    )


def _equal(num_steps: Any) -> np.ndarray:
    n = count_steps(num_steps, _MOST_STEPS, f"{_MOST_STEPS}")
    return 1.0 - np.arange(n) / n


def _given(sigmas: Any) -> Any:
    """Levels given by hand, f[n]; traced ones are not checked."""
    if is_traced(sigmas):
        return f32(jnp.asarray(sigmas))
    levels = strictly_decreasing("sigmas", concrete("sigmas", sigmas))
    for level in levels[[0, -1]]:
        if not 0 < level <= 1:
            raise ValueError(f"sigmas must lie in (0, 1], got {level:.12g}. (The final 0 is added.)")
    return levels


def _check(config: MeanFlowConfig) -> None:
    right_config(config, MeanFlowConfig)
    if config.num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {config.num_train_timesteps}.")


def _check_shortcut(config: ShortcutConfig, num_steps: Any, eta: Any) -> None:
    """Refuse paths of other steps than the model has learned."""
    finest = config.finest
    if not _is_power(finest):
        raise ValueError(f"finest must be a power of two, got {finest}.")
    if num_steps is None:
        raise ValueError("sigmas must be left out: a shortcut model knows equal steps alone; give num_steps.")
    n = count_steps(num_steps, finest, f"finest = {finest}")
    if not _is_power(n):
        near = 2 ** round(np.log2(n))
        raise ValueError(f"num_steps must be a power of two for a shortcut model, got {n}: give {near}.")
    if is_traced(eta) or np.any(np.asarray(eta) != 0):
        raise ValueError(f"eta must be 0 for a shortcut model, which knows no other landings, got {eta}.")


def _is_power(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


Config, State = MeanFlowConfig, MeanFlowState
CONFIGS = (MeanFlowConfig, ShortcutConfig)
