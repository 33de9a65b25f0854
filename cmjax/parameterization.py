"""The meaning of a network's output: Karras preconditioning, the three prediction types, the consistency function.

Every noisy sample here is x = α x0 + σ ε. A network predicts one of x0, ε or v = α ε - σ x0 (variance-preserving
models), or, for sigma-space models (α = 1), a raw F that preconditioning turns into x0 = c_skip x + c_out F(c_in x,
c_noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import jax.numpy as jnp

from cmjax._numerics import expand_like, f32, floating
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
    "ctm_fn",
    "denoiser_fn",
    "from_trigflow",
    "mean_flow_fn",
    "trigflow_fn",
    "trigflow_of_flow",
    "model_out",
    "x0_eps",
]

PredictionType = Literal["epsilon", "sample", "v_prediction"]


def c_skip(sigma: Array, sigma_data: float | Array, sigma_min: float | Array = 0.0) -> Array:
    """Weight of the noisy input: σ_d² / ((σ - σ_min)² + σ_d²); exactly 1 at σ_min. Song et al. 2023, appendix C."""
    return sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)


def c_out(sigma: Array, sigma_data: float | Array, sigma_min: float | Array = 0.0) -> Array:
    """Weight of the network: (σ - σ_min) σ_d / √(σ² + σ_d²); exactly 0 at σ_min. Song et al. 2023, appendix C."""
    return (sigma - sigma_min) * sigma_data * c_in(sigma, sigma_data)


def c_in(sigma: Array, sigma_data: float | Array) -> Array:
    """Scale of the network's input, to unit variance: 1 / √(σ² + σ_d²). Karras et al. 2022, table 1."""
    return jax.lax.rsqrt(sigma**2 + sigma_data**2)  # XLA makes one of 1 / sqrt on one device, and not on eight


def c_noise(sigma: Array) -> Array:
    """The noise level as published consistency models are told it: 1000 · ¼ ln σ."""
    return 250.0 * jnp.log(sigma)


