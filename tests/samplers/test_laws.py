"""The laws that every sampler obeys: this room walks `samplers.ALL`, so a new sampler is tested by being listed.

The last law, step-by-step parity with recorded arrays of the reference, is next door in `test_golden.py`.
"""

from __future__ import annotations

import dataclasses
import json
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from each_sampler import FIRST_FEW
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cmjax
from cmjax._sampler_names import ORDINARY, SAMPLERS
from cmjax._struct import Struct
from cmjax.samplers import Prediction, SamplerState

SHAPE = (3, 4, 2)
KEY = jax.random.key(0)

NAMES = [sampler.__name__.split(".")[-1] for sampler in cmjax.samplers.ALL]
LATENTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of Stable Diffusion
# Of those that share nearly all of their code with another, laws are held with the slow tests.
LATER, TWINS = pytest.mark.slow, ("euler_ancestral", "heun")
KINDS = [
    *(
        pytest.param(name, LATENTS if name in ORDINARY else {}, {}, id=name, marks=[LATER] if name in TWINS else [])
        for name in NAMES
    ),
    pytest.param("tcd", {"prediction_type": "v_prediction"}, {"eta": 0.0}, id="tcd-v-eta0"),
    pytest.param("tcd", {"prediction_type": "sample"}, {"eta": 1.0}, id="tcd-sample-eta1", marks=LATER),
    pytest.param(
        "lcm", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}, id="lcm-v-zero-snr", marks=LATER
    ),
    pytest.param("flow", {"shift": 3.0, "invert_sigmas": True}, {"eta": 0.3}, id="flow-inverted-eta.3", marks=LATER),
    pytest.param("ctm", {}, {"eta": 0.6}, id="ctm-eta.6"),
    pytest.param("meanflow", {}, {"eta": 0.3}, id="meanflow-eta.3", marks=LATER),
    pytest.param(
        "ddim",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **LATENTS},
        {"eta": 1.0},
        id="ddim-v-zero-snr-eta1",
        marks=LATER,
    ),
    pytest.param(
        "dpmpp",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, **LATENTS},
        {},
        id="dpmpp-sde-karras",
        marks=LATER,
    ),
    pytest.param(
        "heun",
        {"prediction_type": "v_prediction", "clip_sample": True, **LATENTS},
        {},
        id="heun-v-clipped",
        marks=LATER,
    ),
]
DISTILLED = [sampler for sampler in cmjax.samplers.ALL if sampler.__name__.split(".")[-1] not in ORDINARY]
each_sampler = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(sampler, id=name, marks=[LATER] if name in TWINS else [])
        for name, sampler in zip(NAMES, cmjax.samplers.ALL, strict=True)
    ],
)
each_kind = pytest.mark.parametrize(("name", "config", "options"), KINDS)


class Net(Struct):
    """An elementwise network that looks at everything it is given: the same arithmetic for every pixel."""

    gain: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any, s: Any = 0.0) -> jax.Array:
        told = self.gain * (t.astype(jnp.float32) - 0.5 * s) / 1000.0
        if cond is not None:
            told = told + cond.reshape(cond.shape + (1,) * (x.ndim - 1))
        return (0.3 * x.astype(jnp.float32) + told).astype(x.dtype)


NET = Net(jnp.float32(0.25))
step = jax.jit(cmjax.step)
sample = jax.jit(cmjax.sample)
generate = jax.jit(cmjax.generate, static_argnames="shape")


def fresh(sampler: ModuleType, num_steps: int = 4, **options: Any) -> Any:
    config = sampler.Config(clip_sample=False) if sampler is cmjax.ddim else sampler.Config()
    return sampler.init(config, num_steps=num_steps, **options)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def start(state: SamplerState) -> jax.Array:
    return state.init_noise_sigma * normal(0)


@jax.jit
def taken(state: Any, out: jax.Array, x: jax.Array, z: jax.Array) -> tuple[jax.Array, ...]:
    """Everything that one step computes, with the noise given."""
    x_in, t = state.model_input(x)
    pred = state.predict(out, x)
    told = (t.astype(jnp.float32), *state.model_options().values())
    return x_in, *told, *pred, state.renoise(pred, z), *state.rates()


