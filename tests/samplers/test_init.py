"""The gate: this room checks what `init` plans, by hand-made numbers, and what it refuses, word by word."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import cm, lcm, tcd
from cmjax.samplers._checks import least_strength

CM, TCD, LCM = cm.CMConfig(), tcd.TCDConfig(), lcm.LCMConfig()


# ---- what is planned -------------------------------------------------------------------------------------------------


def test_cm_takes_every_so_manieth_level() -> None:
    by_steps = {1: [0], 2: [0, 20], 3: [0, 13, 26], 4: [0, 10, 20, 30]}
    for n, indices in by_steps.items():
        np.testing.assert_array_equal(cm.init(CM, n).sigmas, cm.init(CM, timesteps=indices[::-1]).sigmas)
    tables = {
        40: "80 44.630203 23.610094 11.718514 5.3800044 2.2404397 .82294136 .25562951 .062762402 .010812047 .002",
        201: "80 45.313736 24.408342 12.381577 5.8389478 2.5152190 .96541691 .31828329 .085087202 .016720753 .002",
    }
    for size, table in tables.items():
        state = cm.init(cm.CMConfig(num_train_timesteps=size), 10)
        np.testing.assert_allclose(state.sigmas, [float(s) for s in table.split()], rtol=1e-7)
    whole = cm.init(CM, 40)
    assert whole.sigmas[-1] == whole.sigmas[-2] == np.float32(0.002)


def test_strength_keeps_the_clean_end_of_cm_paths_too() -> None:
    def same(short: Any, whole: Any) -> None:
        jax.tree.map(np.testing.assert_array_equal, short, whole)

    same(cm.init(CM, 4, strength=1.0), cm.init(CM, 4))
    same(cm.init(CM, 4, strength=0.5), cm.init(CM, timesteps=[35, 30, 25, 20]))
    same(cm.init(CM, 3, strength=0.8), cm.init(CM, timesteps=[28, 18, 8]))  # ⌊32 / 3⌋ = 10 apart
    same(cm.init(CM, timesteps=[30, 20, 10, 0], strength=0.5), cm.init(CM, timesteps=[30, 20]))
    same(cm.init(CM, sigmas=[9.0, 3.0, 1.0], strength=0.7), cm.init(CM, sigmas=[3.0, 1.0]))
    traced = jax.jit(lambda sigmas: cm.init(CM, sigmas=sigmas, strength=0.7).sigmas)(jnp.array([9.0, 3.0, 1.0]))
    np.testing.assert_allclose(traced, [3.0, 1.0, 0.002])


def test_the_strength_that_a_message_names_is_accepted() -> None:
    for count in range(1, 1001):
        assert int(count * float(least_strength(count))) == 1, count
    assert least_strength(1) == "1"
    assert len(tcd.init(TCD, 1, original_inference_steps=30, strength=0.0334).timesteps) == 1
    with pytest.raises(ValueError, match="between 1 and 28"):  # 0.58 * 50 is 28.999999999999996, as in diffusers
        tcd.init(TCD, 29, strength=0.58)


def test_cm_paths_given_by_hand() -> None:
    state = cm.init(CM, timesteps=[22, 0])
    np.testing.assert_allclose(state.sigmas, [80.0, 1.382368, 0.002], rtol=1e-6)
    np.testing.assert_allclose(state.timesteps, [1095.506658668, 80.9495], rtol=1e-6)
    assert cm.init(CM, timesteps=[22]).init_noise_sigma == pytest.approx(1.382368)
    between = cm.init(CM, timesteps=[21.5]).sigmas[0]
    assert cm.init(CM, timesteps=[22]).sigmas[0] < between < cm.init(CM, timesteps=[21]).sigmas[0]
    state = cm.init(CM, sigmas=[80.0, 0.821])
    np.testing.assert_allclose(state.sigmas, [80.0, 0.821, 0.002])
    np.testing.assert_allclose(state.timesteps, [250 * np.log(80.0), 250 * np.log(0.821)], rtol=1e-6)
    again = cm.init(CM, sigmas=state.sigmas[:-1])  # a table given back
    np.testing.assert_array_equal(again.sigmas, state.sigmas)
    assert cm.init(cm.CMConfig(num_train_timesteps=1), 1).sigmas.tolist() == pytest.approx([80.0, 0.002])


def test_cm_boundary_scalings_act() -> None:
    """At sigma = 80 c_skip is 3.90629e-5 and c_out 0.49997774; at sigma_min exactly 1 and 0."""
    state = cm.init(cm.CMConfig(clip_denoised=False), timesteps=[39, 0])
    one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    assert state.predict(none, one).x0[0, 0] == pytest.approx(3.90629e-5, rel=1e-5)
    assert state.predict(one, none).x0[0, 0] == pytest.approx(0.49997774, rel=1e-6)
    last = state.replace(index=jnp.int32(1))
    assert last.predict(1e6 * one, 3.0 * one).x0[0, 0] == 3.0


def test_cm_s_noise_scales_the_fresh_noise_only() -> None:
    pred = cmjax.Prediction(jnp.zeros(3), jnp.zeros(3))
    full = cm.init(CM, 2).renoise(pred, jnp.ones(3))
    np.testing.assert_allclose(cm.init(CM, 2, s_noise=0.5).renoise(pred, jnp.ones(3)), full / 2)
    np.testing.assert_allclose(cm.init(cm.CMConfig(s_noise=0.5), 2).renoise(pred, jnp.ones(3)), full / 2)
    sigma = 5.3800044  # grid index 16; index 20 is 2.2404397
    assert cm.init(CM, timesteps=[20, 16]).sigmas[0] == pytest.approx(sigma)
    expected = np.sqrt(2.2404397**2 - 0.002**2)
    assert cm.init(CM, timesteps=[20, 16]).renoise(pred, jnp.ones(3))[0] == pytest.approx(expected, rel=1e-6)


# eta: (landings, share of the landing kept, noise added) for steps 999 -> 759 -> 499 -> 259 -> 0
TCD_BY_HAND = {
    0.3: ([531, 349, 181, 0], [0.469772, 0.739206, 0.917592, 1.0], [0.882788, 0.673480, 0.397524, 0.0]),
    0.5: ([379, 249, 129, 0], [0.337454, 0.641170, 0.877024, 1.0], [0.941342, 0.767399, 0.480447, 0.0]),
    1.0: ([0, 0, 0, 0], [0.228599, 0.527168, 0.812118, 1.0], [0.973521, 0.849761, 0.583493, 0.0]),
}


@pytest.mark.parametrize("eta", TCD_BY_HAND)
def test_tcd_coefficients(eta: float) -> None:
    state = tcd.init(TCD, 4, eta=eta)
    landings, kept, added = TCD_BY_HAND[eta]
    assert state.timesteps.tolist() == [999, 759, 499, 259]
    assert state.landings.tolist() == landings
    for k in range(4):
        now = state.replace(index=jnp.int32(k))
        pred = cmjax.Prediction(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]))
        none, z = jnp.zeros(2), jnp.array([0.0, 1.0])
        assert now.renoise(pred, none)[0] / now.land(pred)[0] == pytest.approx(kept[k], rel=2e-6)
        assert now.renoise(pred, z)[1] == pytest.approx(added[k], rel=2e-6)


def test_tcd_eta_zero_is_ddim_and_lands_on_the_path() -> None:
    state = tcd.init(TCD, 4, eta=0.0)
    assert state.landings.tolist() == [759, 499, 259, 0]
    pred = cmjax.Prediction(jnp.array([0.3, -2.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_array_equal(state.renoise(pred, jnp.full(2, 1e3)), state.land(pred))


def test_tcd_eta_per_step_and_eta_of_any_kind() -> None:
    assert tcd.init(TCD, 3, eta=[0.3, 0.5, 1.0]).landings.tolist() == [475, 169, 0]  # (1 - eta) of 679, 339, 0
    for eta in (0.3, np.float64(0.3), np.array(0.3), [0.3] * 4):
        assert tcd.init(TCD, 4, eta=eta).landings.tolist() == [531, 349, 181, 0]
    traced = jax.jit(lambda eta: tcd.init(TCD, 4, eta=eta))
    for eta in (0.0, 0.25, 0.5, 1.0):  # numbers that float32 holds exactly
        assert traced(eta).landings.tolist() == tcd.init(TCD, 4, eta=eta).landings.tolist()
    single = tcd.init(TCD, timesteps=list(range(999, -1, -1)), eta=np.float32(0.7)).landings
    every = jax.jit(lambda eta: tcd.init(TCD, timesteps=list(range(999, -1, -1)), eta=eta))(np.float32(0.7)).landings
    np.testing.assert_array_equal(single, every)  # one float32, concrete or traced


@pytest.mark.parametrize("eta", [1.2, -0.1, np.nan])
def test_tcd_a_traced_eta_out_of_range_is_nan(eta: float) -> None:
    state = jax.jit(lambda eta: tcd.init(TCD, 2, eta=eta))(eta)
    out = cmjax.step(state, jnp.ones((1, 2)), jnp.ones((1, 2)), jax.random.key(0))[1]
    assert np.isnan(out).all()


def test_lcm_scalings_and_rates() -> None:
    state = lcm.init(LCM, timesteps=[999, 99, 19, 1])
    np.testing.assert_allclose(state.c_skip, [2.505e-9, 2.55e-7, 6.9252e-6, 2.4938e-3], rtol=1e-3)
    np.testing.assert_allclose(state.c_out, [1.0, 0.99999988, 0.99999654, 0.998752], rtol=1e-6)
    bars = np.array([0.00466010, 0.89546245, 0.98224396, 0.99829602])
    np.testing.assert_allclose(state.alphas[:-1], np.sqrt(bars), rtol=2e-6)
    np.testing.assert_allclose(state.sigmas[:-1], np.sqrt(1 - bars), rtol=2e-5)
    assert (state.alphas[-1], state.sigmas[-1]) == (1.0, 0.0)
    at_zero = lcm.init(LCM, timesteps=[0])  # its boundary: what comes in goes out
    np.testing.assert_allclose(at_zero.predict(jnp.full(2, 9.0), jnp.full(2, 3.0)).x0, 3.0)
    weak = lcm.init(lcm.LCMConfig(timestep_scaling=0.01), 1)
    assert weak.c_skip[0] == pytest.approx(2.5e-3, rel=2e-3)


@pytest.mark.parametrize("sampler", [tcd, lcm], ids=["tcd", "lcm"])
def test_vp_paths(sampler: Any) -> None:
    config = sampler.Config()

    def path(*args: Any, config: Any = config, **kwargs: Any) -> list[int]:
        return sampler.init(config, *args, **kwargs).timesteps.tolist()

    assert path(4) == [999, 759, 499, 259]
    assert path(4, original_inference_steps=30) == path(4, config=sampler.Config(original_inference_steps=30))
    assert path(4, original_inference_steps=30) == [989, 758, 494, 263]
    assert path(4, original_inference_steps=1000) == [999, 749, 499, 249]
    assert path(4, strength=0.8) == [799, 599, 399, 199]
    assert path(timesteps=[800]) == [800]
    assert path(timesteps=np.array([500, 20, 0])) == [500, 20, 0]
    assert path(timesteps=[999, 759, 499, 259], strength=0.5) == [499, 259]
    assert cmjax.skip(sampler.init(config, 4), 2).timesteps.tolist() == [499, 259]
    small = sampler.Config(num_train_timesteps=10, original_inference_steps=5)
    assert path(5, config=small) == [9, 7, 5, 3, 1]
    same = sampler.Config(steps_offset=1, timestep_spacing="trailing", set_alpha_to_one=False)
    assert path(4, config=same) == path(4)


@pytest.mark.parametrize("sampler", [tcd, lcm], ids=["tcd", "lcm"])
def test_bounds_on_x0(sampler: Any) -> None:
    x0 = jnp.array([[-4.0, 0.5, 2.0, 3.0, 1.0]] * 2) * jnp.array([[1.0], [0.1]])

    def bounded(**keys: Any) -> np.ndarray[Any, Any]:
        state = sampler.init(sampler.Config(prediction_type="sample", **keys), 1)
        return np.asarray(state.predict(x0, jnp.zeros_like(x0)).x0)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    close(bounded(), x0)
    close(bounded(clip_sample=True), np.clip(x0, -1, 1))
    close(bounded(clip_sample=True, clip_sample_range=2.5), np.clip(x0, -2.5, 2.5))
    close(bounded(thresholding=True), np.clip(x0, -1, 1))  # sample_max_value = 1: as clipping
    # the median size of the first image is 2; of the second .2, and at least 1 is always allowed
    median = np.array([np.clip(x0[0], -2, 2) / 2, np.clip(x0[1], -1, 1)])
    close(bounded(thresholding=True, dynamic_thresholding_ratio=0.5, sample_max_value=3.0), median)
    close(bounded(thresholding=True, clip_sample=True, clip_sample_range=0.1), np.clip(x0, -1, 1))  # goes before
    close(bounded(thresholding=True, sample_max_value=0.5), np.clip(x0, -0.5, 0.5) / 0.5)


def test_trained_betas_and_zero_snr_reach_the_rates() -> None:
    config = tcd.TCDConfig(num_train_timesteps=2, trained_betas=[0.1, 0.5], original_inference_steps=2)
    assert config.trained_betas == (0.1, 0.5)
    np.testing.assert_allclose(tcd.init(config, 2).alphas, np.sqrt([0.45, 0.9]), rtol=1e-6)
    dark = lcm.init(lcm.LCMConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction"), 1)
    assert (dark.alphas[0], dark.sigmas[0]) == (0.0, 1.0)


def test_tables_made_under_jit_do_not_leak() -> None:
    config = tcd.TCDConfig(beta_end=0.0123)  # numbers that nobody has asked for yet
    traced = jax.jit(lambda: tcd.init(config, 3).alphas)()
    np.testing.assert_array_equal(traced, tcd.init(config, 3).alphas)


# ---- what is refused -------------------------------------------------------------------------------------------------

KARRAS = "0 < sigma_min < sigma_max must hold, got "
ZERO_SNR = "prediction_type 'epsilon' divides by alpha, which is 0 at the last timestep (rescale_betas_zero_snr = True)"
VALUES = [
    (lambda: cm.init(CM, 64), "num_steps must be between 1 and num_train_timesteps = 40, got 64."),
    (lambda: cm.init(CM, 0), "num_steps must be between 1 and num_train_timesteps = 40, got 0."),
    (
        lambda: cm.init(CM, timesteps=[30, 20, 30]),
        "timesteps must be strictly decreasing, but timesteps[2] = 30 follows 20.",
    ),
    (lambda: cm.init(CM, timesteps=[5, 5]), "timesteps must be strictly decreasing, but timesteps[1] = 5 follows 5."),
    (lambda: cm.init(CM, timesteps=[]), "timesteps must be a list of at least one value, got shape (0,)."),
    (
        lambda: cm.init(CM, timesteps=[40]),
        "timesteps must be grid indices in [0, 39] (num_train_timesteps = 40), got 40.",
    ),
    (
        lambda: cm.init(CM, timesteps=[5, -1]),
        "timesteps must be grid indices in [0, 39] (num_train_timesteps = 40), got -1.",
    ),
    (
        lambda: cm.init(CM, timesteps=[np.nan]),
        "timesteps must be grid indices in [0, 39] (num_train_timesteps = 40), got nan.",
    ),
    (lambda: cm.init(CM, sigmas=[1.0, 2.0]), "sigmas must be strictly decreasing, but sigmas[1] = 2 follows 1."),
    (lambda: cm.init(CM, sigmas=[90.0]), "sigmas must lie in [sigma_min, sigma_max] = [0.002, 80], got 90."),
    (lambda: cm.init(CM, sigmas=[1.0, 0.0]), "sigmas must lie in [sigma_min, sigma_max] = [0.002, 80], got 0."),
    (lambda: cm.init(CM), "Give exactly one of num_steps, timesteps and sigmas, got none."),
    (
        lambda: cm.init(CM, 2, sigmas=[1.0]),
        "Give exactly one of num_steps, timesteps and sigmas, got num_steps and sigmas.",
    ),
    (lambda: cm.init(CM, 2, s_noise=-1.0), "s_noise must be one number, not negative, got -1.0."),
    (lambda: cm.init(CM, 2, s_noise=jnp.ones(2)), "s_noise must be one number, not negative, got [1. 1.]."),
    (
        lambda: jax.jit(lambda s: cm.init(CM, sigmas=s).sigmas)(jnp.ones((2, 2))),
        "sigmas must be a list of noise levels, got shape (2, 2).",
    ),
    (lambda: cm.init(cm.CMConfig(sigma_min=0.0), 1), KARRAS + "0 and 80."),
    (lambda: cm.init(cm.CMConfig(sigma_max=0.001), 1), KARRAS + "0.002 and 0.001."),
    (lambda: cm.init(cm.CMConfig(rho=0.0), 1), "rho must be positive, got 0."),
    (lambda: cm.init(cm.CMConfig(sigma_data=-0.5), 1), "sigma_data must be positive, got -0.5."),
    (lambda: cm.init(cm.CMConfig(num_train_timesteps=0), 1), "num_train_timesteps must be at least 1, got 0."),
    (lambda: tcd.init(TCD, 4, eta=1.3), "eta must lie in [0, 1], got 1.3. (The TCD paper calls it gamma.)"),
    (lambda: tcd.init(TCD, 4, eta=-0.1), "eta must lie in [0, 1], got -0.1. (The TCD paper calls it gamma.)"),
    (lambda: tcd.init(TCD, 4, eta=np.nan), "eta must lie in [0, 1], got nan. (The TCD paper calls it gamma.)"),
    (
        lambda: tcd.init(TCD, 4, eta=[0.1, 0.2]),
        "eta must be a scalar or have one value per step, (4,), or one per image of a batch, (1, B) or (4, B), got "
        "shape (2,).",
    ),
    (lambda: tcd.init(TCD, 60), "num_steps must be between 1 and original_inference_steps = 50, got 60."),
    (
        lambda: lcm.init(LCM, 10, strength=0.1),
        "num_steps must be between 1 and 5 (original_inference_steps = 50 times strength = 0.1), got 10.",
    ),
    (lambda: lcm.init(LCM, 4, strength=1.5), "strength must lie in (0, 1], got 1.5."),
    (lambda: cm.init(CM, 4, strength=1.5), "strength must lie in (0, 1], got 1.5."),
    (
        lambda: cm.init(CM, 21, strength=0.5),
        "num_steps must be between 1 and 20 (num_train_timesteps = 40 times strength = 0.5), got 21.",
    ),
    (
        lambda: cm.init(CM, timesteps=[9, 5], strength=0.4),
        "strength = 0.4 leaves none of 2 timesteps; it must be at least 0.5.",
    ),
    (lambda: lcm.init(LCM, 4, strength=0.0), "strength must lie in (0, 1], got 0.0."),
    (
        lambda: tcd.init(TCD, 1, strength=0.01),
        "strength = 0.01 leaves none of original_inference_steps = 50 timesteps; it must be at least 0.02.",
    ),
    (
        lambda: tcd.init(TCD, 1, original_inference_steps=30, strength=0.0333333),
        "strength = 0.0333333 leaves none of original_inference_steps = 30 timesteps; it must be at least 0.0334.",
    ),
    (
        lambda: tcd.init(TCD, 4, eta=np.zeros((3, 2))),
        "eta must be a scalar or have one value per step, (4,), or one per image of a batch, (1, B) or (4, B), got "
        "shape (3, 2).",
    ),
    (
        lambda: tcd.init(TCD, timesteps=[9, 5], strength=0.4),
        "strength = 0.4 leaves none of 2 timesteps; it must be at least 0.5.",
    ),
    (
        lambda: tcd.init(TCD, 4, original_inference_steps=2000),
        "original_inference_steps must be between 1 and num_train_timesteps = 1000, got 2000.",
    ),
    (
        lambda: lcm.init(lcm.LCMConfig(original_inference_steps=0), 4),
        "original_inference_steps must be between 1 and num_train_timesteps = 1000, got 0.",
    ),
    (
        lambda: lcm.init(LCM, timesteps=[9], original_inference_steps=50),
        "original_inference_steps makes the grid for num_steps; with timesteps there is none: drop it.",
    ),
    (lambda: tcd.init(TCD), "Give exactly one of num_steps and timesteps, got none."),
    (
        lambda: tcd.init(TCD, 4, timesteps=[9]),
        "Give exactly one of num_steps and timesteps, got num_steps and timesteps.",
    ),
    (
        lambda: tcd.init(TCD, timesteps=[20, 30]),
        "timesteps must be strictly decreasing, but timesteps[1] = 30 follows 20.",
    ),
    (lambda: tcd.init(TCD, timesteps=[1000]), "timesteps must lie in [0, 999] (num_train_timesteps = 1000), got 1000."),
    (lambda: tcd.init(TCD, timesteps=[9, -1]), "timesteps must lie in [0, 999] (num_train_timesteps = 1000), got -1."),
    (lambda: lcm.init(LCM, timesteps=[500.9]), "timesteps must be integers, got 500.9."),
    (
        lambda: lcm.init(lcm.LCMConfig(prediction_type="flow"), 4),
        "prediction_type must be epsilon, sample or v_prediction, got 'flow'.",
    ),
    (lambda: tcd.init(tcd.TCDConfig(rescale_betas_zero_snr=True), 4), ZERO_SNR),
    (
        lambda: tcd.init(tcd.TCDConfig(beta_start=0.0), timesteps=[5, 0]),
        "timesteps[1] = 0 has no noise (sigma = 0): end the path before it.",
    ),
    (lambda: tcd.init(tcd.TCDConfig(beta_schedule="exp"), 4), "beta_schedule must be one of linear, scaled_linear,"),
    (lambda: lcm.init(lcm.LCMConfig(clip_sample=True, clip_sample_range=0.0), 4), "clip_sample_range must be positive"),
    (
        lambda: lcm.init(lcm.LCMConfig(thresholding=True, dynamic_thresholding_ratio=1.5), 4),
        "dynamic_thresholding_ratio must lie in [0, 1], got 1.5.",
    ),
    (
        lambda: lcm.init(lcm.LCMConfig(thresholding=True, sample_max_value=0.0), 4),
        "sample_max_value must be positive, got 0.",
    ),
]


@pytest.mark.parametrize(("call", "message"), VALUES, ids=[message[:40] for _, message in VALUES])
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(message)


def test_wrong_types_are_refused() -> None:
    for n in (4.0, "4"):
        with pytest.raises(TypeError, match="num_steps must be an integer, got"):
            cm.init(CM, n)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timesteps decides the shape of the path, so it must be concrete under jit"):
        jax.jit(lambda t: lcm.init(LCM, timesteps=t).alphas)(jnp.array([5, 3]))
    for sampler in (cm, tcd, lcm):
        with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
            sampler.Config(beta=1)