def x0_eps(prediction_type: str, model_out: Array, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """Compute x0 and ε from a network's output, given x = α x0 + σ ε.

    Args:
      prediction_type: `"epsilon"`, `"sample"` (the output is x0) or `"v_prediction"` (it is α ε - σ x0).
      model_out: f[B, *S], the network's output.
      x: f[B, *S], the noisy sample it was given.
      alpha: f32[], the signal rate of x.
      sigma: f32[], its noise rate.

    Returns:
      The pair (x0, eps), each f[B, *S].

    Raises:
      ValueError: prediction_type is another one.

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


def model_out(prediction_type: str, x0: Array, eps: Array, alpha: Array, sigma: Array) -> Array:
    """Compute the output of a perfect network for x = α x0 + σ ε: the training target, and the inverse of `x0_eps`.

    Args:
      prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.
      x0: f[B, *S].
      eps: f[B, *S].
      alpha: the signal rate, f[] or of a shape that multiplies x0.
      sigma: the noise rate, of the same form.

    Returns:
      f[B, *S]: ε, x0, or v = α ε - σ x0.

    Raises:
      ValueError: prediction_type is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> v = model_out("v_prediction", jnp.array(1.0), jnp.array(2.0), jnp.array(0.8), jnp.array(0.6))
      >>> float(v)
      1.0

    References:
      Salimans & Ho 2022, section 4 and appendix D (v).
    """
    match prediction_type:
        case "epsilon":
            return eps
        case "sample":
            return x0
        case "v_prediction":
            return alpha * eps - sigma * x0
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
        x, sigma = floating("x", x), f32(sigma)
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
    is told 250 ln σ, as the teachers published with consistency models are. (For a consistency model itself, use
    `consistency_fn`.)

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


# ---- TrigFlow: angles for noise levels -------------------------------------------------------------------------------

_LEAST = 1e-6  # of tan t, and of its inverse: c_noise is infinite at both ends


class TrigFlowFn(Struct):
    """A sigma-space network that is called with angles; see `trigflow_fn`."""

    model: ModelFn
    sigma_data: float = static()

    def __call__(self, x: Array, t: Array | float, cond: Cond = None, **options: Any) -> Array:
        """F(x / σ_d, t), f[B, *S], for the angle t of f32[] or f32[B]."""
        t = f32(t)
        sin, cos = (jnp.maximum(rate, _LEAST) for rate in (jnp.sin(t), jnp.cos(t)))
        log_sigma = jnp.log(sin) - jnp.log(cos) + math.log(self.sigma_data)
        return -self.model(x, 250.0 * log_sigma, cond, **options)


class FromTrigFlow(Struct):
    """A TrigFlow network that is called with noise levels; see `from_trigflow`."""

    net: ModelFn
    sigma_data: float = static()

    def __call__(self, x: Array, t: Array, cond: Cond = None, **options: Any) -> Array:
        """F(c_in x, 250 ln σ), f[B, *S], for t of f32[] or f32[B]."""
        return -self.net(x, jnp.arctan(jnp.exp(f32(t) / 250.0) / self.sigma_data), cond, **options)


def trigflow_fn(model: ModelFn, config: _KarrasConfig) -> TrigFlowFn:
    """Present a sigma-space model as a TrigFlow network, so that `losses.continuous_consistency` trains it.

    TrigFlow samples lie on a circle, x_t = cos t x0 + sin t z with z of standard deviation σ_d, and its network
    predicts the velocity: x0 = cos t x_t - sin t σ_d F(x_t / σ_d, t). With σ = σ_d tan t this is Karras
    preconditioning, except for the sign of F: cos t x_σ is x_t, c_in x_σ is x_t / σ_d, and D(x_σ, σ) of `denoiser_fn`
    is that x0.

    The model is still told 250 ln σ. Its derivative, 250 / (sin t cos t), makes ∂F/∂t large for a network with a fine
    embedding of time, so continuous training is less stable than with c_noise = t, the paper's choice (its section
    4.1). To make that choice, train a network of (x / σ_d, t) without this bridge, and sample with `from_trigflow`.

    Args:
      model: a callable pytree `model(x_in, t, cond)`, such as `cmjax.load` returns; options as `key=` are passed on.
      config: a `cm.CMConfig`, or anything with `sigma_data`.

    Returns:
      F(x_scaled, t, cond=None, *, key=None), for x_scaled = x_t / σ_d of f[B, *S] and angles t in [0, π/2], f32[] or
      f32[B]; within 1e-6 of an end, the model is given the angle that is 1e-6 from it. A pytree: its leaves are the
      model's.

    Example:
      >>> import cmjax
      >>> config = cmjax.cm.CMConfig()
      >>> net = trigflow_fn(lambda x, t, cond: 0.3 * x, config)
      >>> t, x_t = jnp.arctan(2.0 / 0.5), jnp.ones(())  # σ = 2
      >>> round(float(jnp.cos(t) * x_t - jnp.sin(t) * 0.5 * net(x_t / 0.5, t)), 4)
      0.5336
      >>> round(float(denoiser_fn(net.model, config)(x_t / jnp.cos(t), 2.0)), 4)
      0.5336

    References:
      Lu & Song 2024, section 3 and appendix B.
    """
    return TrigFlowFn(model, config.sigma_data)


def from_trigflow(net: ModelFn, config: _KarrasConfig) -> FromTrigFlow:
    """Present a TrigFlow network as a sigma-space model, so that `cm` samples it: the inverse of `trigflow_fn`.

    Args:
      net: F(x_t / σ_d, t, cond), a callable pytree, as `losses.continuous_consistency` trains it.
      config: a `cm.CMConfig`, or anything with `sigma_data`.

    Returns:
      A model `model(x_in, t, cond)` for t = 250 ln σ. A pytree: its leaves are the network's.

    Example:
      >>> import cmjax
      >>> config = cmjax.cm.CMConfig()
      >>> model = from_trigflow(lambda x, t, cond: 0.3 * x, config)
      >>> cmjax.generate(model, cmjax.cm.init(config, 1), jax.random.key(0), (2, 3)).shape
      (2, 3)

    References:
      Lu & Song 2024, section 3 and appendix B.

    Differs from the paper:
      `cm` has f(x, sigma_min) = x, where TrigFlow has f(x, 0) = x: the scalings of the two differ by the share
      sigma_min / σ, and 2 sigma_min σ / (σ² + σ_d²) in c_skip.
    """
    return FromTrigFlow(net, config.sigma_data)


class TrigFlowOfFlow(Struct):
    """A flow network that is called with angles; see `trigflow_of_flow`."""

    model: ModelFn
    scale: float = static(default=1000.0)

    def __call__(self, x: Array, t: Array | float, cond: Cond = None, **options: Any) -> Array:
        """F(x / σ_d, t), f[B, *S], for the angle t of f32[] or f32[B]."""
        t = f32(t)
        sin, cos = jnp.sin(t), jnp.cos(t)
        length = expand_like(cos + sin, x)
        x_in = (f32(x) / length).astype(x.dtype)
        out = self.model(x_in, self.scale * sin / (cos + sin), cond, **options)
        return ((f32(out) + expand_like(cos - sin, x) * f32(x)) / length).astype(out.dtype)


def trigflow_of_flow(model: ModelFn, scale: float = 1000.0) -> TrigFlowOfFlow:
    """Present a network of straight flows as a TrigFlow network, so that `scm` samples it, without any error.

    A flow's samples are y = (1 - s) x0 + s ε, and its network predicts v = ε - x0. The point x = cos t x0 + sin t ε of
    the circle lies on the ray of y with s = sin t / (cos t + sin t): y = x / (cos t + sin t), and so

        F(x, t) = (v(y, s) + (cos t - sin t) x) / (cos t + sin t).

    SANA-Sprint and rCM are such networks, trained as flows and then distilled in angles.

    Args:
      model: a callable pytree `model(y, time, cond)` that returns v; options as `key=` are passed on.
      scale: the time that it is told at s = 1: 1000 for rCM and most flows, 1 for SANA-Sprint.

    Returns:
      F(x_scaled, t, cond=None), for x_scaled = x / σ_d of f[B, *S] and angles t in [0, π/2], f32[] or f32[B]. A pytree:
      its leaves are the model's.

    Example:
      >>> net = trigflow_of_flow(lambda y, time, cond: 0.5 * y)
      >>> x, t = jnp.ones((1, 2)), jnp.float32(jnp.pi / 4)  # s = 1/2, y = x / √2
      >>> x0 = jnp.cos(t) * x - jnp.sin(t) * net(x, t)
      >>> (x0 - (1 - 0.5 * 0.5) * x / jnp.sqrt(2)).round(5)
      Array([[0., 0.]], dtype=float32)

    References:
      Chen et al. 2025 (SANA-Sprint), section 3.1; Zheng et al. 2025 (rCM), section 2.
    """
    return TrigFlowOfFlow(model, scale)


# ---- consistency trajectory models: from any level to any lower one --------------------------------------------------


class JumpFn(Struct):
    """G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s), from level t to level s; see `ctm_fn`."""

    model: ModelFn
    sigma_data: float = static()

    def __call__(
        self, x: Array, t: Array | float, s: Array | float, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        """Jump from noise level t to s <= t, f32[] or f32[B] each: f[B, *S]. Where s = t it is x."""
        t, s = f32(t), f32(s)
        share = expand_like(s / t, x)
        return (share * f32(x) + (1.0 - share) * f32(self._inner(x, t, s, cond, key))).astype(x.dtype)

    def denoise(self, x: Array, t: Array | float, cond: Cond = None, *, key: Key | None = None) -> Array:
        """Estimate x0 as a diffusion model does, g(x, t, t), f[B, *S]; `losses.denoising` trains it."""
        return self._inner(x, f32(t), f32(t), cond, key)

    def _inner(self, x: Array, t: Array, s: Array, cond: Cond, key: Key | None) -> Array:
        at = {"s": c_noise(s)} if key is None else {"s": c_noise(s), "key": key}

        def network(x: Array, t: Array, cond: Cond) -> Array:
            return self.model(x, t, cond, **at)

        return ConsistencyFn(network, self.sigma_data, 0.0)(x, t, cond)


def ctm_fn(model: ModelFn, config: _KarrasConfig) -> JumpFn:
    """Make the jump G of a consistency trajectory model, from any noise level to any lower one.

    G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s), with Karras preconditioning inside,
    g = c_skip(t) x + c_out(t) F(c_in(t) x, c_noise(t), c_noise(s)).

    Thus G(x, t, t) = x, g(x, t, t) is a denoiser, and G(x, t, sigma_min) is a consistency model.

    Args:
      model: a callable pytree `model(x_in, t, cond, s=...)`, where s is 250 ln of the target level, as t is of
        the starting level. It is a keyword, so that guidance does not change it, and so that a network without s
        raises an error rather than ignoring it.
      config: a `cm.CMConfig`, or anything with `sigma_data`.

    Returns:
      G(x, t, s, cond=None, *, key=None), for t >= s > 0, f32[] or f32[B]; `G.denoise(x, t, cond)` is g(x, t, t). A
      pytree: its leaves are the model's.

    Example:
      >>> import cmjax
      >>> jump = ctm_fn(lambda x, t, cond, s: jnp.zeros_like(x), cmjax.cm.CMConfig())
      >>> jump(jnp.full((1, 2), 3.0), 2.0, 2.0)
      Array([[3., 3.]], dtype=float32)

    References:
      Kim et al. 2023, equations 6 and 7.
    """
    return JumpFn(model, config.sigma_data)


# ---- flows that are told where they go -------------------------------------------------------------------------------


class MeanFlowFn(Struct):
    """x_r = x - (t - r) u(x, t, r), from level t of a flow to level r; see `mean_flow_fn`."""

    model: Callable[..., Array]
    scale: float = static()

    def __call__(
        self, x: Array, t: Array | float, r: Array | float, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        """Jump from level t to r <= t, f32[] or f32[B] each: f[B, *S]. Where r = t it is x."""
        length = expand_like(f32(t) - f32(r), x)
        return (f32(x) - length * f32(self.velocity(x, t, r, cond, key=key))).astype(x.dtype)

    def velocity(
        self, x: Array, t: Array | float, r: Array | float, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        """The average velocity u from t to r, f[B, *S]; where r = t the velocity itself."""
        at = {} if key is None else {"key": key}
        out = self.model(x, self.scale * f32(t), cond, s=self.scale * f32(r), **at)
        if out.shape != x.shape:
            raise ValueError(f"the model returned shape {out.shape} for x of shape {x.shape}; it must keep the shape.")
        return out


class _FlowConfig(Protocol):
    """The number that a flow's function needs; every `meanflow.MeanFlowConfig` has it."""

    @property
    def num_train_timesteps(self) -> int: ...


