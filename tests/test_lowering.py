"""Accelerators that are not here: this room lowers every program for TPU and CUDA, and reads what comes out.

A program that lowers may still be wrong or slow there; but one that does not lower, calls back to the host, holds
float64, loops twice or draws its noise in two places is known to be, without the hardware.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import unets
from each_sampler import each_sampler, first_samplers
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import cmjax
from cmjax import training

KEY = jax.random.key(0)
SHAPE = (8, 4, 4, 3)
PLATFORMS = ("tpu", "cuda")

NOISELESS = (cmjax.euler, cmjax.heun)  # what is not used is not drawn


def net(x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
    return (0.3 * x.astype(jnp.float32) + t.astype(jnp.float32) / 1000.0).astype(x.dtype)


NET = jax.tree_util.Partial(net)


def lowered(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    """One program for both platforms, as StableHLO: what differs between them stands in it twice."""
    compiled = function if hasattr(function, "lower") else jax.jit(function)
    return jax.export.export(compiled, platforms=PLATFORMS)(*args, **options).mlir_module()


def holds(text: str, *, loops: int, draws: int) -> None:
    """So many loops, at most so many places where noise is drawn, nothing of the host, no double precision."""
    found = {word: len(re.findall(rf"= stablehlo\.{word}\b", text)) for word in ("while", "log_plus_one")}
    assert found["while"] == loops
    assert min(1, draws) <= found["log_plus_one"] <= draws  # it is once in each inverse error function
    for word in ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "annotate_device_placement"):
        assert word not in text
    assert not re.search(r"\bf64\b|xf64>|complex<", text)


# ---- samplers --------------------------------------------------------------------------------------------------------


@first_samplers
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_the_loop_is_one_loop(sampler: Any, dtype: Any, padded: bool) -> None:
    state = sampler.init(sampler.Config(), num_steps=4)
    state = cmjax.pad(state, 8) if padded else state
    for key in (KEY, jax.random.split(KEY, SHAPE[0])):
        text = lowered(cmjax.sample, NET, state, jnp.zeros(SHAPE, dtype), key)
        holds(text, loops=1, draws=1 if padded or sampler not in NOISELESS else 0)
        generated = lowered(partial(cmjax.generate, shape=SHAPE), NET, state, key)
        holds(generated, loops=1, draws=2)  # the prior's, and the loop's (or one function called from both)


@each_sampler
def test_sweeps_are_one_loop(sampler: Any) -> None:
    def render(knob: jax.Array, key: jax.Array) -> jax.Array:
        option = {"tcd": {"eta": knob}, "cm": {"s_noise": knob}}.get(sampler.__name__.split(".")[-1], {})
        state = sampler.init(sampler.Config(), num_steps=4, **option)
        return cmjax.sample(NET, state, jnp.ones(SHAPE) * knob, key)

    text = lowered(jax.vmap(render, in_axes=(0, None)), jnp.linspace(0.0, 1.0, 11), KEY)
    holds(text, loops=1, draws=0 if sampler in NOISELESS else 1)


@pytest.mark.slow
@first_samplers
@pytest.mark.parametrize("padded", [False, True])
def test_in_shard_map_each_device_has_the_same_loop(sampler: Any, padded: bool) -> None:
    state = sampler.init(sampler.Config(), num_steps=4)
    state = cmjax.pad(state, 8) if padded else state
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def draw(state: Any, keys: jax.Array) -> jax.Array:
        return cmjax.generate(NET, state, keys, (2, *SHAPE[1:]))

    keys = jax.random.split(KEY, 16)
    spread = jax.shard_map(draw, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch"))
    holds(lowered(spread, state, keys), loops=1, draws=2)
    alone = jax.jit(partial(cmjax.generate, shape=(16, *SHAPE[1:])))(NET, state, keys)
    np.testing.assert_allclose(jax.jit(spread)(state, keys), alone, rtol=0, atol=1e-5)


def test_the_gradient_of_the_loop_is_two_loops() -> None:
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=4)

    def reward(x: jax.Array, remat: bool) -> jax.Array:
        return cmjax.sample(NET, state, x, KEY, remat=remat).sum()

    for remat in (False, True):
        text = lowered(jax.grad(partial(reward, remat=remat)), jnp.ones(SHAPE))
        assert len(re.findall(r"= stablehlo\.while\b", text)) == 2


@each_sampler
def test_a_step_is_few_kernels(sampler: Any) -> None:
    """On this machine's compiler: what is elementwise is fused, so a step reads and writes its arrays once."""
    state = sampler.init(sampler.Config(), num_steps=4)
    x = jnp.zeros((64, 64, 64, 4))
    text = jax.jit(cmjax.sample).lower(NET, state, x, KEY).compile().as_text()
    assert len(re.findall(r"= .* while\(", text)) == 1
    (name,) = re.findall(r"while\(.*body=%?([\w.\-]+)", text)
    body = text[re.search(rf"^%?{re.escape(name)} ", text, re.MULTILINE).start() :].split("\n}")[0]
    size = str(x.size)
    large = [
        line
        for line in body.splitlines()
        if re.search(r"= f32\[(64,64,64,4|" + size + r")\]\S* (fusion|add|multiply|subtract|select|call)\(", line)
    ]
    assert 1 <= len(large) <= 2, "\n".join(large)


