"""Plain diffusion training of a variance-preserving model, such as the teacher of a few-step one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, floating
from cmjax.losses._pairs import dropout_option
from cmjax.losses._timesteps import Rates, ascending, noise_level, noised_at
from cmjax.losses.metrics import Metric, l2
from cmjax.parameterization import model_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cmjax.losses.weightings import Weighting
    from cmjax.types import Array, Cond, Key

__all__ = ["noise_prediction"]


class Predictor(Rates, Protocol):
    """A network and its prediction type, as `cmjax.tcd.trajectory_fn` and `cmjax.lcm.consistency_fn` make it."""

    @property
    def prediction_type(self) -> str:
        """What the network predicts: epsilon, sample or v_prediction."""
        ...

    def output(self, x: Array, t: Array, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Predict it from x at timestep t."""
        ...


def noise_prediction(
    g: Predictor,
    x0: Array,
    key: Key,
    *,
    timesteps: Sequence[int] | np.ndarray | None = None,
    cond: Cond = None,
    dropout: bool = False,
    noise_offset: float = 0.0,
    weighting: Weighting | None = None,
    metric: Metric = l2,
) -> Array:
    """Compute the loss of a variance-preserving diffusion model, one value per example.

    A timestep t is drawn uniformly, data is noised to x_t = α_t x0 + σ_t z, and the network predicts y, which its
    config names: z, x0, or v = α_t z - σ_t x0.

        loss = d(F(x_t, t), y)

    A weighting weights the squared error of x0, ‖x̂0 - x0‖², which is τ² ‖ẑ - z‖² and σ² ‖v̂ - v‖², with the noise level
    τ = σ_t / α_t. With a weighting w, the loss is thus w(τ) τ² d, w(τ) d or w(τ) σ_t² d for epsilon, sample and
    v_prediction. `weightings.snr` is then the plain loss of "epsilon", `snr_plus_one` that of "v_prediction" and
    `uniform` that of "sample"; each means the same for every prediction type. `min_snr()` is min-SNR-γ.

    Args:
      g: the model, as `cmjax.tcd.trajectory_fn` (of either order) or `cmjax.lcm.consistency_fn` makes it.
      x0: f[B, *S], data.
      key: one key.
      timesteps: i64[N], the timesteps to draw from, strictly ascending and concrete; by default all of 0 ... T - 1.
      cond: conditioning pytree, or None.
      dropout: whether to pass the network a `key=` for dropout.
      noise_offset: how much of the noise z is one number for each channel of an example, o N(0, 1), added to the rest,
        so that a model without zero terminal SNR learns dark and bright pictures. The channels are the last axis.
      weighting: (τ, τ) -> f32[B]; None weights the errors of the network's own output equally.
      metric: (a, b) -> f32[B].

    Returns:
      f32[B].

    Raises:
      ValueError: timesteps do not ascend or lie outside of the table.
      TypeError: x0 is not of a float dtype, or timesteps are traced or fractional.

    Example:
      >>> import cmjax, jax, jax.numpy as jnp
      >>> g = cmjax.tcd.trajectory_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.tcd.TCDConfig())
      >>> noise_prediction(g, jnp.zeros((4, 8, 8, 1)), jax.random.key(0)).round()
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Ho et al. 2020, equation 14 and algorithm 1; Salimans & Ho 2022, section 4; Hang et al. 2023, section 3.4;
      Guttenberg 2023 (Diffusion with offset noise).
    """
    x0 = floating("x0", x0)
    t_key, z_key, dropout_key = jax.random.split(key, 3)
    if timesteps is None:
        t = jax.random.randint(t_key, x0.shape[:1], 0, g.num_train_timesteps)
    else:
        t = jax.random.choice(t_key, ascending(timesteps, g.num_train_timesteps).astype("int32"), x0.shape[:1])
    z = jax.random.normal(z_key, x0.shape, jnp.float32)
    if noise_offset:
        shape = (x0.shape[0], *(1,) * (x0.ndim - 2), x0.shape[-1])
        z = z + noise_offset * jax.random.normal(jax.random.fold_in(z_key, 1), shape, jnp.float32)
    out = g.output(noised_at(g, t, x0, z), t, cond, **dropout_option(dropout_key, dropout))
    alpha, sigma = jax.lax.stop_gradient(g.rates(t))
    y = model_out(g.prediction_type, f32(x0), z, expand_like(alpha, x0), expand_like(sigma, x0))
    if weighting is None:
        return metric(out, y)
    level = noise_level(g, t)
    of_x0 = {"epsilon": level**2, "sample": 1.0, "v_prediction": sigma**2}[g.prediction_type]
    return weighting(level, level) * of_x0 * metric(out, y)