def at(state: Any, index: int) -> Any:
    return state.replace(index=jnp.int32(index))


def close(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    """Equal, relative to the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.max(np.abs(a - b)) <= tolerance * max(1.0, np.max(np.abs(b)))


def test_0_the_names_that_are_known_before_jax_are_those_of_all() -> None:
    assert list(SAMPLERS) == NAMES


# ---- 1: a state is a pytree ------------------------------------------------------------------------------------------


@each_sampler
def test_1_leaves_are_arrays_the_tree_is_hashable_the_repr_is_a_line(sampler: ModuleType) -> None:
    state = fresh(sampler)
    leaves, tree = jax.tree.flatten(state)
    assert leaves
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in leaves)
    assert hash(tree) == hash(jax.tree.structure(fresh(sampler)))
    assert repr(state).startswith(f"{sampler.State.__name__}(index=0/{state.num_steps}, timesteps=")
    assert "\n" not in repr(state)
    assert len(repr(state)) < 300
    assert repr(jax.eval_shape(lambda s: s, state))  # without values too
    begun = state.begin(normal(2))
    assert (begun is state) == (jax.tree.structure(begun) == tree)  # most remember nothing
    after, _ = cmjax.step(state, normal(1), normal(2), KEY)
    assert jax.tree.structure(after) == jax.tree.structure(begun)
    assert [leaf.aval for leaf in jax.tree.leaves(after)] == [leaf.aval for leaf in jax.tree.leaves(begun)]
    assert state.index == 0
    assert after.index == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.index = 3


@each_sampler
def test_1_configs_are_frozen_keyword_only_and_hashable(sampler: ModuleType) -> None:
    config = sampler.Config()
    assert hash(config) == hash(sampler.Config())
    assert config == sampler.Config()
    with pytest.raises(TypeError, match="positional"):
        sampler.Config(40)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_train_timesteps = 7


@each_sampler
def test_1_init_under_jit_is_init(sampler: ModuleType) -> None:
    eager, traced = fresh(sampler), jax.jit(lambda: fresh(sampler))()
    chex.assert_trees_all_equal(eager, traced)


# ---- 2: transformations change nothing -------------------------------------------------------------------------------


@each_kind
def test_2_jit_equals_eager_and_scan_equals_the_loop(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    state = first = sampler.init(sampler.Config(**config), num_steps=4, **options)
    x = x_jit = start(state)
    state_jit = state
    xs, x0s = [x], []
    state_jit = state_jit.begin(x)  # or not: as `state`
    for key in jax.random.split(KEY, first.num_steps):
        x_in, t = cmjax.model_input(state, x)
        out = NET(x_in, t, None, **state.model_options())
        x0s.append(state.predict(out, x).x0)
        state, x = cmjax.step(state, out, x, key)
        out = NET(*cmjax.model_input(state_jit, x_jit), None, **state_jit.model_options())
        state_jit, x_jit = step(state_jit, out, x_jit, key)
        close(x_jit, x)
        xs.append(x)
    walked = jax.jit(cmjax.trajectory)(NET, first, start(first), KEY)
    close(walked.x, jnp.stack(xs))
    close(walked.x0, jnp.stack(x0s))
    close(sample(NET, first, start(first), KEY), x)


@each_kind
def test_3_vmap_over_any_leaf_equals_the_loop(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    state = at(sampler.init(sampler.Config(**config), num_steps=3, **options), 1)
    leaves, tree = jax.tree.flatten(state)
    out, x, z = normal(1), normal(2), normal(3)
    leaves = [np.asarray(leaf) for leaf in leaves]
    both = [np.stack([leaf, leaf + 1 if leaf.dtype == np.int32 else leaf * np.float32(0.9)]) for leaf in leaves]

    def with_leaf(i: int, value: Any) -> Any:
        return tree.unflatten([value if j == i else leaf for j, leaf in enumerate(leaves)])

    @jax.jit  # one program for all leaves
    def batched(both: list[Any]) -> list[Any]:
        def over(i: int) -> Any:
            return jax.vmap(lambda value: taken(with_leaf(i, value), out, x, z))

        return [over(i)(pair) for i, pair in enumerate(both)]

    for i, rows in enumerate(batched(both)):
        for k in range(2):
            single = taken(with_leaf(i, both[i][k]), out, x, z)
            for a, b in zip(rows, single, strict=True):
                np.testing.assert_allclose(np.asarray(a)[k], b, rtol=1e-5, atol=1e-5, equal_nan=True)


@each_sampler
def test_4_no_value_recompiles(sampler: ModuleType) -> None:
    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(cmjax.sample, n=1))
    state = fresh(sampler)
    x = start(state)
    seen = [np.asarray(traced_once(NET, state, x, KEY))]
    for i, leaf in enumerate(jax.tree.leaves(state)):
        if leaf.dtype == jnp.int32 and leaf.ndim == 0:
            continue  # the index: sample starts at 0
        leaves, tree = jax.tree.flatten(state)
        leaves[i] = leaf - 1 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf * 0.99
        seen.append(np.asarray(traced_once(NET, tree.unflatten(leaves), x, KEY)))
    traced_once(Net(jnp.float32(0.5)), state, x, jax.random.key(1))
    tables = [leaf for leaf in jax.tree.leaves(state) if np.any(leaf)]  # what is 0 stays 0
    assert sum(not np.array_equal(seen[0], other) for other in seen[1:]) >= min(3, len(tables))  # none is baked in


@pytest.mark.parametrize(
    ("sampler", "knob", "values"),
    [
        (cmjax.cm, "s_noise", [0.0, 0.5, 1.0]),
        (cmjax.cm, "sigmas", [[80.0, 2.0], [70.0, 1.0], [10.0, 0.5]]),
        (cmjax.tcd, "eta", [0.0, 0.3, 1.0]),
        (cmjax.tcd, "eta", [[0.0, 0.3], [0.3, 0.0], [1.0, 0.5]]),
        (cmjax.flow, "eta", [0.0, 0.3, 1.0]),
        (cmjax.ctm, "eta", [0.0, 0.3, 1.0]),
        (cmjax.ctm, "sigmas", [[80.0, 2.0], [70.0, 1.0], [10.0, 0.5]]),
        (cmjax.meanflow, "sigmas", [[1.0, 0.5], [1.0, 0.7], [0.9, 0.3]]),
        (cmjax.ddim, "eta", [0.0, 0.3, 1.0]),
    ],
)
def test_4_knobs_of_init_may_be_traced_and_swept(sampler: ModuleType, knob: str, values: list[Any]) -> None:
    steps = {} if knob == "sigmas" else {"num_steps": 2}

    def render(value: Any) -> jax.Array:
        return cmjax.generate(NET, sampler.init(sampler.Config(), **steps, **{knob: value}), KEY, SHAPE)

    swept = jax.jit(jax.vmap(render))(jnp.asarray(values, jnp.float32))
    for row, value in zip(swept, values, strict=True):
        close(row, generate(NET, sampler.init(sampler.Config(), **steps, **{knob: value}), KEY, SHAPE), 1e-5)
    assert not np.array_equal(swept[0], swept[1])


# ---- 5: dtypes and ranks ---------------------------------------------------------------------------------------------


@each_sampler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=LATER)])
def test_5_shape_and_dtype_of_x_are_kept(sampler: ModuleType, dtype: str) -> None:
    state = fresh(sampler)
    for shape in [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)]:
        x = jax.ShapeDtypeStruct(shape, dtype)
        keys = jax.eval_shape(lambda: jax.random.split(KEY, 2))
        for key in (KEY, keys):
            for edit in (None, jax.tree_util.Partial(jnp.tanh)):
                after, x_next = jax.eval_shape(lambda *a, e=edit: cmjax.step(*a, edit=e), state, x, x, key)
                assert (x_next.shape, x_next.dtype) == (shape, dtype)
                assert jax.tree.structure(after) == jax.tree.structure(jax.eval_shape(state.begin, x))
            assert jax.eval_shape(lambda x, k: cmjax.sample(NET, state, x, k), x, key).dtype == dtype
        assert jax.eval_shape(state.model_input, x)[0].dtype == dtype
        assert jax.eval_shape(lambda x: cmjax.add_noise(state, x, KEY), x).dtype == dtype
        assert jax.eval_shape(lambda key, shape=shape: cmjax.prior(state, key, shape, dtype), KEY).dtype == dtype


@each_sampler
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=LATER)])
def test_5_half_precision_computes_in_float32(sampler: ModuleType, dtype: str) -> None:
    state = fresh(sampler)
    out, x = normal(1).astype(dtype), (0.5 * start(state)).astype(dtype)
    _, half = step(state, out, x, KEY)
    _, full = step(state, out.astype(jnp.float32), x.astype(jnp.float32), KEY)
    np.testing.assert_array_equal(half, full.astype(dtype))


# ---- 6 to 8: the path arrives ----------------------------------------------------------------------------------------


@each_kind
def test_6_the_last_step_adds_no_noise(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    for n in (1, 3):
        state = sampler.init(sampler.Config(**config), num_steps=n, **options)
        state = at(state, state.num_steps - 1)
        pred = Prediction(normal(1), normal(2))
        for renoise in (state.renoise, jax.jit(lambda pred, z, state=state: state.renoise(pred, z))):
            clean = renoise(pred, jnp.zeros(SHAPE))
            np.testing.assert_array_equal(renoise(pred, jnp.full(SHAPE, 1e3)), clean)
            assert np.isfinite(clean).all()


def test_6_neither_does_it_where_eta_is_traced_and_swept() -> None:
    def last(eta: jax.Array, z: jax.Array) -> jax.Array:
        return at(cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3, eta=eta), 2).renoise(Prediction(normal(1), normal(2)), z)

    swept = jax.jit(jax.vmap(last, (0, None)))
    etas = jnp.linspace(0.0, 1.0, 7)
    np.testing.assert_array_equal(swept(etas, jnp.full(SHAPE, 1e3)), swept(etas, jnp.zeros(SHAPE)))


@each_kind
def test_6_past_the_end_is_nan(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    state = sampler.init(sampler.Config(**config), num_steps=2, **options)
    state = at(state, state.num_steps)
    assert np.isnan(cmjax.step(state, normal(1), normal(2), KEY)[1]).all()
    assert np.isnan(step(state, normal(1), normal(2), KEY)[1]).all()
    assert np.isnan(step(at(state, -1), normal(1), normal(2), KEY)[1]).all()
    used = jax.jit(lambda state: cmjax.sample(NET, state, normal(2), KEY))(at(state, 1))  # jit cannot see the index
    assert np.isnan(used).all()


def oracle(state: Any, x: jax.Array, x0: jax.Array) -> jax.Array:
    """What a network says that knows x0."""
    alpha, sigma = state.rates()
    if not hasattr(state, "prediction_type"):
        plain = state.replace(clip_denoised=False) if hasattr(state, "clip_denoised") else state
        out = lambda f: plain.predict(f, x).x0  # noqa: E731
        zero, one = out(jnp.zeros_like(x)), out(jnp.ones_like(x))
        return (x0 - zero) / (one - zero)
    eps, size = (x - alpha * x0) / sigma, jnp.hypot(alpha, sigma)  # the network sees a variance-preserving sample
    alpha, sigma = alpha / size, sigma / size
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[state.prediction_type]


@each_kind
def test_7_an_oracle_is_believed(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    x0 = jnp.tanh(normal(5))
    for n in (1, 2, 4, 8):
        state = sampler.init(sampler.Config(**config), num_steps=n, **options)
        x = cmjax.add_noise(state, x0, normal(6))
        for k in range(state.num_steps):
            out = oracle(state, x, x0)
            np.testing.assert_allclose(state.predict(out, x).x0, x0, atol=3e-5)
            state, x = cmjax.step(state, out, x, jax.random.key(k))
        assert np.abs(x - x0).max() < 0.15  # TCD ends at timestep 0, where a little noise is left


MEAN, SPREAD = 0.3, 0.4  # data ~ N(0.3, 0.4²)


def flow(alpha_t: Any, sigma_t: Any, alpha_s: Any, sigma_s: Any, x: Any) -> Any:
    """The probability flow of this data from (alpha_t, sigma_t) to (alpha_s, sigma_s): it keeps the quantile of x."""
    shrink = np.sqrt(((alpha_s * SPREAD) ** 2 + sigma_s**2) / ((alpha_t * SPREAD) ** 2 + sigma_t**2))
    return alpha_s * MEAN + shrink * (x - alpha_t * MEAN)


def gaussian_prediction(name: str, state: Any, k: int, x: Any) -> Prediction:
    """What a perfectly distilled model says at step k: the pair that leads along the flow to the landing."""
    if name == "cm":
        sigma, sigma_min = (float(s) for s in (state.sigmas[k], state.sigmas[-1]))
        x0 = flow(1.0, sigma, 1.0, sigma_min, x)
        return Prediction(x0, (x - x0) / sigma)
    alpha, sigma = (float(rate) for rate in at(state, k).rates())
    if name in ("lcm", "scm"):
        x0 = flow(alpha, sigma, 1.0, 0.0, x)
        return Prediction(x0, (x - alpha * x0) / sigma)
    if name in ("flow", "meanflow"):
        sigma_s = float((1 - state.etas[k]) * state.sigmas[k + 1])
        alpha_s = 1 - sigma_s
    elif name == "ctm":
        alpha_s, sigma_s = 1.0, float(state.landings[k])
    elif name == "tcd":
        alpha_s, sigma_s = float(state.landing_alphas[k]), float(state.landing_sigmas[k])
    else:
        alpha_s = float(state.alphas[k + 1]) if hasattr(state, "alphas") else 1.0
        sigma_s = float(state.kept[k] if hasattr(state, "kept") else state.sigmas[k + 1])
    if (alpha, sigma) == (alpha_s, sigma_s):  # where a step of Heun's stays, any pair that explains x does
        return Prediction(np.zeros_like(x), x / sigma)
    landed = flow(
        alpha, sigma, alpha_s, sigma_s, x
    )  # solve alpha x0 + sigma eps = x, alpha_s x0 + sigma_s eps = landed
    det = alpha * sigma_s - sigma * alpha_s
    return Prediction((sigma_s * x - sigma * landed) / det, (alpha * landed - alpha_s * x) / det)


ALPHA_0 = np.sqrt(1 - 0.00085)  # TCD ends at timestep 0: beta_start of the noise is left
END = {"cm": (1.0, 0.002), "ctm": (1.0, 0.002), "tcd": (ALPHA_0, np.sqrt(0.00085))}  # others end at clean data


@each_kind
@pytest.mark.parametrize("n", [1, 2, 5])
def test_8_gaussian_data_keep_their_marginals_in_closed_form(name: str, config: Any, options: Any, n: int) -> None:
    """As x' = a x + b + c z, mean and variance follow exactly: at every level they are those of the noised data."""
    sampler = getattr(cmjax, name)
    state = sampler.init(sampler.Config(**config), num_steps=n, **options)
    probe, z = np.array([0.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
    alpha, sigma = (float(rate) for rate in state.rates())
    mean, variance, n = alpha * MEAN, (alpha * SPREAD) ** 2 + sigma**2, state.num_steps
    for k in range(n):
        pred = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), gaussian_prediction(name, state, k, probe))
        b, ab, bc = np.asarray(at(state, k).renoise(pred, z), np.float64)
        mean, variance = (ab - b) * mean + b, (ab - b) ** 2 * variance + (bc - b) ** 2
        alpha, sigma = END.get(name, (1.0, 0.0)) if k + 1 == n else (float(rate) for rate in at(state, k + 1).rates())
        assert mean == pytest.approx(alpha * MEAN, abs=2e-5)
        assert variance == pytest.approx((alpha * SPREAD) ** 2 + sigma**2, rel=2e-5)


class GaussianNet(Struct):
    """The network of a perfectly distilled model of N(0.3, 0.4²), told its noise level through t only."""

    alphas: jax.Array
    sigmas: jax.Array
    end: jax.Array
    name: str = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
        if self.name == "meanflow":  # the average velocity from t to s
            t, s = t / 1000.0, s / 1000.0
            shrink = jnp.sqrt((((1 - s) * SPREAD) ** 2 + s**2) / (((1 - t) * SPREAD) ** 2 + t**2))
            return (x - (1 - s) * MEAN - shrink * (x - (1 - t) * MEAN)) / (t - s)
        if self.name == "ctm":
            sigma, low, data = jnp.exp(t / 250.0), jnp.exp(s / 250.0), 0.5
            size = jnp.sqrt(sigma**2 + data**2)
            x = x * size
            landed = MEAN + jnp.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + sigma**2)) * (x - MEAN)
            x0 = (landed - low / sigma * x) / (1 - low / sigma)
            return (x0 - data**2 / size**2 * x) * size / (sigma * data)
        if self.name == "flow":  # the velocity eps - x0 of data that end in one step
            s = t / 1000.0
            return (x - self.clean(1.0 - s, s, x)) / s
        if self.name == "scm":
            x0 = self.clean(jnp.cos(t), 0.5 * jnp.sin(t), 0.5 * x)
            return (jnp.cos(t) * 0.5 * x - x0) / (0.5 * jnp.sin(t))
        if self.name == "cm":
            sigma, sigma_min, data = jnp.exp(t / 250.0), 0.002, 0.5
            x = x * jnp.sqrt(sigma**2 + data**2)
            x0 = MEAN + jnp.sqrt((SPREAD**2 + sigma_min**2) / (SPREAD**2 + sigma**2)) * (x - MEAN)
            c_skip = data**2 / ((sigma - sigma_min) ** 2 + data**2)
            return (x0 - c_skip * x) * jnp.sqrt(sigma**2 + data**2) / ((sigma - sigma_min) * data)
        alpha, sigma, (alpha_s, sigma_s) = self.alphas[t], self.sigmas[t], self.end
        shrink = jnp.sqrt(((alpha_s * SPREAD) ** 2 + sigma_s**2) / ((alpha * SPREAD) ** 2 + sigma**2))
        landed = alpha_s * MEAN + shrink * (x - alpha * MEAN)
        return (alpha * landed - alpha_s * x) / (alpha * sigma_s - sigma * alpha_s)  # eps

    def clean(self, alpha: jax.Array, sigma: jax.Array, x: jax.Array) -> jax.Array:
        return MEAN + SPREAD / jnp.sqrt((alpha * SPREAD) ** 2 + sigma**2) * (x - alpha * MEAN)