# ---- networks --------------------------------------------------------------------------------------------------------


@cache
def abstract(name: str, dtype: str) -> Any:
    return cmjax.load(name, dtype=dtype, abstract=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "under", ["jit", *(pytest.param(one, marks=pytest.mark.slow) for one in ("vmap", "shard_map"))]
)
@pytest.mark.parametrize("name", ["fashion-mnist-cm", "fashion-mnist-tcd"])
def test_whole_networks_lower(dtype: str, under: str, name: str) -> None:
    model, config = abstract(name, dtype)
    state = cmjax.samplers.sampler_of(config).init(config, 4)
    keys, labels = jax.random.split(KEY, 8), jnp.zeros(8, jnp.int32)

    def draw(model: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        return cmjax.generate(model, state, keys, (len(keys), 28, 28, 1), labels)

    if under == "vmap":  # of single images
        draw = jax.vmap(lambda *given, draw=draw: draw(given[0], given[1][None], given[2][None]), in_axes=(None, 0, 0))
    if under == "shard_map":
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        draw = jax.shard_map(draw, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P("batch"))
    text = lowered(draw, model, keys, labels)
    holds(text, loops=1, draws=2)
    kinds = set(re.findall(r"stablehlo\.convolution\(.*-> tensor<[\dx]*x(\w+)>", text))
    assert kinds == {"f32" if dtype == "float32" else "bf16"}


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", toy.SAMPLED)
def test_training_steps_lower(name: str) -> None:
    method = training.METHODS[name]()
    recipe = training.Recipe(method=method, steps=64, batch_size=8)
    config, model = method.config_type(), toy.model()
    taught = {"teacher": model} if method.needs_teacher else {}
    config_of_teacher = method.teacher_type() if method.needs_teacher else None
    text = lowered(
        training.train_step,
        training.init(model, recipe),
        jnp.zeros((8, 4, 4, 1), jnp.uint8),
        jnp.zeros(8, jnp.int32),
        KEY,
        **taught,
        recipe=recipe,
        config=config,
        teacher_config=config_of_teacher,
    )
    for word in ("callback", "infeed", "outfeed", "stablehlo.send"):
        assert word not in text
    assert not re.search(r"\bf64\b|xf64>", text)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "under", ["jit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vmap", "shard_map"))]
)
@pytest.mark.parametrize("name", toy.SAMPLED)
def test_losses_lower(dtype: Any, under: str, name: str) -> None:
    method = training.METHODS[name]()
    config, teacher_config = method.config_type(), method.teacher_type() if method.needs_teacher else None

    def half(params: Any, x: jax.Array, t: jax.Array, cond: Any, key: Any = None, s: Any = None) -> jax.Array:
        return (params.astype(x.dtype) * x).astype(x.dtype)

    def loss(params: jax.Array, x0: jax.Array, key: jax.Array) -> jax.Array:
        model = jax.tree_util.Partial(half, params)
        teacher = None if teacher_config is None else (model, teacher_config)
        begun = method.begin(model)
        learner = training.Learner(begun, begun, config, teacher)
        return method.loss(learner, x0, None, key, jnp.int32(3), 64)

    x0, params = jnp.zeros((16, 4, 4, 1), dtype), jnp.float32(0.1)  # two for each device
    if under == "vmap":  # over several runs
        text = lowered(jax.vmap(loss, in_axes=(0, None, 0)), params[None], x0, KEY[None])
    elif under == "shard_map":
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        spread = jax.shard_map(
            lambda params, x0, keys: loss(params, x0, keys[0]),
            mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P("batch"),
        )  # fmt: skip
        text = lowered(spread, params, x0, jax.random.split(KEY, 8))
    else:
        text = lowered(jax.grad(lambda *given: loss(*given).mean()), params, x0, KEY)
    for word in ("callback", "infeed", "outfeed", "stablehlo.send"):
        assert word not in text
    assert not re.search(r"\bf64\b|xf64>", text)


