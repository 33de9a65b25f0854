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


def net(x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
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


# ---- outside of jit --------------------------------------------------------------------------------------------------


def scaled(scale: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return scale * x


def darker(amount: Any, x0: jax.Array) -> jax.Array:
    return x0 - amount


def test_calls_outside_of_jit_compile_once() -> None:
    traced = []

    def counting(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        traced.append(cond)
        return x * cond

    def draw(num_steps: int, eta: float, scale: float, amount: Any, seed: int) -> jax.Array:
        state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), num_steps, eta=eta)
        edit = jax.tree_util.Partial(darker, amount)
        return cmjax.generate(counting, state, jax.random.key(seed), SHAPE, scale, edit=edit)

    for eta, scale, amount, seed in ((0.3, 0.5, 0.0, 0), (0.5, 0.7, 0.1, 1), (0.0, 0.7, 0.2, 2)):
        draw(2, eta, scale, amount, seed)
    assert len(traced) == 1
    draw(3, 0.3, 0.5, 0.0, 0)
    assert len(traced) == 2  # another length is another program


def test_calls_outside_of_jit_draw_the_same_bytes() -> None:
    model, edit = jax.tree_util.Partial(scaled, 0.5), jax.tree_util.Partial(darker, np.float32(0.1))
    x = cmjax.prior(STATE, KEY, SHAPE)
    np.testing.assert_array_equal(
        cmjax.sample(model, STATE, x, KEY, edit=edit), jax.jit(cmjax.sample)(model, STATE, x, KEY, edit=edit)
    )
    path = cmjax.generate(NET, STATE, KEY, SHAPE, keep_steps=True)
    assert (path.x.shape, path.x0.shape) == ((4, *SHAPE), (3, *SHAPE))
    np.testing.assert_array_equal(path.x[-1], jax.jit(cmjax.generate, static_argnames="shape")(NET, STATE, KEY, SHAPE))


def test_a_variable_that_is_assigned_anew_is_read_anew() -> None:
    scale = jnp.float32(0.0)

    def model(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return scale * jnp.ones_like(x)

    x = cmjax.prior(STATE, KEY, SHAPE)
    before = cmjax.sample(model, STATE, x, KEY)
    scale = jnp.float32(0.5)
    after = cmjax.sample(model, STATE, x, KEY)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, cmjax.sample(lambda x, t, cond: 0.5 * jnp.ones_like(x), STATE, x, KEY), rtol=1e-5)


def test_weights_that_change_in_place_are_read_anew() -> None:
    from flax import nnx

    weight = nnx.Param(jnp.float32(0.0))
    x = cmjax.prior(STATE, KEY, SHAPE)

    def model(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return weight[...] * jnp.ones_like(x)

    before = cmjax.sample(model, STATE, x, KEY)
    weight[...] = jnp.float32(0.5)
    after = cmjax.sample(model, STATE, x, KEY)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, cmjax.sample(lambda x, t, cond: 0.5 * jnp.ones_like(x), STATE, x, KEY), rtol=1e-5)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return 0.5 * x


def reads_values(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return 0.5 * x if cond > 0 else x


def test_what_cannot_be_static_or_needs_values_still_works() -> None:
    x = cmjax.prior(STATE, KEY, SHAPE)
    expected = cmjax.sample(NET, STATE, x, KEY)
    np.testing.assert_array_equal(cmjax.sample(Unhashable(), STATE, x, KEY), expected)
    np.testing.assert_array_equal(cmjax.sample(reads_values, STATE, x, KEY, 1.0), expected)
    slope = jax.grad(lambda w: cmjax.sample(lambda x, t, cond: w * x, STATE, x, KEY).sum())(0.5)
    assert np.isfinite(slope)


# ---- the hook --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_the_hook_sees_each_step_in_order(wrap: Any, padded: bool) -> None:
    seen: list[Any] = []
    state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), 3, eta=0.3)
    path = cmjax.generate(NET, state, KEY, SHAPE, keep_steps=True)
    start = cmjax.pad(state, 3 + padded) if padded else state
    hook = lambda index, x0: seen.append((index, x0))  # noqa: E731
    drawn = wrap(lambda state, key: cmjax.generate(NET, state, key, SHAPE, on_step=hook))(start, KEY)
    jax.effects_barrier()
    np.testing.assert_array_equal(drawn, cmjax.generate(NET, start, KEY, SHAPE))
    assert [index for index, _ in seen] == [0, 1, 2]
    np.testing.assert_allclose([x0 for _, x0 in seen], path.x0, rtol=1e-6, atol=1e-6)


def test_the_hook_works_with_gradients_and_other_verbs() -> None:
    seen: list[int] = []
    x = cmjax.prior(STATE, KEY, SHAPE)
    hook = lambda index, x0: seen.append(index)  # noqa: E731
    reward = lambda x: cmjax.sample(NET, STATE, x, KEY, remat=True, on_step=hook).sum()  # noqa: E731
    jax.grad(reward)(x)
    cmjax.trajectory(NET, STATE, x, KEY, on_step=hook)
    jax.effects_barrier()
    assert seen == [0, 1, 2] * 2
    without = jax.make_jaxpr(lambda x: cmjax.sample(NET, STATE, x, KEY))(x)
    assert "callback" not in str(without)
    with pytest.raises(TypeError, match=r"on_step must be a function, \(index, x0\) -> None, got a int"):
        cmjax.sample(NET, STATE, x, KEY, on_step=3)  # type: ignore[arg-type]
