"""Edits: this room checks what they keep, what they leave to the model, and what comes of it on data that are known."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay
from each_sampler import each_sampler, first_samplers

import cmjax
from cmjax._random import noise
from cmjax._struct import Struct
from cmjax.editing import (
    blend,
    block_mean,
    chain,
    colorize,
    consistent,
    inpaint,
    known,
    luminance,
    super_resolution,
)

SHAPE = (2, 8, 8, 3)
PHOTO = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32))
OTHER = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE).astype(np.float32))
HOLE = jnp.zeros((1, 8, 8, 1), bool).at[:, 2:6, 2:6].set(True)
KEY = jax.random.key(3)

# An orthonormal transform of the columns, of which the first three rows are measured: a blur that keeps what is slow.
ALL_WAVES = np.linalg.qr(np.cos(np.pi / 8 * (np.arange(8)[:, None] + 0.5) * np.arange(8)))[0]
WAVES = ALL_WAVES[:, :3].astype(np.float32)


def slow(x: jax.Array) -> jax.Array:
    return jnp.einsum("bhwc,wk->bhkc", x, WAVES)


def slow_back(y: jax.Array) -> jax.Array:
    return jnp.einsum("bhkc,wk->bhwc", y, WAVES)


def pixels(x: jax.Array) -> jax.Array:
    return jnp.where(HOLE, 0.0, x)


# Each edit with the measurement that it keeps.
EDITS: dict[str, tuple[Any, Any]] = {
    "inpaint": (inpaint(PHOTO, HOLE), pixels),
    "colorize": (colorize(luminance(PHOTO)), luminance),
    "super_resolution": (super_resolution(block_mean(PHOTO, 4), 4), lambda x: block_mean(x, 4)),
    "consistent": (consistent(slow, slow_back, PHOTO), slow),
}
SAMPLERS = {sampler.__name__.rpartition(".")[2]: sampler for sampler in cmjax.samplers.ALL}
DETERMINISTIC = (  # but for what their knobs ask for
    cmjax.flow, cmjax.ctm, cmjax.meanflow, cmjax.ddim, cmjax.euler, cmjax.dpmpp, cmjax.heun,
)  # fmt: skip

each_edit = pytest.mark.parametrize(("edit", "measure"), EDITS.values(), ids=EDITS.keys())
each_name = pytest.mark.parametrize("name", EDITS)


def net(x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
    """Something smooth that mixes neighbours and colours, as a network does."""
    return jnp.tanh(jnp.roll(x, 1, axis=1) - 0.5 * x[..., ::-1]) + shift(t, x.dtype)


def shift(t: jax.Array, dtype: Any) -> jax.Array:
    return (0.1 * jnp.sin(0.01 * t.astype(jnp.float32))).astype(dtype)


NET = jax.tree_util.Partial(net)
sample = jax.jit(cmjax.sample)
generate = jax.jit(cmjax.generate, static_argnames="shape")
trajectory = jax.jit(cmjax.trajectory)


class Choice(Struct):
    """One of several edits, by a number that may be traced: a program that is compiled once serves all of them."""

    index: jax.Array
    edits: tuple[Any, ...]

    def __call__(self, x0: jax.Array) -> jax.Array:
        return jax.lax.switch(self.index, self.edits, x0)


def choice(name: str, edits: dict[str, Any] | None = None) -> Choice:
    edits = edits or {name: edit for name, (edit, _) in EDITS.items()}
    return Choice(jnp.int32(list(EDITS).index(name)), tuple(edits[name] for name in EDITS))


# ---- what is measured is kept ----------------------------------------------------------------------------------------


@each_name
@first_samplers
@pytest.mark.parametrize("n", [1, 2, 5])
def test_what_was_measured_is_kept_by_every_sampler(sampler: ModuleType, name: str, n: int) -> None:
    state, measure = sampler.init(sampler.Config(), num_steps=n), EDITS[name][1]
    x = cmjax.add_noise(state, known(EDITS[name][0], SHAPE), KEY)
    restored = sample(NET, state, x, KEY, edit=choice(name))
    assert float(jnp.abs(measure(restored) - measure(PHOTO)).max()) < 1e-6 * max(1.0, float(jnp.abs(restored).max()))
    assert float(jnp.abs(restored - PHOTO).max()) > 0.1  # and the rest is the model's
    again = sample(NET, state, x, jax.random.key(4), edit=choice(name))
    is_noisy = n > 1 and sampler not in DETERMINISTIC  # the last step adds no noise
    assert (float(jnp.abs(again - restored).max()) > 1e-3) == is_noisy


@each_sampler
def test_known_pixels_are_kept_bit_for_bit(sampler: ModuleType) -> None:
    state = sampler.init(sampler.Config(), num_steps=3)
    restored = np.asarray(sample(NET, state, cmjax.prior(state, KEY, SHAPE), KEY, edit=EDITS["inpaint"][0]))
    is_known = ~np.broadcast_to(HOLE, SHAPE)
    np.testing.assert_array_equal(restored[is_known], np.asarray(PHOTO)[is_known])


@each_name
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision_what_was_measured_is_kept_but_for_the_last_rounding(name: str, dtype: Any) -> None:
    """The estimate that is edited is float32; only the sample is rounded."""
    state, measure = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=3), EDITS[name][1]
    x = cmjax.add_noise(state, known(EDITS[name][0], SHAPE), KEY).astype(dtype)
    path = trajectory(NET, state, x, KEY, edit=choice(name))
    assert path.x.dtype == dtype
    np.testing.assert_allclose(measure(path.x0[-1]), measure(PHOTO), atol=2e-6)
    np.testing.assert_array_equal(path.x[-1], path.x0[-1].astype(dtype))


def conditional(x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    return net(x, t, None) + cond


@each_name
def test_with_guidance(name: str) -> None:
    guided = cmjax.guidance.classifier_free(jax.tree_util.Partial(conditional), 3.0, jnp.zeros((1, 1, 1, 1)))
    state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), num_steps=3, eta=0.5)
    cond = jnp.array([0.2, -0.2]).reshape(2, 1, 1, 1)
    restored = sample(guided, state, cmjax.prior(state, KEY, SHAPE), KEY, cond, edit=choice(name))
    measure = EDITS[name][1]
    size = max(1.0, float(jnp.abs(restored).max()))
    np.testing.assert_allclose(measure(restored), measure(PHOTO), atol=2e-6 * size)


def test_a_soft_mask_is_a_hard_one_where_it_is_0_and_1_and_pulls_in_between() -> None:
    weight = HOLE.astype(jnp.float32)
    np.testing.assert_allclose(blend(PHOTO, weight)(OTHER), inpaint(PHOTO, HOLE)(OTHER), atol=1e-6)
    quarter = blend(PHOTO, jnp.full((1, 1, 1, 1), 0.25))(OTHER)
    np.testing.assert_allclose(quarter, 0.75 * PHOTO + 0.25 * OTHER, atol=1e-6)


def test_known_is_the_measurement_and_nothing_else() -> None:
    np.testing.assert_array_equal(known(EDITS["inpaint"][0], SHAPE), pixels(PHOTO))
    low = block_mean(PHOTO, 4)
    np.testing.assert_allclose(
        known(EDITS["super_resolution"][0], SHAPE), low.repeat(4, axis=1).repeat(4, axis=2), atol=1e-6
    )
    gray = known(EDITS["colorize"][0], SHAPE)
    np.testing.assert_allclose(luminance(gray), luminance(PHOTO), atol=1e-6)
    np.testing.assert_allclose(gray[..., 0] * 0.5870, gray[..., 1] * 0.2989, atol=1e-6)  # along the weights
    np.testing.assert_allclose(known(EDITS["consistent"][0], SHAPE), slow_back(slow(PHOTO)), atol=1e-6)


# ---- projections -----------------------------------------------------------------------------------------------------


@each_edit
def test_editing_twice_is_editing_once(edit: Any, measure: Any) -> None:
    once = edit(OTHER)
    np.testing.assert_allclose(edit(once), once, atol=1e-6)
    np.testing.assert_allclose(edit(PHOTO), PHOTO, atol=1e-6)  # the answer stays


@each_edit
def test_what_was_not_measured_is_not_touched(edit: Any, measure: Any) -> None:
    """The change is orthogonal to every picture that measures zero, and as small as can be."""
    change = edit(OTHER) - OTHER
    unseen = edit(PHOTO + OTHER) - PHOTO  # of which nothing is measured
    np.testing.assert_allclose(measure(unseen), 0.0, atol=2e-6)
    assert abs(float((change * unseen).sum())) < 1e-5 * float(jnp.linalg.norm(change) * jnp.linalg.norm(unseen))


def test_edits_of_different_places_commute_and_both_are_kept() -> None:
    left = inpaint(PHOTO, jnp.arange(8)[None, None, :, None] >= 4)
    right = inpaint(-PHOTO, jnp.arange(8)[None, None, :, None] < 4)
    np.testing.assert_array_equal(chain(left, right)(OTHER), chain(right, left)(OTHER))
    np.testing.assert_array_equal(chain(left, right)(OTHER)[:, :, :4], PHOTO[:, :, :4])
    np.testing.assert_array_equal(chain(left, right)(OTHER)[:, :, 4:], -PHOTO[:, :, 4:])


def test_chain_goes_from_left_to_right() -> None:
    add, double = jax.tree_util.Partial(lambda x: x + 1.0), jax.tree_util.Partial(lambda x: x * 2.0)
    assert chain(add, double)(jnp.float32(1.0)) == 4.0
    assert chain(double, add)(jnp.float32(1.0)) == 3.0
    assert chain()(jnp.float32(1.0)) == 1.0


def test_the_pseudo_inverse_serves_where_rows_are_not_orthonormal() -> None:
    rows = np.random.default_rng(5).normal(size=(3, 8)).astype(np.float32)
    inverse = np.linalg.pinv(rows).astype(np.float32)
    edit = consistent(
        lambda x: jnp.einsum("bhwc,kw->bhkc", x, rows), lambda y: jnp.einsum("bhkc,wk->bhwc", y, inverse), PHOTO
    )
    edited = edit(OTHER)
    np.testing.assert_allclose(jnp.einsum("bhwc,kw->bhkc", edited - PHOTO, rows), 0.0, atol=1e-5)
    np.testing.assert_allclose(edit(edited), edited, atol=1e-5)


# ---- the paper's algorithm -------------------------------------------------------------------------------------------


def orthogonal(first: np.ndarray) -> np.ndarray:
    """An orthogonal matrix whose first column is the direction given, in float64: what the paper's A is made of."""
    basis = np.eye(len(first))
    basis[:, 0] = first / np.linalg.norm(first)
    q, _ = np.linalg.qr(basis)
    return q if q[:, 0] @ first > 0 else -q


