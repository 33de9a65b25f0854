"""Padded paths: this room lets the number of steps be a value, and holds that nothing else changes."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from each_sampler import first_samplers
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cmjax
from cmjax._struct import Struct

KEY = jax.random.key(0)
SHAPE = (3, 4, 2)
MOST = 6


class Net(Struct):
    """An elementwise network that looks at what it is told."""

    gain: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
        return (0.3 * x.astype(jnp.float32) + self.gain * t.astype(jnp.float32) / 1000.0).astype(x.dtype)


def room(sampler: Any) -> int:
    """The model calls of MOST steps."""
    return sampler.init(sampler.Config(), MOST).num_steps


NET = Net(jnp.float32(0.25))
generate = jax.jit(cmjax.generate, static_argnames="shape")


@jax.jit
def with_one_key_and_with_three(state: Any) -> list[jax.Array]:
    return [cmjax.generate(NET, state, key, SHAPE) for key in (KEY, jax.random.split(KEY, 3))]


@first_samplers
@pytest.mark.parametrize("num_steps", [1, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, MOST))])
def test_the_pictures_are_those_of_the_path(sampler: Any, num_steps: int) -> None:
    state = sampler.init(sampler.Config(), num_steps)
    padded = cmjax.pad(state, room(sampler))
    assert padded.num_steps == room(sampler)
    assert padded.index == padded.num_steps - state.num_steps
    assert padded.init_noise_sigma == state.init_noise_sigma
    for a, b in zip(*map(with_one_key_and_with_three, (state, padded)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * float(jnp.abs(a).max() + 1.0))


def test_a_padded_path_by_hand_is_the_path_by_hand() -> None:
    state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3, eta=0.5)
    padded, x, y = cmjax.pad(state, 5), jnp.ones(SHAPE), jnp.ones(SHAPE)
    for key in jax.random.split(KEY, 3):
        state, x = cmjax.step(state, 0.5 * x, x, key)
        padded, y = cmjax.step(padded, 0.5 * y, y, key)
        np.testing.assert_array_equal(x, y)
    assert padded.index == 5
    assert np.isnan(cmjax.step(padded, y, y, KEY)[1]).all()  # past the end, as on any path


@first_samplers
def test_one_compilation_serves_every_number_of_steps_and_every_knob(sampler: Any) -> None:
    chex.clear_trace_counter()  # it counts by name

    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(state: Any, key: Any, scale: Any) -> Any:
        model = cmjax.guidance.classifier_free(NET, scale, jnp.zeros(3))
        return cmjax.generate(model, state, key, SHAPE, jnp.ones(3))

    config = sampler.Config()
    for num_steps in range(1, MOST + 1):
        etas = (0.0, 0.3, 1.0) if sampler is cmjax.tcd else (None,)
        for eta in etas:
            options = {} if eta is None else {"eta": eta}
            state = cmjax.pad(sampler.init(config, num_steps, **options), room(sampler))
            assert np.isfinite(draw(state, KEY, 1.0 + num_steps)).all()


@first_samplers
def test_under_vmap_each_image_has_its_own_number_of_steps(sampler: Any) -> None:
    states = [cmjax.pad(sampler.init(sampler.Config(), n), room(sampler)) for n in (1, 4, 2, 6)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    keys = jax.random.split(KEY, 4)
    together = jax.jit(jax.vmap(lambda state, key: cmjax.generate(NET, state, key, (1, 4, 2))))(stacked, keys)
    for i, state in enumerate(states):
        alone = generate(NET, state, keys[i], (1, 4, 2))
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=2e-6 * float(jnp.abs(alone).max() + 1.0))


def test_the_network_is_called_once_for_each_step_taken() -> None:
    called = []

    def counting(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        jax.debug.callback(lambda t: called.append(float(t)), t)
        return 0.5 * x

    state = cmjax.lcm.init(cmjax.lcm.LCMConfig(), 3)
    generate(jax.tree_util.Partial(counting), cmjax.pad(state, 8), KEY, SHAPE).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_array_equal(called, state.timesteps)


def test_a_traced_path_is_padded_too() -> None:
    def render(eta: jax.Array) -> Any:
        return cmjax.generate(NET, cmjax.pad(cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3, eta=eta), MOST), KEY, SHAPE)

    etas = jnp.array([0.0, 0.5, 1.0])
    padded = jax.jit(jax.vmap(render))(etas)
    for eta, image in zip(etas, padded, strict=True):
        state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3, eta=eta)
        np.testing.assert_allclose(image, generate(NET, state, KEY, SHAPE), rtol=0, atol=1e-5)


def test_edits_and_image_to_image_work_on_padded_paths() -> None:
    photo, hole = jnp.full((1, 4, 2), 0.5), jnp.zeros((4, 2), bool).at[0].set(True)
    edit = cmjax.editing.inpaint(photo, hole)
    state = cmjax.skip(cmjax.lcm.init(cmjax.lcm.LCMConfig(), 4), 2)
    results = []
    for path in (state, cmjax.pad(state, MOST)):
        x = cmjax.add_noise(path, photo, KEY)
        results.append(jax.jit(cmjax.sample)(NET, path, x, KEY, edit=edit))
    np.testing.assert_allclose(*results, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(results[1][0, 1:], photo[0, 1:])


def test_it_says_what_it_is_and_refuses_what_makes_no_sense() -> None:
    state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), 4)
    padded = cmjax.pad(state, 8)
    used, spent = padded.replace(index=padded.index + 1), padded.replace(index=padded.index + 4)
    assert repr(padded).startswith("TCDState(index=4/8 (padded), timesteps=i32[8]")
    assert "padded" not in repr(state)
    for call, message in (
        (lambda: cmjax.pad(state, 3), "max_steps must be at least the 4 steps of the path, got 3: pad more, or plan"),
        (lambda: cmjax.pad(padded, 9), "pad takes a path before it is padded: pad comes last"),
        (lambda: cmjax.skip(padded, 1), "skip takes a path before it is padded"),
        (lambda: cmjax.pad(state.replace(index=jnp.int32(1)), 8), "pad starts at the first step, but this state"),
        (lambda: cmjax.trajectory(NET, padded, jnp.zeros(SHAPE), KEY), "trajectory needs a path of known length"),
        (lambda: cmjax.pad(state, 0), "max_steps must be at least 1, got 0"),
        (
            lambda: cmjax.generate(NET, used, KEY, SHAPE),
            "sample starts at the first step, but this state is at index 5 of 8",
        ),
        (
            lambda: cmjax.sample(NET, spent, jnp.zeros(SHAPE), KEY),
            "sample starts at the first step, but this state is at",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"max_steps must be at most 65536, got 2147483648"):
        cmjax.pad(state, 2**31)
    with pytest.raises(TypeError, match=r"state must be a path, as init.* got the TCDConfig"):
        cmjax.pad(cmjax.tcd.TCDConfig(), 4)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"max_steps must be a Python int, since it decides shapes, got 8\.5"):
        cmjax.pad(state, 8.5)  # type: ignore[arg-type]


def test_a_padded_path_works_on_both_kinds_of_axes() -> None:
    state = cmjax.pad(cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3), 5)
    keys = jax.random.split(KEY, 8)
    x = cmjax.prior(state, keys, (8, 4, 2))
    alone = jax.jit(cmjax.sample)(NET, state, x, keys)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            given = jax.device_put((x, keys), NamedSharding(mesh, PartitionSpec("batch")))
            spread = jax.jit(cmjax.sample)(NET, state, *given)
        assert len(spread.sharding.device_set) == 8
        np.testing.assert_array_equal(spread, alone)


def test_what_was_used_is_nan_where_nobody_can_look() -> None:
    padded = cmjax.pad(cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3), 5)
    assert np.isfinite(generate(NET, padded, KEY, SHAPE)).all()
    for steps in (1, 3, 4):
        assert np.isnan(generate(NET, padded.replace(index=padded.index + steps), KEY, SHAPE)).all()


def test_under_vmap_without_jit_all_leaves_are_arrays() -> None:
    def noised(eta: jax.Array) -> jax.Array:
        state = cmjax.pad(cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3, eta=eta), MOST)
        return cmjax.add_noise(state, jnp.ones(SHAPE), KEY)

    assert jax.vmap(noised)(jnp.array([0.0, 1.0])).shape == (2, *SHAPE)
