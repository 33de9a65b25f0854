"""The loop: this room checks the verbs around the samplers, on one of them where they are the same for all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax

KEY = jax.random.key(0)
STATE = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=3)
SHAPE = (2, 4, 3)


def net(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return 0.5 * x


NET = jax.tree_util.Partial(net)


def test_prior_has_the_first_noise_level() -> None:
    keys = jax.random.split(KEY, 50)
    assert cmjax.prior(STATE, KEY, (50, 400)).std() == pytest.approx(80.0, rel=0.02)
    assert cmjax.prior(cmjax.cm.init(cmjax.cm.CMConfig(), timesteps=[22]), keys, (50, 400)).std() == pytest.approx(
        1.382368, rel=0.02
    )  # not sigma_max: a path that starts lower, starts lower
    for sampler in (cmjax.tcd, cmjax.lcm):
        state = sampler.init(sampler.Config(), num_steps=2, strength=0.5)
        assert state.init_noise_sigma == 1.0
    assert cmjax.prior(cmjax.skip(STATE, 1), KEY, (50, 400)).std() == pytest.approx(float(STATE.sigmas[1]), rel=0.02)


def test_add_noise_takes_a_key_or_keys_or_the_noise() -> None:
    x0, z = jnp.full(SHAPE, 0.5), cmjax.prior(cmjax.lcm.init(cmjax.lcm.LCMConfig(), 1), KEY, SHAPE)
    np.testing.assert_allclose(cmjax.add_noise(STATE, x0, z), 0.5 + 80.0 * z, rtol=1e-6)
    np.testing.assert_array_equal(cmjax.add_noise(STATE, x0, KEY), cmjax.add_noise(STATE, x0, z))
    keys = jax.random.split(KEY, 2)
    np.testing.assert_array_equal(cmjax.add_noise(STATE, x0, keys)[1:], cmjax.add_noise(STATE, x0[1:], keys[1:]))
    stepped = STATE.replace(index=STATE.index + 2)
    np.testing.assert_allclose(cmjax.add_noise(stepped, x0, z), 0.5 + STATE.sigmas[2] * z, rtol=1e-6)
    vp = cmjax.tcd.init(cmjax.tcd.TCDConfig(), timesteps=[499])
    np.testing.assert_allclose(
        cmjax.add_noise(vp, x0, z), np.sqrt(0.27766943) * x0 + np.sqrt(1 - 0.27766943) * z, rtol=1e-5, atol=1e-6
    )


def test_trajectory_keeps_every_step() -> None:
    x = cmjax.prior(STATE, KEY, SHAPE)
    path = jax.jit(cmjax.trajectory)(NET, STATE, x, KEY)
    assert path.x.shape == (4, *SHAPE)
    assert path.x0.shape == (3, *SHAPE)
    np.testing.assert_array_equal(path.x[0], x)
    np.testing.assert_array_equal(path.x[-1], jax.jit(cmjax.sample)(NET, STATE, x, KEY))
    np.testing.assert_array_equal(path.x[-1], path.x0[-1])
    half = jax.jit(cmjax.trajectory)(NET, STATE, x.astype(jnp.bfloat16), KEY)
    assert (half.x.dtype, half.x0.dtype) == (jnp.bfloat16, jnp.float32)


def test_cond_is_any_pytree() -> None:
    def seen(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return x * cond["scale"] + sum(cond["shifts"])

    cond = {"scale": jnp.float32(0.5), "shifts": (jnp.float32(1.0), jnp.float32(-1.0)), "nothing": None}
    x = cmjax.prior(STATE, KEY, SHAPE)
    with_cond = jax.jit(cmjax.sample)(jax.tree_util.Partial(seen), STATE, x, KEY, cond)
    np.testing.assert_allclose(with_cond, jax.jit(cmjax.sample)(NET, STATE, x, KEY), rtol=1e-5, atol=1e-6)


def test_the_model_is_called_once_for_each_step_and_traced_once() -> None:
    traced, called = [], []

    def counting(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        traced.append(t)
        jax.debug.callback(lambda t: called.append(float(t)), t)
        return 0.5 * x

    cmjax.sample(counting, STATE, cmjax.prior(STATE, KEY, SHAPE), KEY).block_until_ready()
    jax.effects_barrier()
    assert len(traced) == 1
    np.testing.assert_array_equal(called, STATE.timesteps)


@pytest.mark.parametrize("sampler", cmjax.samplers.ALL, ids=lambda m: m.__name__.split(".")[-1])
def test_noise_is_drawn_at_one_place_and_not_for_the_last_step(sampler: Any) -> None:
    state = sampler.init(sampler.Config(), num_steps=4)
    keys = jax.random.split(KEY, 2)
    for key, batch in ((KEY, lambda f: f), (keys, lambda f: f), (jax.random.split(KEY, 5), jax.vmap)):
        walk = batch(lambda key: cmjax.sample(NET, state, jnp.zeros(SHAPE), key))
        jaxpr = str(jax.make_jaxpr(walk)(key))
        assert jaxpr.count("erf_inv") == 1  # one call site: compiling it is what takes time
        assert jaxpr.count(" cond[") == 1  # and vmap over keys leaves it a branch, not a select


def test_one_key_per_image_and_one_key_draw_other_noise() -> None:
    x = cmjax.prior(STATE, KEY, SHAPE)
    assert not np.array_equal(x, cmjax.prior(STATE, jax.random.split(KEY, 2), SHAPE))
    state, once = cmjax.step(STATE, net(x, x, None), x, KEY)
    _, again = cmjax.step(state, net(x, x, None), x, jax.random.key(1))
    assert not np.array_equal(once, again)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cmjax.step(STATE, jnp.zeros((4, 8, 8, 6)), jnp.zeros((4, 8, 8, 3)), KEY),
            "model_out has shape (4, 8, 8, 6) for x of shape (4, 8, 8, 3); a network with a learned variance",
        ),
        (
            lambda: cmjax.step(STATE, jnp.zeros((4, 3, 8, 8)), jnp.zeros((4, 8, 8, 3)), KEY),
            "model_out has shape (4, 3, 8, 8) for x of shape (4, 8, 8, 3); the network must return the shape",
        ),
        (
            lambda: cmjax.sample(net, STATE, jnp.zeros((64, 2)), jax.random.split(KEY, 5)),
            "5 keys for a batch of 64: give one key, or one for each image.",
        ),
        (
            lambda: cmjax.generate(net, STATE, jax.random.split(KEY, 5), (64, 2)),
            "5 keys for a batch of 64: give one key, or one for each image.",
        ),
        (lambda: cmjax.skip(STATE, 3), "k must be between 0 and num_steps - 1 = 2, got 3."),
        (lambda: cmjax.skip(STATE, -1), "k must be between 0 and num_steps - 1 = 2, got -1."),
        (
            lambda: cmjax.sample(net, STATE.replace(index=jnp.int32(1)), jnp.zeros(SHAPE), KEY),
            "sample starts at the first step, but this state is at index 1 of 3: call init again,",
        ),
        (
            lambda: cmjax.skip(STATE.replace(index=jnp.int32(1)), 1),
            "skip starts at the first step, but this state is at index 1 of 3",
        ),
        (
            lambda: cmjax.add_noise(STATE, jnp.zeros((2, 3)), jnp.zeros((2, 4))),
            "The noise has shape (2, 4) for x0 of shape (2, 3); they must be equal.",
        ),
    ],
)
def test_wrong_shapes_and_positions(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(message)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"k must be a Python int, since it changes shapes, got float\."):
        cmjax.skip(STATE, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x0 must be a float array \(images in \[-1, 1\]\), got uint8\."):
        cmjax.add_noise(STATE, jnp.zeros((2, 3), jnp.uint8), KEY)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        cmjax.prior(STATE, 0, SHAPE)  # type: ignore[arg-type]


def test_skip_of_stacked_paths_is_a_stack_of_skipped_paths() -> None:
    config = cmjax.cm.CMConfig()
    ladders = jnp.array([[80.0, 5.0, 1.0], [50.0, 3.0, 0.5]])
    stacked = cmjax.skip(jax.vmap(lambda sigmas: cmjax.cm.init(config, sigmas=sigmas))(ladders), 1)
    assert stacked.num_steps == 2
    np.testing.assert_array_equal(stacked.init_noise_sigma, [5.0, 3.0])
    for i, ladder in enumerate(ladders):
        one = cmjax.skip(cmjax.cm.init(config, sigmas=ladder), 1)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), stacked, one)


def test_grey_levels_are_no_samples() -> None:
    grey = jnp.zeros(SHAPE, jnp.int32)
    for call in (
        lambda: cmjax.sample(lambda x, t, cond: x, STATE, grey, KEY),
        lambda: cmjax.step(STATE, jnp.zeros(SHAPE), grey, KEY),
        lambda: cmjax.step(STATE, grey, jnp.zeros(SHAPE), KEY),
        lambda: cmjax.add_noise(STATE, grey, KEY),
        lambda: cmjax.editing.inpaint(grey, jnp.zeros(SHAPE, bool)),
        lambda: cmjax.consistency_fn(lambda x, t, cond: x, cmjax.cm.CMConfig())(grey, 1.0),
    ):
        with pytest.raises(TypeError, match=r"must be a float array \(images in \[-1, 1\]\), got int32"):
            call()
    with pytest.raises(TypeError, match="dtype must be a float dtype, got int32"):
        cmjax.prior(STATE, KEY, SHAPE, jnp.int32)


def test_slips_of_newcomers_are_named() -> None:
    with pytest.raises(
        TypeError, match=r'shape must be static under jit: jax.jit\(generate, static_argnames="shape"\)'
    ):
        jax.jit(lambda shape: cmjax.prior(STATE, KEY, shape))((2, 3))
    with pytest.raises(TypeError, match="model_out must be an array, got a tuple: a model returns its output alone"):
        cmjax.sample(lambda x, t, cond: (x,), STATE, jnp.zeros(SHAPE), KEY)
    with pytest.raises(TypeError, match="state must be a path, as init"):
        cmjax.generate(lambda x, t, cond: x, cmjax.cm.CMConfig(), KEY, SHAPE)
    f = cmjax.consistency_fn(lambda x, t, cond: x[..., :1], cmjax.cm.CMConfig())
    with pytest.raises(ValueError, match="it must keep the shape"):
        f(jnp.zeros((2, 3)), 1.0)
    assert cmjax.skip(STATE, np.int64(1)).num_steps == STATE.num_steps - 1


def test_add_noise_says_that_a_seed_is_no_key() -> None:
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
    with pytest.raises(TypeError, match=r"or the noise itself, got 7: a seed makes one, jax\.random\.key\(7\)\."):
        cmjax.add_noise(state, jnp.ones((1, 2)), 7)  # pyright: ignore[reportArgumentType]
