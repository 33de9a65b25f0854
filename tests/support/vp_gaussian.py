"""The exact functions of Gaussian data along the table of a variance-preserving model."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from gaussian import Gaussian

import cmjax
from cmjax._numerics import expand_like
from cmjax._struct import static
from cmjax.parameterization import model_out

__all__ = ["Trajectory", "consistency", "network", "trajectory"]


class Trajectory(cmjax.tcd.TrajectoryFn):
    """g(x, t, s) of the data: from quantile to quantile."""

    data: Any = static(default=Gaussian())

    def __call__(self, x: Any, t: Any, s: Any, cond: Any = None, *, key: Any = None) -> Any:
        return self.data.flow(x, self.rates(t), self.rates(s))


def trajectory(data: Gaussian, config: Any) -> Trajectory:
    """The exact trajectory function; as a teacher, an exact step."""
    g = cmjax.tcd.trajectory_fn(network(data, config), config)
    return Trajectory(g.model, g.alphas, g.sigmas, g.prediction_type, g.original_inference_steps, data=data)


def consistency(data: Gaussian, config: Any) -> Any:
    """f(x, t) of the data, with its end at timestep 0."""
    g = trajectory(data, config)
    return lambda x, t, cond=None, *, key=None: g(x, t, jnp.zeros_like(t))


def network(data: Gaussian, config: Any) -> Any:
    """What a network that is right says, (x, t, cond)."""
    rates = cmjax.tcd.trajectory_fn(lambda x, t, cond: x, config).rates

    def model(x: Any, t: Any, cond: Any = None, *, key: Any = None) -> Any:
        alpha, sigma = rates(t)
        a, s = expand_like(alpha, x), expand_like(sigma, x)
        x0 = data.x0(x, alpha, sigma)
        return model_out(config.prediction_type, x0, (x - a * x0) / s, a, s)

    return model