def mean_flow_fn(model: Callable[..., Array], config: _FlowConfig) -> MeanFlowFn:
    """Make the jump of a flow whose network is told where it goes, from any level to any lower one.

    Samples are x_t = (1 - t) x0 + t ε, for t from 0 (data) to 1 (noise), and the network predicts u, the average of the
    velocity dx/dt over the trajectory from t to r: x_r = x_t - (t - r) u. Where r = t, u is the velocity itself.

    Args:
      model: a callable pytree `model(x, t, cond, s=...)`, told T t and s = T r.
      config: a `meanflow.MeanFlowConfig`, or anything with `num_train_timesteps`, T.

    Returns:
      g(x, t, r, cond=None, *, key=None) -> x_r, for 1 >= t >= r >= 0, f32[] or f32[B] each; `g.velocity` of the same
      arguments is u. A pytree: its leaves are the model's.

    Example:
      >>> import cmjax
      >>> g = mean_flow_fn(lambda x, t, cond, s: jnp.ones_like(x), cmjax.meanflow.MeanFlowConfig())
      >>> g(jnp.ones((1, 2)), 1.0, 0.25)
      Array([[0.25, 0.25]], dtype=float32)

    References:
      Geng et al. 2025 (Mean Flows), equations 3 and 12.
    """
    return MeanFlowFn(model, float(config.num_train_timesteps))
