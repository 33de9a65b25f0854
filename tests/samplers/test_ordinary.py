"""The ordinary samplers among each other, on Gaussian data, and at their gates."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

import cmjax
from cmjax import ddim, dpmpp, euler, euler_ancestral, heun, tcd
from cmjax._sampler_names import ORDINARY
from cmjax._struct import Struct
from cmjax.samplers._spacing import spaced

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIG = ddim.DDIMConfig(**TABLE, clip_sample=False, timestep_spacing="trailing")
KEY = jax.random.key(0)
DATA = Gaussian(mean=0.3, std=0.6)
ALPHA, SIGMA = cmjax.schedules.rates(cmjax.schedules.alphas_cumprod())


class Exact(Struct):
    """What a network that is right says of Gaussian data: epsilon, told t alone."""

    ratios: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        ratio = jnp.interp(t.astype(jnp.float32), jnp.arange(1000.0), self.ratios)
        alpha = jax.lax.rsqrt(ratio**2 + 1.0)
        sigma = ratio * alpha
        return (x - alpha * DATA.x0(x, alpha, sigma)) / sigma


NET = Exact(jnp.asarray(SIGMA / ALPHA, jnp.float32))
trajectory = jax.jit(cmjax.trajectory)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape or (2, 5)), jnp.float32)


def walked(state: Any, x: jax.Array, outs: Any, zs: Any) -> list[np.ndarray]:
    """The samples of a path by hand, with the network's outputs and the noise given."""
    samples = [np.asarray(x)]
    for out, z in zip(outs, zs, strict=True):
        pred = state.predict(out, x)
        x = state.renoise(pred, z)
        state = state.remember(pred).replace(index=state.index + 1)
        samples.append(np.asarray(x))
    return samples


# ---- relations -------------------------------------------------------------------------------------------------------

OUTS, ZS = [normal(k) for k in range(4)], [normal(10 + k) for k in range(4)]


def test_tcd_with_eta_0_on_a_trailing_grid_is_ddim_but_for_its_last_landing() -> None:
    ours = ddim.init(CONFIG, 4)
    assert ours.timesteps.tolist() == [999, 749, 499, 249]
    theirs = tcd.init(CONFIG, timesteps=ours.timesteps.tolist(), eta=0.0)
    a, b = (walked(state, normal(9), OUTS, ZS) for state in (ours, theirs))
    np.testing.assert_allclose(a[:-1], b[:-1], rtol=1e-6, atol=1e-6)
    low = ddim.init(dataclasses.replace(CONFIG, set_alpha_to_one=False), 4)  # which lands at timestep 0 too
    np.testing.assert_allclose(walked(low, normal(9), OUTS, ZS)[-1], b[-1], rtol=1e-6, atol=1e-6)


def samples_in_levels(config: Any, module: Any, **options: Any) -> list[np.ndarray]:
    """A path's samples as x / alpha: x0 + (sigma / alpha) eps, however the sampler scales them."""
    state = module.init(config, 4, **options)
    levels = np.asarray(getattr(state, "alphas", np.ones(5)))
    first, *_ = np.asarray(ddim.init(CONFIG, 4).alphas)
    x = normal(9) / first * levels[0]  # the same start
    return [x / alpha for x, alpha in zip(walked(state, x, OUTS, ZS), levels, strict=True)]


def test_euler_is_ddim_in_noise_levels() -> None:
    a, b = (samples_in_levels(CONFIG, module) for module in (ddim, euler))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_ancestral_euler_is_ddim_with_eta_1_and_dpmpp_with_noise_of_order_1() -> None:
    a, b = samples_in_levels(CONFIG, ddim, eta=1.0), samples_in_levels(CONFIG, euler_ancestral)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    noisy = {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}
    config = dpmpp.DPMPPConfig(**TABLE, **noisy, timestep_spacing="trailing")
    np.testing.assert_allclose(a, samples_in_levels(config, dpmpp), rtol=1e-5, atol=2e-5)
    half = (samples_in_levels(CONFIG, module, eta=0.5) for module in (ddim, euler_ancestral))
    np.testing.assert_allclose(*half, rtol=1e-5, atol=2e-5)
    none = (samples_in_levels(CONFIG, euler_ancestral, eta=0.0), samples_in_levels(CONFIG, euler))
    np.testing.assert_array_equal(*none)