@pytest.mark.parametrize("sampler", DISTILLED, ids=lambda m: m.__name__.split(".")[-1])
@pytest.mark.parametrize("per_image", [False, True])
def test_8_samples_of_gaussian_data_have_its_mean_and_variance(sampler: ModuleType, per_image: bool) -> None:
    """40,000 draws through the whole loop: were noise used twice, the variance would show it."""
    is_cm = sampler is cmjax.cm
    config = cmjax.cm.CMConfig(clip_denoised=False) if is_cm else sampler.Config()
    etas = {cmjax.tcd: 1.0, cmjax.flow: 1.0, cmjax.ctm: 0.5, cmjax.meanflow: 0.5}
    state = sampler.init(config, num_steps=4, **({"eta": etas[sampler]} if sampler in etas else {}))
    alphas, sigmas = cmjax.schedules.rates(cmjax.schedules.alphas_cumprod())
    end = np.array([alphas[0], sigmas[0]] if sampler is cmjax.tcd else [1.0, 0.0])
    net = GaussianNet(
        *(jnp.asarray(table, jnp.float32) for table in (alphas, sigmas, end)), sampler.__name__.split(".")[-1]
    )
    keys = jax.random.split(KEY, 40) if per_image else KEY
    x = np.asarray(generate(net, state, keys, (40, 1000)))
    variance = (end[0] * SPREAD) ** 2 + end[1] ** 2
    assert x.mean() == pytest.approx(end[0] * MEAN, abs=4 * np.sqrt(variance / x.size) + 2e-3)
    assert x.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / x.size))
    assert len(np.unique(x)) > 0.99 * x.size