# ---- memory ----------------------------------------------------------------------------------------------------------


SMALL = jax.eval_shape(partial(unets.network, in_channels=1, out_channels=1, **unets.SMALLEST))


@pytest.mark.slow
def test_a_long_loop_takes_the_memory_of_one_step() -> None:
    model, config = SMALL, cmjax.cm.CMConfig()
    x, key = jax.ShapeDtypeStruct((16, 28, 28, 1), jnp.float32), KEY
    labels = jax.ShapeDtypeStruct((16,), jnp.int32)

    def temporary(num_steps: int) -> int:
        state = cmjax.cm.init(config, num_steps)
        memory = jax.jit(cmjax.sample).lower(model, state, x, key, labels).compile().memory_analysis()
        return memory.temp_size_in_bytes

    carry = x.size * 4
    two, eight = temporary(2), temporary(8)
    assert eight <= two + carry / 8  # longer tables and keys alone
    assert two <= 1.1 * temporary(1) + 4 * carry  # the carry, the noise between steps, a layout kept for all of them


def test_starting_noise_can_be_given_away() -> None:
    """Donated, its buffer becomes the result's: one array less."""
    state, x = cmjax.cm.init(cmjax.cm.CMConfig(), 4), jnp.ones((16, 64, 64, 4))
    plain = jax.jit(cmjax.sample).lower(NET, state, x, KEY).compile().memory_analysis()
    donated = jax.jit(cmjax.sample, donate_argnames="x").lower(NET, state, x, KEY).compile().memory_analysis()
    assert plain.alias_size_in_bytes == 0
    assert donated.alias_size_in_bytes == x.nbytes


def test_chunks_take_the_memory_of_a_chunk() -> None:
    model, config = SMALL, cmjax.cm.CMConfig()
    state, keys = cmjax.cm.init(config, 2), jax.ShapeDtypeStruct((64,), KEY.dtype)
    labels = jax.ShapeDtypeStruct((64,), jnp.int32)

    def at_once(model: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        return cmjax.generate(model, state, keys, (len(keys), 28, 28, 1), labels)

    def in_chunks(model: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        def one(row: Any) -> jax.Array:
            return cmjax.generate(model, state, row[0], (1, 28, 28, 1), row[1][None])[0]

        return jax.lax.map(one, (keys, labels), batch_size=8)

    whole, chunked = (
        jax.jit(draw).lower(model, keys, labels).compile().memory_analysis().temp_size_in_bytes
        for draw in (at_once, in_chunks)
    )
    assert chunked < whole / 3
