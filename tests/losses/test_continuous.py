"""Continuous-time losses: the derivative, the limit that it is, warm-up and weights, and what they teach."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian import Gaussian

import cmjax
from cmjax import losses
from cmjax.parameterization import from_trigflow, trigflow_fn

KEY = jax.random.key(3)
S = 0.5  # sigma_data
DATA = Gaussian(0.3, 0.8)
X0 = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
SIGMAS = np.array([0.002, 0.05, 0.4, 1.0, 9.0, 80.0], np.float32)
A = np.random.default_rng(1).normal(size=(5, 5))


def at(sigma: Any) -> Any:
    """A proposal that says these levels."""
    return lambda key, shape, sigma_min, sigma_max: jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), shape)


def smooth(x: Any, t: Any, cond: Any = None, *, key: Any = None, np: Any = jnp, w: Any = 1.0) -> Any:
    """A network that bends in x and in t."""
    t = t[:, None]
    return np.sin(w * (x @ A.astype(x.dtype)) / 4 + 2 * t) + np.cos(t) * x * x / (2 + x * x)


def guide(x: Any, t: Any, cond: Any = None, *, np: Any = jnp) -> Any:
    """Another one, for a teacher."""
    return np.cos(x + t[:, None])


def trig(net: Any, x0: Any = X0, **options: Any) -> Any:
    """The values of `continuous_consistency`, compiled as one."""
    return jax.jit(lambda x0: losses.continuous_consistency(net, x0, KEY, **options))(x0)


def levels(f: Any, x0: Any = X0, **options: Any) -> Any:
    """The values of `infinitesimal_consistency`."""
    return jax.jit(lambda x0: losses.infinitesimal_consistency(f, x0, KEY, **options))(x0)


def drawn(key: Any = KEY, shape: Any = X0.shape) -> Any:
    """The unit noise of a loss."""
    return jax.random.normal(jax.random.split(key, 3)[1], shape)


def exact(data: Gaussian, x: Any, t: Any, cond: Any = None, *, key: Any = None) -> Any:
    """The network of the exact consistency function."""
    cos, sin = jnp.cos(t)[:, None], S * jnp.sin(t)[:, None]
    return (cos * S * x - data.flow(S * x, (cos, sin), (1.0, 0.0))) / sin


def velocity(data: Gaussian, x: Any, t: Any, cond: Any = None) -> Any:
    """The network of the exact denoiser."""
    cos, sin = jnp.cos(t)[:, None], S * jnp.sin(t)[:, None]
    return (cos * S * x - data.x0(S * x, cos, sin)) / sin


# ---- what it computes ------------------------------------------------------------------------------------------------


@functools.cache
def trig_at_warmup(teacher: Any, constant: float | None) -> Any:
    """(x0, warmup) -> the values at SIGMAS, compiled once for every warmup."""

    def values(x0, warmup):
        options = {"teacher": teacher, "tangent_constant": constant, "proposal": at(SIGMAS)}
        return losses.continuous_consistency(smooth, x0, KEY, warmup=warmup, **options)

    return jax.jit(values)


@pytest.mark.parametrize("teacher", [None, guide], ids=("data", "teacher"))
@pytest.mark.parametrize(("warmup", "constant"), [(1.0, 0.1), (0.4, 0.1), (0.0, None), (1.0, None)])
def test_a_float64_replay_with_finite_differences(teacher, warmup, constant):
    value = trig_at_warmup(teacher, constant)(X0, warmup)
    t = np.arctan(SIGMAS.astype(np.float64) / S)
    x0, z = np.float64(X0), S * np.float64(drawn())
    for i in range(len(X0)):
        c, s, one = np.cos(t[i]), np.sin(t[i]), slice(i, i + 1)
        x = c * x0[one] + s * z[one]
        dx = c * z[one] - s * x0[one] if teacher is None else S * teacher(x / S, t[one], np=np)
        h = 1e-5
        ahead, behind = (smooth((x + d * dx) / S, t[one] + d, np=np) for d in (h, -h))
        F, dF = smooth(x / S, t[one], np=np), (ahead - behind) / (2 * h)
        g = -(c**2) * (S * F - dx) - warmup * c * s * (x + S * dF)
        if constant is not None:
            g /= np.sqrt((g**2).sum()) + constant
        np.testing.assert_allclose(value[i], (g**2).mean(), rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("denoise", [None, DATA.denoise], ids=("data", "teacher"))
def test_a_float64_replay_in_noise_levels(denoise):
    def f(x, sigma, cond=None, *, np=jnp):
        return np.sin(x / (1 + sigma[:, None])) * np.cos(sigma[:, None])

    value = levels(f, X0[:5], denoise=denoise, proposal=at(SIGMAS[:5]), weighting=losses.edm(S))
    z = np.float64(drawn(shape=(5, 5)))
    for i, sigma in enumerate(np.float64(SIGMAS[:5])):
        x = X0[i : i + 1] + sigma * z[i : i + 1]
        dx = z[i : i + 1]
        if denoise is not None:
            dx = (x - DATA.mean - DATA.std**2 / (DATA.std**2 + sigma**2) * (x - DATA.mean)) / sigma
        h = 1e-5
        slope = (f(x + h * dx, np.array([sigma + h]), np=np) - f(x - h * dx, np.array([sigma - h]), np=np)) / (2 * h)
        np.testing.assert_allclose(value[i], (sigma**-2 + S**-2) * (slope**2).mean(), rtol=3e-3)


def test_the_exact_function_of_gaussian_data_has_no_tangent():
    net, teacher = (functools.partial(part, DATA) for part in (exact, velocity))
    x0 = DATA.draw(KEY, (512, 3))
    right, poor = jax.jit(
        lambda x0: [losses.continuous_consistency(f, x0, KEY, teacher=teacher) for f in (net, smooth3)]
    )(x0)
    assert float(right.max()) < 1e-4 and float(poor.min()) > 0.01

    def f(x, sigma, cond=None, *, key=None):
        return DATA.to(x, sigma, 0.0)

    assert float(levels(f, x0, denoise=DATA.denoise).max()) < 1e-7
    assert float(levels(f, x0).mean()) > 0.1  # data alone: zero only on average


def smooth3(x, t, cond=None, *, key=None):
    return jnp.sin(x + 2 * t[:, None])


# ---- the limit -------------------------------------------------------------------------------------------------------


def test_the_gradient_is_the_limit_of_distillation_over_a_shrinking_step():
    data, t, z = Gaussian(0.3, 0.8), np.arctan(np.float64(SIGMAS[1:5]) / S), S * np.float64(drawn(shape=(4, 5)))
    with jax.enable_x64(True):
        x0 = jnp.asarray(X0[:4], jnp.float64)
        cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
        x = cos * x0 + sin * z

        def f(w, x, t):
            cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
            return cos * x - sin * S * smooth(x / S, t, w=w)

        def discrete(w, h):  # the teacher goes down by h; then cos / (S sin) turns df/dt · ∂f into - g · ∂F
            rates, nearer = ((jnp.cos(t)[:, None], S * jnp.sin(t)[:, None]) for t in (t, t - h))
            spread, less = (jnp.hypot(a * data.std, s) for a, s in (rates, nearer))
            x_near = nearer[0] * data.mean + less / spread * (x - rates[0] * data.mean)
            target = jax.lax.stop_gradient(f(1.0, x_near, t - h))
            scale = (cos / (S * sin))[:, 0] / h
            return scale * jnp.square(f(w, x, t) - target).mean(1)

        slope = jax.jit(jax.jacfwd(discrete))
        slopes = [np.asarray(slope(1.0, h)) for h in (0.04, 0.02, 0.01, 1e-5)]

    def continuous(w):
        return losses.continuous_consistency(
            functools.partial(smooth, w=w), X0[:4], KEY, teacher=functools.partial(velocity, data),
            proposal=at(SIGMAS[1:5]), tangent_constant=None,
        )  # fmt: skip

    limit = jax.jit(jax.jacrev(continuous))(1.0)
    np.testing.assert_allclose(slopes[-1], limit, rtol=1e-3)
    wide, middle, narrow = (np.abs(slope / limit - 1).max() for slope in slopes[:3])
    assert wide / middle == pytest.approx(2, rel=0.2) and middle / narrow == pytest.approx(2, rel=0.2)


def test_both_continuous_losses_are_the_limit_of_consistency_training():
    config = cmjax.cm.CMConfig()

    def model(w):
        return lambda x, t, cond=None, *, key=None: jnp.sin(w * (x @ jnp.float32(A)) / 4) * jnp.cos(t[:, None] / 250)

    i, n = 300, 1200  # a pair with little between its levels, and not so little that float32 sees none
    grid = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), n) ** 7
    r, t = grid[i], grid[i + 1]
    middle = at(np.sqrt(r * t))

    def pairs(w):
        f = cmjax.denoiser_fn(model(w), config)
        return losses.consistency_training(f, f, X0, KEY, num_scales=n, metric=losses.l2, proposal=middle).sum()

    def infinitesimal(w):
        return losses.infinitesimal_consistency(cmjax.denoiser_fn(model(w), config), X0, KEY, proposal=middle).sum()

    def angles(w):
        net = trigflow_fn(model(w), config)
        return losses.continuous_consistency(net, X0, KEY, proposal=middle, tangent_constant=None).sum()

    discrete, limit, angle = (float(jax.jit(jax.grad(loss))(1.0)) for loss in (pairs, infinitesimal, angles))
    np.testing.assert_allclose(limit, discrete, rtol=0.02)
    # f_θ · df/dσ and -F_θ · g: ∂f = -sin t σ_d ∂F, g = cos t df/dt, dt/dσ = cos² t / σ_d
    theta = np.arctan(np.sqrt(r * t) / S)
    np.testing.assert_allclose(angle * np.cos(theta) * np.sin(theta), limit, rtol=2e-3)


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_warming_up_begins_with_denoising():
    sigma = SIGMAS[1:]
    loss = functools.partial(trig, smooth, X0[1:], proposal=at(sigma))
    t = np.arctan(sigma / S)[:, None]
    z = S * np.asarray(drawn(shape=(5, 5)))
    x, dx = np.cos(t) * X0[1:] + np.sin(t) * z, np.cos(t) * z - np.sin(t) * X0[1:]
    error = np.cos(t) ** 2 * (S * smooth(x / S, t[:, 0], np=np) - dx)
    np.testing.assert_allclose(loss(warmup=0.0, tangent_constant=None), (error**2).mean(1), rtol=5e-4)
    traced = jax.jit(lambda r: losses.continuous_consistency(smooth, X0[1:], KEY, proposal=at(sigma), warmup=r))
    np.testing.assert_allclose(traced(0.5), loss(warmup=0.5), rtol=1e-5)
    assert not np.allclose(traced(0.5), traced(1.0), rtol=1e-2)


@pytest.mark.parametrize("warmup", [-0.1, 1.5, np.float32(2.0)])
def test_a_warmup_outside_its_range_is_refused(warmup):
    with pytest.raises(ValueError, match=r"warmup must lie in \[0, 1\], got"):
        trig(smooth, warmup=warmup)


def test_the_normalized_tangent_is_never_longer_than_one():
    def steep(x, t, cond=None):
        return 1e3 * jnp.sin(9 * x)

    normalized = jax.jit(
        lambda c: losses.continuous_consistency(steep, X0, KEY, tangent_constant=c, proposal=at(SIGMAS)).max()
    )
    for constant in (0.1, 1.0):
        assert float(normalized(constant)) <= 1 / 5
    assert float(trig(steep, tangent_constant=None, proposal=at(SIGMAS)).max()) > 1e3


def test_the_learned_weight_is_least_where_it_evens_the_levels_out():
    x0 = np.tile(X0, (100, 1))
    options = {"tangent_constant": 1.0, "proposal": at(0.7)}
    best = -np.log(trig(smooth, x0, **options).mean())

    @jax.jit
    @jax.value_and_grad
    def weighted(w):
        def log_weight(t):
            return w + t - np.float32(np.arctan(0.7 / S))

        return losses.continuous_consistency(smooth, x0, KEY, log_weight=log_weight, **options).mean()

    (value, slope), less, more = weighted(best), weighted(best - 0.3), weighted(best + 0.3)
    assert abs(float(slope)) < 1e-5 and float(value) < min(float(less[0]), float(more[0]))
    np.testing.assert_allclose(value, 1 - best, rtol=1e-5)


@pytest.mark.parametrize("net", [smooth, "bridge"])
def test_both_ends_are_finite(net):
    model = lambda x, t, cond=None: jnp.sin(x + t[:, None])  # noqa: E731
    net = trigflow_fn(model, cmjax.cm.CMConfig()) if net == "bridge" else net

    @jax.jit
    @jax.value_and_grad
    def loss(x0, sigma):
        return losses.continuous_consistency(net, x0, KEY, proposal=at(sigma)).sum()

    for sigma in (0.0, 1e-12, 1e12, np.inf):
        value, slope = loss(X0, sigma)
        assert np.isfinite(value) and np.isfinite(slope).all(), sigma


def test_the_network_is_called_once_and_the_teacher_knows_no_dropout():
    calls = []

    def net(x, t, cond=None, *, key=None):
        calls.append((key, cond))
        return x

    def teacher(x, t, cond=None):
        assert cond == "label"
        return x

    for dropout in (False, True):
        for loss, name in ((losses.continuous_consistency, "teacher"), (losses.infinitesimal_consistency, "denoise")):
            options = {name: teacher, "cond": "label", "dropout": dropout}
            jax.eval_shape(functools.partial(loss, net, **options), X0, KEY)
    assert [(key is not None, cond) for key, cond in calls] == 2 * [(False, "label")] + 2 * [(True, "label")]


def test_one_dropout_mask_serves_the_value_and_its_derivative():
    def dropped(x, t, cond=None, *, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), jnp.sin(3 * x + t[:, None]), 0.0)

    def masked(x, t, cond=None):
        return dropped(x, t, key=jax.random.split(KEY, 3)[2])

    np.testing.assert_allclose(trig(dropped, dropout=True), trig(masked), rtol=1e-6)


def test_no_gradient_reaches_the_teacher_or_the_tangent():
    def scaled(w, x, t, cond=None):
        return jnp.sin(w * x + t[:, None])

    def loss(w, v, name, lossfn):
        return lossfn(functools.partial(scaled, w), X0, KEY, **{name: functools.partial(scaled, v)}).sum()

    for name, lossfn in (("teacher", losses.continuous_consistency), ("denoise", losses.infinitesimal_consistency)):
        own, other = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=(2, 3))(1.3, 0.7, name, lossfn)
        assert float(other) == 0.0 and float(own) != 0.0


def test_a_network_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"net returned shape \(6, 2\) for x of shape \(6, 5\)"):
        trig(lambda x, t, cond: x[:, :2])


def test_the_derivative_costs_about_a_forward_pass():
    weights = np.random.default_rng(2).normal(size=(6, 128, 128)).astype(np.float32) / 12
    x0 = np.zeros((256, 128), np.float32)

    def network(weights, x, t, cond=None):
        for w in weights:
            x = jnp.tanh(x @ w) + t[:, None]
        return x

    def plain(weights):  # forward, and backward by the weights
        return losses.l2(network(weights, x0 + 1.0, jnp.ones(256)), x0).sum()

    def continuous(weights):
        return losses.continuous_consistency(functools.partial(network, weights), x0, KEY).sum()

    plain, ours = (
        jax.jit(jax.grad(loss)).lower(weights).compile().cost_analysis()["flops"] for loss in (plain, continuous)
    )
    assert ours < 4.4 / 3 * plain  # forward, two backward; and once more forward


# ---- what it teaches -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_step_samples_of_gaussian_data_have_its_mean_and_covariance():
    mean, root = np.array([0.4, -0.2], np.float32), np.array([[0.7, 0.0], [0.3, 0.4]], np.float32)

    def network(params, x, t, cond=None):  # A(t) x + b(t): it can say the answer
        h = jnp.tanh(jnp.broadcast_to(t, len(x))[:, None] * params["a"] + params["b"]) @ params["c"]
        return jnp.einsum("bij,bj->bi", h[:, :4].reshape(-1, 2, 2), x) + h[:, 4:]

    k = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": 2 * jax.random.normal(k[0], (32,)),
        "b": jax.random.normal(k[1], (32,)),
        "c": 0.1 * jax.random.normal(k[2], (32, 6)),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 2000))

    @jax.jit
    def fit(params):
        def step(carry, at):
            params, opt_state = carry
            i, key = at
            x_key, loss_key = jax.random.split(key)
            x0 = mean + jax.random.normal(x_key, (256, 2)) @ root.T
            warmup = cmjax.curricula.tangent_warmup(i, warmup_steps=500)

            def objective(params):
                net = jax.tree_util.Partial(network, params)
                return losses.continuous_consistency(net, x0, loss_key, warmup=warmup).mean()

            updates, opt_state = optimizer.update(jax.grad(objective)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        steps = jnp.arange(2000), jax.random.split(jax.random.key(1), 2000)
        return jax.lax.scan(step, (params, optimizer.init(params)), steps)[0][0]

    config = cmjax.cm.CMConfig(clip_denoised=False)
    model = from_trigflow(jax.tree_util.Partial(network, fit(params)), config)
    x = cmjax.generate(model, cmjax.cm.init(config, 1), jax.random.key(2), (20_000, 2))
    np.testing.assert_allclose(x.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), root @ root.T, atol=0.03)