# ---- 9 and 10: edits and gradients -----------------------------------------------------------------------------------


class Pin(Struct):
    """An edit that knows the answer."""

    answer: jax.Array

    def __call__(self, x0: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.answer, x0.shape)


@each_sampler
def test_9_an_edit_to_itself_changes_nothing_and_a_constant_pins(sampler: ModuleType) -> None:
    state = fresh(sampler)
    x = start(state)
    walk = jax.jit(cmjax.trajectory)
    plain = walk(NET, state, x, KEY)
    same = walk(NET, state, x, KEY, edit=jax.tree_util.Partial(lambda x0: x0))
    for k in range(state.num_steps):  # where x0 = 14 x - …, rounding is larger in x0 than in x
        close(same.x[k], plain.x[k], 1e-5)
    close(same.x[-1], plain.x0[-1] if sampler in (cmjax.tcd, cmjax.ctm) else plain.x[-1], 1e-5)
    answer = jnp.tanh(normal(7))
    pinned = walk(NET, state, x, KEY, edit=Pin(answer))
    np.testing.assert_array_equal(pinned.x[-1], answer)
    np.testing.assert_array_equal(pinned.x0[-1], answer)
    k = state.num_steps - 1
    alpha, sigma = at(state, k).rates()
    assert np.std(pinned.x[k] - alpha * answer) == pytest.approx(float(sigma), rel=0.5)  # the path is the answer's


