"""What a network's output means: Karras preconditioning, the three prediction types, the consistency function.

Every noisy sample here is x = α x0 + σ ε. A network says one of x0, ε or v = α ε - σ x0 (variance-preserving models),
or, for sigma-space models (α = 1), a raw F that preconditioning turns into x0 = c_skip x + c_out F(c_in x, c_noise).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, refuse_integers
from cmjax._struct import Struct, static

if TYPE_CHECKING:
    from cmjax.types import Array, Cond, Key, ModelFn

__all__ = [
    "ConsistencyFn",
    "PredictionType",
    "c_in",
    "c_noise",
    "c_out",
    "c_skip",
    "consistency_fn",
    "denoiser_fn",
    "x0_eps",
]

PredictionType = Literal["epsilon", "sample", "v_prediction"]


def c_skip(sigma: Array, sigma_data: float | Array, sigma_min: float | Array = 0.0) -> Array:
    """Weigh the noisy input: σ_d² / ((σ - σ_min)² + σ_d²); exactly 1 at σ_min. Song et al. 2023, appendix C."""
    return sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)


def c_out(sigma: Array, sigma_data: float | Array, sigma_min: float | Array = 0.0) -> Array:
    """Weigh the network: (σ - σ_min) σ_d / √(σ² + σ_d²); exactly 0 at σ_min. Song et al. 2023, appendix C."""
    return (sigma - sigma_min) * sigma_data * c_in(sigma, sigma_data)


def c_in(sigma: Array, sigma_data: float | Array) -> Array:
    """Scale the network's input to unit variance: 1 / √(σ² + σ_d²). Karras et al. 2022, table 1."""
    return jax.lax.rsqrt(sigma**2 + sigma_data**2)  # XLA makes one of 1 / sqrt on one device, and not on eight


def c_noise(sigma: Array) -> Array:
    """Tell the network the noise level: 1000 · ¼ ln σ, as published consistency models are told."""
    return 250.0 * jnp.log(sigma)


def x0_eps(prediction_type: str, model_out: Array, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """Read x0 and ε off a network's output, given x = α x0 + σ ε.

    Args:
      prediction_type: `"epsilon"`, `"sample"` (the output is x0) or `"v_prediction"` (it is α ε - σ x0).
      model_out: f[B, *S], the network's output.
      x: f[B, *S], the noisy sample it was given.
      alpha: f32[], the signal rate of x.
      sigma: f32[], its noise rate.

    Returns:
      The pair (x0, eps), each f[B, *S].

    Raises:
      ValueError: for any other prediction type.

    Example:
      >>> import jax.numpy as jnp
      >>> x0, eps = x0_eps("epsilon", jnp.array(1.0), jnp.array(1.4), jnp.array(0.8), jnp.array(0.6))
      >>> float(x0.round(5)), float(eps)
      (1.0, 1.0)

    References:
      Salimans & Ho 2022, section 4 and appendix D (v).
    """
    match prediction_type:
        case "epsilon":
            return (x - sigma * model_out) / alpha, model_out
        case "sample":
            return model_out, (x - alpha * model_out) / sigma
        case "v_prediction":
            return alpha * x - sigma * model_out, alpha * model_out + sigma * x
    raise ValueError(f"prediction_type must be 'epsilon', 'sample' or 'v_prediction', got {prediction_type!r}.")


class _KarrasConfig(Protocol):
    """The two numbers that a consistency function needs; every `cm.CMConfig` has them."""

    @property
    def sigma_data(self) -> float: ...
    @property
    def sigma_min(self) -> float: ...


class ConsistencyFn(Struct):
    """f(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x, c_noise(σ)), with f(x, σ_min) = x exactly; see `consistency_fn`."""

    model: ModelFn
    sigma_data: float = static()
    sigma_min: float = static()

    def __call__(self, x: Array, sigma: Array | float, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Map x at noise level sigma (f32[] or f32[B]) to the clean end of its trajectory, f[B, *S]."""
        refuse_integers("x", x)
        sigma = f32(sigma)
        at = {} if key is None else {"key": key}
        x_in = expand_like(c_in(sigma, self.sigma_data), x) * f32(x)
        out = self.model(x_in.astype(x.dtype), c_noise(sigma), cond, **at)
        if out.shape != x.shape:
            raise ValueError(f"the model returned shape {out.shape} for x of shape {x.shape}; it must keep the shape.")
        skip = expand_like(c_skip(sigma, self.sigma_data, self.sigma_min), x)
        gain = expand_like(c_out(sigma, self.sigma_data, self.sigma_min), x)
        return (skip * f32(x) + gain * f32(out)).astype(x.dtype)


def consistency_fn(model: ModelFn, config: _KarrasConfig) -> ConsistencyFn:
    """Make the consistency function f of a sigma-space model.

    Args:
      model: a callable pytree `model(x_in, t, cond)`; training may pass `key=` for dropout.
      config: a `cm.CMConfig`, or anything with `sigma_data` and `sigma_min`.

    Returns:
      f(x, sigma, cond=None, *, key=None) -> x0, for x, x0: f[B, *S] and sigma in [sigma_min, sigma_max], f32[] or
      f32[B]. It is a pytree: the model's arrays are its leaves.

    Example:
      >>> import cmjax, jax.numpy as jnp
      >>> f = consistency_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> f(jnp.full((1, 2), 3.0), 0.002)
      Array([[3., 3.]], dtype=float32)

    References:
      Song et al. 2023, equation 5 and appendix C.
    """
    return ConsistencyFn(model, config.sigma_data, config.sigma_min)


def denoiser_fn(model: ModelFn, config: _KarrasConfig) -> ConsistencyFn:
    """Make the denoiser D of a sigma-space diffusion model, such as the teacher of a consistency model.

    D(x, σ) = c_skip x + c_out F(c_in x, c_noise) with the scalings of Karras et al., which have no σ_min. The network
    is told 250 ln σ, as those published with consistency models are. (Their own denoiser is `consistency_fn`.)

    Args:
      model: a callable pytree `model(x_in, t, cond)`.
      config: a `cm.CMConfig`, or anything with `sigma_data`.

    Returns:
      D(x, sigma, cond=None, *, key=None) -> x0, for sigma above 0; otherwise as `consistency_fn`.

    Example:
      >>> import cmjax, jax.numpy as jnp
      >>> denoise = denoiser_fn(lambda x, t, cond: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> denoise(jnp.full((1, 2), 3.0), 0.5)
      Array([[1.5, 1.5]], dtype=float32)

    References:
      Karras et al. 2022, equation 7 and table 1.
    """
    return ConsistencyFn(model, config.sigma_data, 0.0)
