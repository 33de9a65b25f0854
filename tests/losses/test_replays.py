"""Every loss once more in float64 NumPy, example by example, with the noise and the levels of its own key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import losses, ode

CONFIG = cmjax.cm.CMConfig()
KEY = jax.random.key(3)
X0 = np.random.default_rng(0).uniform(-1, 1, (48, 3, 2)).astype(np.float32)
COND = np.linspace(-1, 1, 48, dtype=np.float32)
STUDENT, TARGET, TEACHER = 0.9, 0.6, 0.4  # the weights of three networks


def network(xp, w):
    """The network of one weight, which hears its level and its conditioning, in JAX or in NumPy."""
    return lambda x, t, cond, key=None: w * xp.tanh(x + (0.002 * t + cond)[:, None, None])


# ---- the parts, in float64 -------------------------------------------------------------------------------------------


def wide(sigma):
    return sigma[:, None, None]


def preconditioned(w, sigma_min):
    def f(x, sigma):
        s = wide(sigma)
        out = network(np, w)(x / np.sqrt(s**2 + 0.25), 250.0 * np.log(sigma), np.float64(COND))
        return 0.25 / ((s - sigma_min) ** 2 + 0.25) * x + (s - sigma_min) * 0.5 / np.sqrt(s**2 + 0.25) * out

    return f


f, f_target = (preconditioned(w, 0.002) for w in (STUDENT, TARGET))
denoise, teacher = (preconditioned(w, 0.0) for w in (STUDENT, TEACHER))


def euler(x, t, r):
    return x + wide(r - t) * (x - teacher(x, t)) / wide(t)


def heun(x, t, r):
    guess = euler(x, t, r)
    slopes = (x - teacher(x, t)) / wide(t), (guess - teacher(guess, r)) / wide(r)
    return x + wide(r - t) * sum(slopes) / 2


def pair(sigma, n):
    """The neighbours (t, r) of each level on the grid of n points."""
    grid = np.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), n) ** 7
    i = np.clip(np.searchsorted(grid, sigma, side="right") - 1, 0, n - 2)
    return grid[i + 1], grid[i]


def length(a, b):
    return np.sqrt(((a - b) ** 2).sum((1, 2)) + 0.00054**2 * 6) - 0.00054 * np.sqrt(6)


def square(a, b):
    return ((a - b) ** 2).mean((1, 2))


# ---- the losses, in float64: (sigma, z) -> f64[B] --------------------------------------------------------------------


def consistency_training(sigma, z, n):
    t, r = pair(sigma, n)
    return length(f(X0 + wide(t) * z, t), f_target(X0 + wide(r) * z, r)) / (t - r)


def easy_consistency_tuning(t, z, gap):
    r = np.maximum(t * (1 - gap * (1 + 8 / (1 + np.exp(t)))), 0.002)
    return np.sqrt(1 / t**2 + 4) * length(f(X0 + wide(t) * z, t), f_target(X0 + wide(r) * z, r))


def consistency_distillation(sigma, z, n):
    t, r = pair(sigma, n)
    x_t = X0 + wide(t) * z
    return square(f(x_t, t), f_target(heun(x_t, t, r), r))


def progressive_distillation(sigma, z, m):
    t, r = pair(sigma, m + 1)
    middle = pair(1.0001 * r, 2 * m + 1)[0]  # the next above r on the teacher's grid
    x_t = X0 + wide(t) * z
    x_r = euler(euler(x_t, t, middle), middle, r)
    x0 = (wide(t) * x_r - wide(r) * x_t) / wide(t - r)
    return np.maximum(1 / t**2, 1) * square(denoise(x_t, t), x0)


def denoising(t, z):
    return (1 / t**2 + 4) * square(denoise(X0 + wide(t) * z, t), X0)


# ---- side by side ----------------------------------------------------------------------------------------------------


F, F_TARGET = (cmjax.consistency_fn(network(jnp, w), CONFIG) for w in (STUDENT, TARGET))
DENOISE, BY = (cmjax.denoiser_fn(network(jnp, w), CONFIG) for w in (STUDENT, TEACHER))
FOLLOWED, HALVED = functools.partial(ode.heun, BY), functools.partial(ode.euler, BY)
EVEN, NORMAL = losses.karras(), losses.lognormal()
CASES = [
    (losses.consistency_training, consistency_training, (F, F_TARGET), {"num_scales": 2}, EVEN),
    (losses.consistency_training, consistency_training, (F, F_TARGET), {"num_scales": 11}, NORMAL),
    (losses.consistency_training, consistency_training, (F, F_TARGET), {"num_scales": 1281}, NORMAL),
    (losses.easy_consistency_tuning, easy_consistency_tuning, (F, F_TARGET), {"gap": 1.0}, EVEN),
    (losses.easy_consistency_tuning, easy_consistency_tuning, (F, F_TARGET), {"gap": 2**-8}, NORMAL),
    (losses.consistency_distillation, consistency_distillation, (F, F_TARGET, FOLLOWED), {"num_scales": 2}, NORMAL),
    (losses.consistency_distillation, consistency_distillation, (F, F_TARGET, FOLLOWED), {"num_scales": 18}, EVEN),
    (losses.consistency_distillation, consistency_distillation, (F, F_TARGET, FOLLOWED), {"num_scales": 151}, EVEN),
    (losses.progressive_distillation, progressive_distillation, (DENOISE, HALVED), {"num_steps": 1}, EVEN),
    (losses.progressive_distillation, progressive_distillation, (DENOISE, HALVED), {"num_steps": 4}, NORMAL),
    (losses.progressive_distillation, progressive_distillation, (DENOISE, HALVED), {"num_steps": 64}, EVEN),
    (losses.denoising, denoising, (DENOISE,), {}, NORMAL),
]


@pytest.mark.parametrize(
    ("loss", "replay", "networks", "given", "proposal"),
    CASES,
    ids=["-".join([case[1].__name__, *map(str, case[3].values())]) for case in CASES],
)
def test_each_example_is_its_formula(loss, replay, networks, given, proposal):
    sigma_key, z_key, _ = jax.random.split(KEY, 3)
    sigma = np.float64(proposal(sigma_key, X0.shape[:1], 0.002, 80.0))
    z = np.float64(jax.random.normal(z_key, X0.shape))
    value = jax.jit(functools.partial(loss, *networks, proposal=proposal, **given))(X0, KEY, cond=COND)
    np.testing.assert_allclose(value, replay(sigma, z, *given.values()), rtol=5e-4)  # of differences, in float32