@each_kind
def test_10_gradients_are_finite(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    state = sampler.init(sampler.Config(**config), num_steps=3, **options)
    leaves, tree = jax.tree.flatten(state)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def loss(x: jax.Array, floats: list[jax.Array]) -> jax.Array:
        given = iter(floats)
        rebuilt = tree.unflatten([next(given) if f else leaf for f, leaf in zip(is_float, leaves, strict=True)])
        return jnp.mean(cmjax.sample(NET, rebuilt, x, KEY) ** 2)

    floats = [leaf for f, leaf in zip(is_float, leaves, strict=True) if f]
    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(start(state), floats)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    assert np.abs(grads[0]).max() > 0


# ---- 11: images do not know of each other ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FIRST_FEW)
def on_one_device(request: pytest.FixtureRequest) -> tuple[Any, jax.Array, jax.Array, np.ndarray[Any, Any]]:
    state = fresh(request.param, 3)
    keys, cond = jax.random.split(KEY, 64), jnp.linspace(-1.0, 1.0, 64)
    return state, keys, cond, np.asarray(generate(NET, state, keys, (64, 3, 2), cond))


def test_11_a_batch_of_5_is_the_first_5_of_64(on_one_device: Any) -> None:
    state, keys, cond, images = on_one_device
    np.testing.assert_array_equal(generate(NET, state, keys[:5], (5, 3, 2), cond[:5]), images[:5])
    turned = generate(NET, state, keys[::-1], (64, 3, 2), cond[::-1])
    np.testing.assert_array_equal(turned, images[::-1])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_11_eight_devices_draw_what_one_does(on_one_device: Any, axis_type: AxisType) -> None:
    state, keys, cond, images = on_one_device
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    keys, cond = jax.device_put((keys, cond), NamedSharding(mesh, PartitionSpec("batch")))
    drawn = generate(NET, state, keys, (64, 3, 2), cond)
    assert len(drawn.sharding.device_set) == 8
    assert drawn.sharding.spec[0] == "batch"
    np.testing.assert_array_equal(drawn, images)


def test_11_one_key_and_a_sharded_batch(on_one_device: Any) -> None:
    """Noise from one key is not sharded; x is. On both axis types they meet."""
    state, _, cond, _ = on_one_device
    x = start(state)[:1, :1].repeat(64, axis=0)
    alone = sample(NET, state, x, KEY, cond)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
        sharded = jax.device_put((x, cond), NamedSharding(mesh, PartitionSpec("batch")))
        drawn = sample(NET, state, sharded[0], KEY, sharded[1])
        assert drawn.sharding.spec[0] == "batch"
        np.testing.assert_allclose(drawn, alone, rtol=1e-6, atol=1e-6)


# ---- 12 and 13: the loop, the files ----------------------------------------------------------------------------------


@each_sampler
@pytest.mark.parametrize("per_image", [pytest.param(False, marks=LATER), True])
def test_12_generate_is_the_loop_by_hand(sampler: ModuleType, per_image: bool) -> None:
    state = first = fresh(sampler)
    split = jax.vmap(lambda key, n: jax.random.split(key, n), (0, None), 1) if per_image else jax.random.split
    key = jax.random.split(KEY, SHAPE[0]) if per_image else KEY
    k_x, k_z = split(key, 2) if not per_image else jax.vmap(jax.random.split, out_axes=1)(key)
    n = state.num_steps
    steps = jax.random.split(k_z, n) if not per_image else jax.vmap(lambda k: jax.random.split(k, n), out_axes=1)(k_z)
    x = cmjax.prior(state, k_x, SHAPE)
    for k in steps:
        x_in, t = cmjax.model_input(state, x)
        state, x = cmjax.step(state, NET(x_in, t, None, **state.model_options()), x, k)
    close(generate(NET, first, key, SHAPE), x)


@each_kind
def test_12_skip_is_the_tail_of_the_path(name: str, config: Any, options: Any) -> None:
    sampler = getattr(cmjax, name)
    state = sampler.init(sampler.Config(**config), num_steps=4, **options)
    n = state.num_steps
    for k in range(n):
        tail = cmjax.skip(state, k)
        assert tail.num_steps == n - k
        assert tail.index == 0
        for j in range(n - k):
            given = normal(1), normal(2), normal(3)
            chex.assert_trees_all_equal(taken(at(tail, j), *given), taken(at(state, k + j), *given))
        noised = cmjax.add_noise(tail, normal(1), normal(2))
        np.testing.assert_array_equal(noised, cmjax.add_noise(at(state, k), normal(1), normal(2)))


TABLE = "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type rescale_betas_zero_snr"
ORDINARY_KEYS = f"{TABLE} timestep_spacing steps_offset"
BOUNDS = "thresholding dynamic_thresholding_ratio sample_max_value"
RESPACED = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas"
PUBLISHED = {
    "ddim": f"{ORDINARY_KEYS} {BOUNDS} clip_sample clip_sample_range set_alpha_to_one",
    "euler": f"{ORDINARY_KEYS} {RESPACED} interpolation_type sigma_min sigma_max timestep_type final_sigmas_type",
    "euler_ancestral": ORDINARY_KEYS,
    "dpmpp": f"""{ORDINARY_KEYS} {BOUNDS} {RESPACED} algorithm_type solver_order solver_type lower_order_final
        euler_at_final use_lu_lambdas use_flow_sigmas final_sigmas_type""",
    "heun": f"{ORDINARY_KEYS} {RESPACED} clip_sample clip_sample_range",
    "flow": """num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len
        invert_sigmas shift_terminal use_karras_sigmas use_exponential_sigmas use_beta_sigmas time_shift_type
        stochastic_sampling""",
    "scm": "num_train_timesteps prediction_type sigma_data",
    "ctm": "sigma_min sigma_max sigma_data rho",
    "meanflow": "num_train_timesteps",
    "cm": "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised",
    "vp": """num_train_timesteps beta_start beta_end beta_schedule trained_betas original_inference_steps clip_sample
        clip_sample_range set_alpha_to_one steps_offset prediction_type thresholding dynamic_thresholding_ratio
        sample_max_value timestep_spacing timestep_scaling rescale_betas_zero_snr""",
}


@each_sampler
def test_13_config_to_json_to_config(sampler: ModuleType, tmp_path: Any) -> None:
    name = sampler.__name__.split(".")[-1]
    keys = {field.name for field in dataclasses.fields(sampler.Config)} - {"extra"}
    assert keys == set(PUBLISHED.get(name, PUBLISHED["vp"]).split())
    changes = {"sigma_min": 0.003} if name == "ctm" else {"num_train_timesteps": 3}
    if name not in ("cm", "ctm", "flow", "meanflow", "scm"):
        changes |= {"trained_betas": [0.1, 0.2, 0.3]}  # pyright: ignore
    if name in ("tcd", "lcm"):
        changes |= {"original_inference_steps": 2}
    config = sampler.Config(**changes)
    hash(config)
    cmjax.io.write_config(config, tmp_path / "scheduler_config.json")
    assert cmjax.io.read_config(tmp_path / "scheduler_config.json") == config
    foreign = {"_class_name": sampler.Config.scheduler, "someone_elses_key": [1, {"a": None}], **changes}
    config = cmjax.io.read_config(foreign)
    hash(config)
    cmjax.io.write_config(config, tmp_path / "scheduler_config.json")
    assert cmjax.io.read_config(tmp_path / "scheduler_config.json") == config
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert {name: written[name] for name in foreign} == foreign