def test_the_first_half_of_heun_is_euler_and_its_second_corrects() -> None:
    sigmas = [4.0, 1.0]
    x, states = normal(9), (euler.init(CONFIG, sigmas=sigmas), heun.init(CONFIG, sigmas=sigmas))
    a, b = (walked(state, x, OUTS[:2], ZS[:2]) for state in states)
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(b[2], x + (1.0 - 4.0) * (OUTS[0] + OUTS[1]) / 2, rtol=1e-5, atol=1e-5)


# ---- Gaussian data ---------------------------------------------------------------------------------------------------


def error(module: Any, n: int) -> float:
    """How far a path of n + 1 levels is from the flow, one level before its end."""
    config = dpmpp.DPMPPConfig(**TABLE) if module is dpmpp else CONFIG
    path = np.linspace(999, 199, n + 1).round().astype(int)
    state = module.init(config, timesteps=path.tolist())
    alpha, sigma = (float(rate) for rate in state.rates())
    x = np.hypot(alpha * DATA.std, sigma) * jnp.linspace(-2.0, 2.0, 5)[:, None] + alpha * DATA.mean
    last = state.num_steps - 1
    end = state.replace(index=jnp.int32(last)).rates()
    right = DATA.flow(x, (alpha, sigma), tuple(float(rate) for rate in end))
    return float(jnp.abs(trajectory(NET, state, x, KEY).x[last] - right).max())


@pytest.mark.parametrize(("module", "order"), [(ddim, 1), (euler, 1), (dpmpp, 2), (heun, 2)])
def test_orders_of_convergence(module: Any, order: int) -> None:
    few, many = error(module, 20), error(module, 40)
    assert few / many == pytest.approx(2.0**order, rel=0.25)
    assert few < (0.2 if order == 1 else 0.03)


def test_heun_does_not_correct_a_step_from_noise_alone() -> None:
    """Half of the step from the level 4096 would be 2,000 times what the network's slopes differ by."""
    config = dataclasses.replace(CONFIG, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    state = heun.init(config, 4)
    assert state.bend[1] == 0.0 and state.bend[3] < 0.0
    assert heun.init(config, timesteps=[900, 500]).bend[1] < 0.0
    samples = walked(state, state.init_noise_sigma * normal(9), OUTS, ZS)
    np.testing.assert_allclose(samples[1], samples[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "options"),
    [(ddim, {"eta": 1.0}), (euler_ancestral, {}), (dpmpp, {"algorithm_type": "sde-dpmsolver++"})],
    ids=["ddim", "euler_ancestral", "dpmpp"],
)
def test_fresh_noise_keeps_the_variance_of_the_data(module: Any, options: dict[str, Any]) -> None:
    """20,000 draws: were noise used twice, or of another size, the variance would show it."""
    config: Any = CONFIG
    if module is dpmpp:
        config, options = dpmpp.DPMPPConfig(**TABLE, **options, timestep_spacing="trailing"), {}
    x = np.asarray(cmjax.generate(NET, module.init(config, 300, **options), KEY, (20, 1000)))
    assert x.mean() == pytest.approx(DATA.mean, abs=0.03)
    assert x.std() == pytest.approx(DATA.std, rel=0.03)  # of which 0.02 is the steps'


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [dpmpp, heun], ids=["dpmpp", "heun"])
def test_a_skipped_path_begins_without_memory_and_a_loop_by_hand_needs_no_begin(module: Any) -> None:
    state = module.init(CONFIG, 4)
    x = state.init_noise_sigma * normal(9)
    used = cmjax.step(state, NET(*cmjax.model_input(state, x), None), x, KEY)[0]
    assert state.memory is None and used.memory.is_there == 1 and state.begin(x).memory.is_there == 0
    for path in (cmjax.skip(state, 1), cmjax.skip(state.begin(x), 1), cmjax.pad(state.begin(x), 9)):
        assert path.memory is None
    by_hand, y = cmjax.skip(state, 1), x
    for key in jax.random.split(KEY, by_hand.num_steps):
        by_hand, y = cmjax.step(by_hand, NET(*cmjax.model_input(by_hand, y), None), y, key)
    np.testing.assert_allclose(cmjax.sample(NET, cmjax.skip(state, 1), x, KEY), y, rtol=1e-5, atol=1e-5)