def replaced_pixels(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.where(HOLE, x, y)


def replaced_luminance(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    q = orthogonal(np.array([0.2989, 0.5870, 0.1140]))
    measured, free = y @ q, x @ q
    free[..., 0] = measured[..., 0]
    return free @ q.T


def replaced_means(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    q = orthogonal(np.ones(16))

    def patches(z: np.ndarray) -> np.ndarray:
        return z.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(2, 2, 2, 3, 16)

    measured, free = patches(y) @ q, patches(x) @ q
    free[..., 0] = measured[..., 0]
    return (free @ q.T).reshape(2, 2, 2, 3, 4, 4).transpose(0, 1, 4, 2, 5, 3).reshape(SHAPE)


def replaced_waves(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    measured, free = (np.einsum("bhwc,wk->bhkc", z, ALL_WAVES) for z in (y, x))
    free[:, :, :3] = measured[:, :, :3]
    return np.einsum("bhkc,wk->bhwc", free, ALL_WAVES)


REPLACED = {
    "inpaint": replaced_pixels,
    "colorize": replaced_luminance,
    "super_resolution": replaced_means,
    "consistent": replaced_waves,
}


@each_name
@pytest.mark.parametrize("n", [1, 4, 40])
def test_the_loop_is_algorithm_4_in_float64(name: str, n: int) -> None:
    edit, _ = EDITS[name]
    config = cmjax.cm.CMConfig()
    state = cmjax.cm.init(config, num_steps=n)
    start = cmjax.add_noise(state, known(edit, SHAPE), KEY)
    path = trajectory(NET, state, start, KEY, edit=choice(name))

    y, zero = np.asarray(PHOTO, np.float64), np.zeros(SHAPE)
    x = REPLACED[name](y, zero) + 80.0 * np.asarray(noise(KEY, SHAPE), np.float64)
    assert replay.distance(start, x) < 1e-6
    sigmas = np.append(replay.karras_sigmas(np.arange(n) * (40 // n) / 39), 0.002)
    for k, key in enumerate(jax.random.split(KEY, n)):
        sigma, data = sigmas[k], config.sigma_data
        x_in, t = x / np.hypot(sigma, data), 250 * np.log(sigma)
        out = np.tanh(np.roll(x_in, 1, axis=1) - 0.5 * x_in[..., ::-1]) + 0.1 * np.sin(0.01 * t)
        c_skip = data**2 / ((sigma - 0.002) ** 2 + data**2)
        x0 = c_skip * x + (sigma - 0.002) * data / np.hypot(sigma, data) * out
        x0 = REPLACED[name](y, np.clip(x0, -1, 1))
        z = np.asarray(noise(key, SHAPE), np.float64)
        x = x0 + np.sqrt(max(sigmas[k + 1] ** 2 - 0.002**2, 0.0)) * z
        assert replay.distance(path.x0[k], x0) < 1e-5
    assert replay.distance(path.x[-1], x) < 1e-5


@each_name
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_with_tcd_eps_is_derived_again_from_the_edited_estimate(name: str, eta: float) -> None:
    n = 4
    state = cmjax.tcd.init(cmjax.tcd.TCDConfig(), num_steps=n, eta=eta)
    path = trajectory(NET, state, cmjax.prior(state, KEY, SHAPE), KEY, edit=choice(name))
    y, x = np.asarray(PHOTO, np.float64), np.asarray(path.x[0], np.float64)
    tables = [np.asarray(table, np.float64) for table in (state.alphas, state.sigmas)]
    landings = [np.asarray(table, np.float64) for table in (state.landing_alphas, state.landing_sigmas)]
    for k, key in enumerate(jax.random.split(KEY, n)):
        (alpha, sigma), (alpha_s, sigma_s) = (table[k] for table in tables), (table[k] for table in landings)
        eps = np.tanh(np.roll(x, 1, axis=1) - 0.5 * x[..., ::-1]) + 0.1 * np.sin(0.01 * int(state.timesteps[k]))
        x0 = REPLACED[name](y, (x - sigma * eps) / alpha)
        assert replay.distance(path.x0[k], x0) < 2e-5
        landed = alpha_s * x0 + sigma_s * (x - alpha * x0) / sigma
        if k + 1 == n:
            x = x0
            break
        ratio = tables[0][k + 1] / alpha_s
        z = np.asarray(noise(key, SHAPE), np.float64)
        x = ratio * landed + np.sqrt(max(1 - ratio**2, 0.0)) * z
    assert replay.distance(path.x[-1], x) < 2e-5


# ---- data that are known ---------------------------------------------------------------------------------------------

SPREAD, LIKE, SEEN = 0.5, 0.9, 0.75  # two pixels of N(0, .5²), correlated by .9; the first is seen to be 1.5 spreads


class TwoPixels(Struct):
    """The network of a perfectly distilled model of those two pixels: x0 along the probability flow, in closed form."""

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
        sigma, low, data = jnp.exp(t / 250.0), 0.002, 0.5
        x = x * jnp.sqrt(sigma**2 + data**2)
        both, apart = (x[..., :1] + x[..., 1:]) / 2, (x[..., :1] - x[..., 1:]) / 2
        x0 = 0.0
        for part, sign, variance in ((both, 1.0, 1 + LIKE), (apart, -1.0, 1 - LIKE)):
            shrunk = part * jnp.sqrt((variance * SPREAD**2 + low**2) / (variance * SPREAD**2 + sigma**2))
            x0 = x0 + jnp.concatenate([shrunk, sign * shrunk], axis=-1)
        c_skip = data**2 / ((sigma - low) ** 2 + data**2)
        return (x0 - c_skip * x) * jnp.sqrt(sigma**2 + data**2) / ((sigma - low) * data)


def law(n: int, size: int = 40) -> tuple[float, float]:
    """Mean and standard deviation of the second pixel, as algorithm 4 makes it in n steps: it is affine, so exactly."""
    variances, basis = np.linalg.eigh(SPREAD**2 * np.array([[1.0, LIKE], [LIKE, 1.0]]))
    sigmas = np.append(replay.karras_sigmas(np.arange(n) * (size // n) / (size - 1)), 0.002)
    mean, cov = np.array([SEEN, 0.0]), sigmas[0] ** 2 * np.eye(2)
    for k in range(n):
        flow = basis @ np.diag(np.sqrt((variances + 0.002**2) / (variances + sigmas[k] ** 2))) @ basis.T
        mean, cov = flow @ mean, flow @ cov @ flow.T
        mean, cov = np.array([SEEN, mean[1]]), np.diag([0.0, cov[1, 1]])
        cov = cov + (sigmas[k + 1] ** 2 - 0.002**2) * np.eye(2) if k + 1 < n else cov
    return mean[1], np.sqrt(cov[1, 1])


EXACT = LIKE * SEEN, SPREAD * np.sqrt(1 - LIKE**2)


@pytest.mark.parametrize("n", [1, 4, 10, 40])
def test_on_gaussian_data_half_known_samples_have_the_law_of_algorithm_4(n: int) -> None:
    photo, hole = jnp.array([[SEEN, 0.0]]), jnp.array([[False, True]])
    edit, count = inpaint(photo, hole), 20_000
    state = cmjax.cm.init(cmjax.cm.CMConfig(clip_denoised=False), num_steps=n)
    x = cmjax.add_noise(state, known(edit, (count, 2)), jax.random.key(5))
    restored = np.asarray(sample(TwoPixels(), state, x, KEY, edit=edit))
    assert (restored[:, 0] == SEEN).all()
    mean, spread = law(n)
    assert restored[:, 1].mean() == pytest.approx(mean, abs=4 * spread / count**0.5)
    assert restored[:, 1].std() == pytest.approx(spread, rel=4 / (2 * count) ** 0.5)


def test_the_table_of_the_guide_is_that_law() -> None:
    text = (Path(__file__).parents[1] / "notebooks" / "zero_shot_editing.md").read_text(encoding="utf-8")
    columns = re.search(r"^\| steps \(of a grid of\) \|(.*)\|$", text, re.MULTILINE)
    assert columns
    paths = [tuple(map(int, re.findall(r"\d+", column))) for column in columns[1].split("|")]
    assert len(paths) == 5
    for i, row in enumerate(("mean", "spread")):
        found = re.search(rf"^\| conditional {row}, over the exact one \|(.*)\|$", text, re.MULTILINE)
        assert found
        np.testing.assert_allclose(
            [float(said) for said in found[1].split("|")], [law(*path)[i] / EXACT[i] for path in paths], atol=5e-3
        )


def test_all_known_gives_the_reference_and_nothing_known_the_unconditional_sample() -> None:
    state = cmjax.cm.init(cmjax.cm.CMConfig(clip_denoised=False), num_steps=4)
    photo = 0.5 * jax.random.normal(jax.random.key(6), (500, 2))
    x = cmjax.prior(state, KEY, photo.shape)
    none, every = jnp.zeros((1, 2), bool), jnp.ones((1, 2), bool)
    bounds = None  # Gaussian data have none
    np.testing.assert_array_equal(sample(TwoPixels(), state, x, KEY, edit=inpaint(photo, none, bounds=bounds)), photo)
    free = sample(TwoPixels(), state, x, KEY, edit=inpaint(photo, every, bounds=bounds))
    np.testing.assert_allclose(free, sample(TwoPixels(), state, x, KEY), atol=1e-5)


# ---- batches, compilation, gradients ---------------------------------------------------------------------------------


def edits_of(photo: jax.Array) -> dict[str, Any]:
    return {
        "inpaint": inpaint(photo, HOLE),
        "colorize": colorize(luminance(photo)),
        "super_resolution": super_resolution(block_mean(photo, 4), 4),
        "consistent": consistent(slow, slow_back, photo),
    }


def per_image(i: int) -> dict[str, Any]:
    """The same edits for image i alone."""
    return edits_of(PHOTO[i : i + 1])


@each_name
def test_image_i_depends_on_key_i_and_reference_i_only(name: str) -> None:
    state, keys = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=3), jax.random.split(KEY, 2)
    both = generate(NET, state, keys, SHAPE, edit=choice(name))
    for i in range(2):
        one = generate(NET, state, keys[i : i + 1], (1, *SHAPE[1:]), edit=choice(name, per_image(i)))
        np.testing.assert_allclose(one[0], both[i], atol=1e-6)


def test_one_reference_serves_a_batch_and_a_mask_each_makes_one() -> None:
    holes = jax.random.bernoulli(KEY, 0.5, (5, 8, 8, 1))
    edit = inpaint(PHOTO[:1], holes)
    x0 = jnp.broadcast_to(OTHER[:1], (5, *SHAPE[1:]))
    np.testing.assert_array_equal(edit(x0), jnp.where(holes, x0, PHOTO[:1]))
    np.testing.assert_array_equal(
        super_resolution(block_mean(PHOTO[:1], 4), 4)(x0)[3], per_image(0)["super_resolution"](OTHER[:1])[0]
    )


def test_a_batch_of_edits_is_one_vmap_and_other_values_never_recompile() -> None:
    holes = jax.random.bernoulli(KEY, 0.5, (6, 8, 8, 1))
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)

    @jax.jit
    @chex.assert_max_traces(1)
    def restore(hole: jax.Array, photo: jax.Array, key: jax.Array) -> jax.Array:
        def one(hole: jax.Array, key: jax.Array) -> jax.Array:
            return cmjax.generate(NET, state, key, (1, *SHAPE[1:]), edit=inpaint(photo, hole))

        return jax.vmap(one)(hole, jax.random.split(key, len(hole)))

    for photo in (PHOTO[:1], 0.5 * PHOTO[1:]):
        restored = restore(holes, photo, KEY)
        for i, key in enumerate(jax.random.split(KEY, 6)):
            alone = generate(NET, state, key, (1, *SHAPE[1:]), edit=inpaint(photo, holes[i]))
            np.testing.assert_allclose(restored[i], alone, atol=1e-5)


@jax.jit
@jax.value_and_grad
def loss(photo: jax.Array, state: Any, x: jax.Array, index: jax.Array) -> jax.Array:
    edit = Choice(index, tuple(edits_of(photo).values()))
    return jnp.tanh(cmjax.sample(NET, state, x, KEY, edit=edit)).mean()


@each_name
@first_samplers
def test_gradients_through_an_edited_sample_are_those_of_finite_differences(sampler: ModuleType, name: str) -> None:
    config = cmjax.cm.CMConfig(clip_denoised=False) if sampler is cmjax.cm else sampler.Config()
    levels = {cmjax.ctm: [5.0, 1.0], cmjax.meanflow: [0.8, 0.4]}
    timesteps = {cmjax.cm: [30, 20], cmjax.scm: [0.8, 0.4]}.get(sampler, [500, 200])
    path = {"sigmas": levels[sampler]} if sampler in levels else {"timesteps": timesteps}
    state = sampler.init(config, **path)
    given = state, cmjax.prior(state, KEY, SHAPE), choice(name).index
    _, slope = loss(PHOTO, *given)
    assert bool(jnp.isfinite(slope).all())
    direction = jnp.sign(slope)
    step = 1e-2
    found = (loss(PHOTO + step * direction, *given)[0] - loss(PHOTO - step * direction, *given)[0]) / (2 * step)
    assert float(found) == pytest.approx(float((slope * direction).sum()), rel=2e-2)
    assert float(jnp.abs(slope).max()) > 1e-4


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_edit_that_changes_the_shape_is_refused() -> None:
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
    with pytest.raises(ValueError, match=r"edit returned shape \(2, 8\) for x0 of shape \(2, 8, 8, 3\)"):
        cmjax.step(state, PHOTO, PHOTO, jax.random.key(0), edit=lambda x0: x0[:, :, 0, 0])


def rows(scale: float) -> Any:
    return lambda x: scale * slow(x)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (TypeError, "hole must be boolean.*blend", lambda: inpaint(PHOTO, HOLE.astype(jnp.float32))),
        (ValueError, r"hole has shape \(2, 8, 8\) for reference", lambda: inpaint(PHOTO, HOLE[..., 0].repeat(2, 0))),
        (ValueError, r"hole has shape \(3, 8, 8, 1\)", lambda: inpaint(PHOTO, HOLE.repeat(3, 0))),
        (ValueError, r"hole has shape \(1, 7, 8, 1\)", lambda: inpaint(PHOTO, HOLE[:, :7])),
        (TypeError, "reference must be a float array", lambda: inpaint(np.zeros(SHAPE, np.uint8), HOLE)),
        (ValueError, r"reference must lie in \[-1, 1\], got 0 \.\.\. 255: .*127\.5", lambda: inpaint(ramp(255), HOLE)),
        (ValueError, r"reference holds NaN in 288 of 384 values", lambda: inpaint(PHOTO * jnp.nan, HOLE)),
        (
            ValueError,
            r"weight must lie in \[0, 1\], got 0 \.\.\. 2\.",
            lambda: blend(PHOTO, 2.0 * HOLE.astype(jnp.float32)),
        ),
        (ValueError, r"gray must have one channel.*luminance", lambda: colorize(PHOTO)),
        (ValueError, r"gray must have one channel.*gray\[\.\.\., None\]", lambda: colorize(PHOTO[..., 0])),
        (ValueError, "colorize weighs 3 colours, but x0", lambda: colorize(PHOTO[..., :1])(PHOTO[..., :2])),
        (ValueError, "weights must be one number for each channel", lambda: colorize(PHOTO[..., :1], weights=(1, -1))),
        (ValueError, "images must have 3 channels", lambda: luminance(PHOTO[..., :2])),
        (TypeError, "factor must be a Python int", lambda: super_resolution(PHOTO, 2.0)),
        (ValueError, "factor must be at least 1, got 0", lambda: super_resolution(PHOTO, 0)),
        (ValueError, "3 does not divide 8 x 8", lambda: block_mean(PHOTO, 3)),
        (ValueError, r"low has shape \(2, 8, 8, 3\) where \(2, 4, 4, 3\)", lambda: super_resolution(PHOTO, 2)(OTHER)),
        (ValueError, r"reference has shape \(2, 8, 8, 3\) where \(3,", lambda: inpaint(PHOTO, HOLE)(tripled())),
        (ValueError, r"give it a batch axis, reference\[None\]", lambda: inpaint(PHOTO[0], HOLE[0])(OTHER)),
        (ValueError, "must be orthonormal", lambda: consistent(rows(2.0), slow_back, PHOTO)),
        (ValueError, "must be the adjoint", lambda: consistent(lambda x: x[..., :1], lambda y: y.repeat(3, -1), PHOTO)),
        (
            ValueError,
            "measure must give a float array, got complex64",
            lambda: consistent(jnp.fft.fft, slow_back, PHOTO),
        ),
        (ValueError, "measure must be linear", lambda: consistent(lambda x: x + 1.0, lambda y: y - 1.0, PHOTO)),
        (ValueError, "measure must measure something", lambda: consistent(lambda x: x[:0], lambda y: y, PHOTO)),
        (ValueError, "must be finite", lambda: consistent(slow, slow_back, PHOTO * jnp.nan)),
        (TypeError, "reference must be a float array, got a NoneType", lambda: inpaint(None, HOLE)),
        (ValueError, "adjoint must lead back to pictures", lambda: consistent(slow, lambda y: y, PHOTO)),
    ],
)
def test_bad_input_is_refused_in_one_sentence(error: type[Exception], message: str, make: Any) -> None:
    with pytest.raises(error, match=message):
        make()


WRONG = {
    "None": None,
    "a text": "abc",
    "texts": ["a", "b"],
    "an int": 3,
    "NaN": np.full(SHAPE, np.nan, np.float32),
    "complex": np.zeros(SHAPE, np.complex64),
    "a key": KEY,
    "lists of unequal length": [[1.0], [1.0, 2.0]],
    "a shape without values": jax.ShapeDtypeStruct(SHAPE, jnp.float32),
}
# By the name that a complaint must begin with: whoever takes such an argument.
ARGUMENTS: dict[str, Any] = {
    "reference": [lambda v: inpaint(v, HOLE), lambda v: blend(v, HOLE.astype(jnp.float32))],
    "hole": [lambda v: inpaint(PHOTO, v)],
    "weight": [lambda v: blend(PHOTO, v)],
    "gray": [colorize],
    "weights": [lambda v: colorize(PHOTO[..., :1], weights=v), lambda v: luminance(PHOTO, weights=v)],
    "bounds": [lambda v: inpaint(PHOTO, HOLE, bounds=v), lambda v: super_resolution(PHOTO, 2, bounds=v)],
    "low": [lambda v: super_resolution(v, 2)],
    "factor": [lambda v: super_resolution(PHOTO, v), lambda v: block_mean(PHOTO, v)],
    "measure": [lambda v: consistent(v, slow_back, PHOTO)],
    "adjoint": [lambda v: consistent(slow, v, PHOTO)],
    "what measure gives": [lambda v: consistent(lambda x: v, slow_back, PHOTO)],
    "what adjoint gives": [lambda v: consistent(slow, lambda y: v, PHOTO)],
    "each edit": [chain, lambda v: chain(EDITS["inpaint"][0], v)],
    "edit": [lambda v: known(v, SHAPE), lambda v: cmjax.step(STATE, PHOTO, PHOTO, KEY, edit=v)],
    "what edit returns": [lambda v: known(lambda x0: v, SHAPE)],
    "shape": [lambda v: known(EDITS["inpaint"][0], v)],
    "x0": [edit for edit, _ in EDITS.values()],
    "images": [luminance, lambda v: block_mean(v, 2)],
}
STATE = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=2)
FINE = {  # None means no bounds and no edit, 3 is a factor, and NaN goes through what does not look at values
    *(("bounds", "None"), ("edit", "None"), ("factor", "an int")),
    *((name, "NaN") for name in ("x0", "images", "what edit returns", "what measure gives", "what adjoint gives")),
}


@pytest.mark.filterwarnings("ignore:Data type alias 'a'")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_of_a_wrong_type_is_refused_by_name(name: str, wrong: str) -> None:
    for make in ARGUMENTS[name]:
        if (name, wrong) in FINE:
            continue
        with pytest.raises((TypeError, ValueError), match=r"\.$") as refused:
            make(WRONG[wrong])
        said = str(refused.value)
        assert said.startswith((name, name.removeprefix("what ").removesuffix(" gives"))), said
        assert any(word in said for word in (" must ", " has shape ", " holds NaN ")), said


def ramp(most: float) -> jax.Array:
    return jnp.broadcast_to(jnp.linspace(0.0, most, 8)[:, None], SHAPE)


def tripled() -> jax.Array:
    return OTHER[:1].repeat(3, axis=0)


@each_name
def test_an_edit_may_be_made_under_jit_around_a_picture(name: str) -> None:
    """Arrays that are captured have values, which are checked there too."""
    edited = jax.jit(lambda x: per_image(0)[name](x))(OTHER[:1])
    np.testing.assert_allclose(edited, per_image(0)[name](OTHER[:1]), atol=1e-5)
    with pytest.raises(ValueError, match="reference must lie"):
        jax.jit(lambda x, photo=100 * PHOTO: inpaint(photo, HOLE)(x))(OTHER)


def test_latents_have_no_bounds_and_what_is_in_the_hole_does_not_matter() -> None:
    np.testing.assert_array_equal(inpaint(10 * PHOTO, HOLE, bounds=None)(OTHER)[:, 0], 10 * PHOTO[:, 0])
    damaged = jnp.where(HOLE, jnp.nan, PHOTO)
    soft = jnp.where(HOLE, 1.0, 0.5)
    np.testing.assert_array_equal(blend(damaged, soft)(OTHER), blend(PHOTO, soft)(OTHER))
    np.testing.assert_array_equal(inpaint(damaged, HOLE)(OTHER), inpaint(PHOTO, HOLE)(OTHER))