def test_an_edit_is_what_is_remembered() -> None:
    state = dpmpp.init(CONFIG, 3)
    one = cmjax.step(state, normal(1), normal(2), KEY, edit=lambda x0: 0.0 * x0 + 0.25)[0]
    np.testing.assert_array_equal(one.memory.value, np.full((2, 5), 0.25, np.float32))


# ---- paths and knobs -------------------------------------------------------------------------------------------------


def test_paths_of_the_spacings() -> None:
    def path(module: Any, spacing: str, n: int = 4, **keys: Any) -> list[float]:
        config = dataclasses.replace(CONFIG, timestep_spacing=spacing, **keys)
        return module.init(config, n).timesteps.tolist()

    assert path(ddim, "leading") == [750, 500, 250, 0]
    assert path(ddim, "leading", steps_offset=1) == [751, 501, 251, 1]
    assert path(ddim, "linspace") == [999, 666, 333, 0]
    assert path(ddim, "trailing", 3) == [999, 666, 332]
    assert path(euler, "linspace", 3) == [999.0, 499.5, 0.0]
    assert path(dpmpp, "leading", steps_offset=1) == [801, 601, 401, 201]
    assert path(dpmpp, "linspace") == [999, 749, 500, 250]
    assert path(dpmpp, "trailing") == [999, 749, 499, 249]
    for n in range(1, 1001):  # rounding makes some grids of the reference one longer, with a timestep of -1
        timesteps = spaced(CONFIG, n)
        assert len(timesteps) == n and timesteps[-1] >= 0


def test_published_numbers() -> None:
    """Of Stable Diffusion: the levels of Euler with four trailing steps, and where leading ones begin."""
    trailing, leading = (dataclasses.replace(CONFIG, timestep_spacing=s) for s in ("trailing", "leading"))
    state = euler.init(trailing, 4)
    np.testing.assert_allclose(state.sigmas, [14.6146, 4.0817, 1.6129, 0.6932, 0.0], atol=5e-5)
    assert state.init_noise_sigma == pytest.approx(14.6146, abs=5e-5)
    state = euler.init(dataclasses.replace(leading, steps_offset=1), 30)
    assert (state.timesteps[0], float(state.sigmas[0])) == (958.0, pytest.approx(11.4769, abs=1e-4))
    assert state.init_noise_sigma == pytest.approx(11.5203, abs=1e-4)


def test_a_traced_eta_out_of_range_is_nan() -> None:
    for module in (ddim, euler_ancestral):
        made = jax.jit(lambda eta, module=module: module.init(CONFIG, 2, eta=eta).fresh)
        assert np.isnan(made(1.5)[0])
        np.testing.assert_allclose(made(0.5), module.init(CONFIG, 2, eta=0.5).fresh, rtol=1e-6)
        assert np.isfinite(jax.grad(lambda eta, made=made: made(eta).sum())(1.0))


ZERO_SNR = dataclasses.replace(CONFIG, rescale_betas_zero_snr=True)
EULER, DPMPP = euler.EulerConfig(**TABLE), dpmpp.DPMPPConfig(**TABLE)
VALUES = [
    (lambda: ddim.init(CONFIG, 1001), "num_steps must be between 1 and num_train_timesteps = 1000, got 1001."),
    (lambda: euler.init(EULER, 0), "num_steps must be between 1 and num_train_timesteps = 1000, got 0."),
    (lambda: dpmpp.init(DPMPP, 1000), "num_steps must be between 1 and 999 (num_train_timesteps = 1000, linspace)"),
    (lambda: ddim.init(CONFIG), "Give exactly one of num_steps and timesteps, got none."),
    (lambda: euler.init(EULER, 2, sigmas=[1.0]), "Give exactly one of num_steps, timesteps and sigmas, got num_steps"),
    (lambda: ddim.init(CONFIG, 4, eta=1.5), "eta must lie in [0, 1], got 1.5."),
    (
        lambda: ddim.init(CONFIG, 4, eta=[0.1]),
        "eta must be a scalar or have one value per step, (4,), or one per image",
    ),
    (lambda: ddim.init(ZERO_SNR, 4), "prediction_type 'epsilon' divides by alpha, which is 0 at the last timestep"),
    (lambda: heun.init(ZERO_SNR, 4), "prediction_type 'epsilon' divides by alpha, which is 0 at the last timestep"),
    (
        lambda: ddim.init(dataclasses.replace(CONFIG, timestep_spacing="even"), 4),
        "timestep_spacing must be one of leading, trailing, linspace, got 'even'.",
    ),
    (
        lambda: ddim.init(dataclasses.replace(CONFIG, timestep_spacing="leading", steps_offset=300), 4),
        "steps_offset = 300 moves the timesteps to [300, 1050], out of [0, 999] (num_train_timesteps = 1000): take",
    ),
    (lambda: euler.init(EULER, sigmas=[1.0, 2.0]), "sigmas must be strictly decreasing, but sigmas[1] = 2 follows 1."),
    (lambda: heun.init(EULER, sigmas=[1.0, 0.0]), "sigmas must be finite and above the end of the path, 0, got"),
    (lambda: euler.init(EULER, timesteps=[1000.0]), "timesteps must lie in [0, 999] (num_train_timesteps = 1000), got"),
    (
        lambda: euler.init(dataclasses.replace(EULER, use_karras_sigmas=True, use_beta_sigmas=True), 4),
        "use_karras_sigmas and use_beta_sigmas exclude each other: keep one of them.",
    ),
    (
        lambda: euler.init(dataclasses.replace(EULER, use_karras_sigmas=True), timesteps=[500, 2]),
        "timesteps say the noise levels, and so does use_karras_sigmas: give num_steps.",
    ),
    (
        lambda: euler.init(dataclasses.replace(EULER, interpolation_type="log_linear"), timesteps=[500, 2]),
        "interpolation_type log_linear says the noise levels: give num_steps, not timesteps.",
    ),
    (
        lambda: euler.init(dataclasses.replace(EULER, use_karras_sigmas=True, sigma_min=20.0), 4),
        "0 < sigma_min <= sigma_max must hold, got 20 and 14.6146.",
    ),
    (
        lambda: euler.init(
            dataclasses.replace(EULER, use_karras_sigmas=True, sigma_min=0.002, final_sigmas_type="sigma_min"), 4
        ),
        "sigmas must not grow, but the path ends at 0.0291672 (final_sigmas_type = sigma_min), above its last level",
    ),
    (
        lambda: dpmpp.init(dataclasses.replace(DPMPP, algorithm_type="dpmsolver"), 4),
        "algorithm_type must be sde-dpmsolver++ or dpmsolver++, got 'dpmsolver': dataclasses.replace(config, algorithm",
    ),
    (lambda: dpmpp.init(dataclasses.replace(DPMPP, solver_order=3), 4), "solver_order must be 1 or 2, got 3:"),
    (lambda: dpmpp.init(dataclasses.replace(DPMPP, solver_type="bh1"), 4), "solver_type must be heun or midpoint, got"),
    (lambda: dpmpp.init(dataclasses.replace(DPMPP, use_flow_sigmas=True), 4), "use_flow_sigmas is for flow models,"),
    (
        lambda: euler.init(dataclasses.replace(EULER, final_sigmas_type="one"), 4),
        "final_sigmas_type must be zero or sigma_min, got 'one'.",
    ),
    (
        lambda: euler.init(dataclasses.replace(EULER, interpolation_type="cubic"), 4),
        "interpolation_type must be linear or log_linear, got 'cubic'.",
    ),
    (
        lambda: euler.init(dataclasses.replace(EULER, timestep_type="both"), 4),
        "timestep_type must be discrete or continuous, got 'both'.",
    ),
    (lambda: heun.init(heun.HeunConfig(beta_schedule="exp"), 4), "beta_schedule must be one of linear, scaled_linear,"),
    (
        lambda: euler.init(euler.EulerConfig(beta_start=0.0, timestep_spacing="leading"), 4),
        "the last of 4 timesteps has no noise (sigma = 0): end the path before it.",
    ),
]


@pytest.mark.parametrize(("call", "message"), VALUES, ids=[message[:40] for _, message in VALUES])
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ORDINARY)
def test_other_models_configs_are_refused(name: str) -> None:
    for config in (cmjax.cm.CMConfig(), cmjax.flow.FlowConfig(), cmjax.scm.SCMConfig()):
        with pytest.raises(TypeError, match=r"config must be a VPConfig, as cmjax.io.read_config makes it, got a"):
            getattr(cmjax, name).init(config, 2)
