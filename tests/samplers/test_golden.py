"""Every sampler against recorded arrays of the reference, its noise injected: this room needs no torch."""

from __future__ import annotations

from typing import Any

import golden
import injected
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay

import cmjax

TOLERANCE = 5e-6
# The reference keeps its tables in float32. Of the cosine schedule 2.4e-9 is left at t = T - 1, the product of a
# thousand rounded factors: what these paths may be off by is the table's own error, measured below.
ROUGH_TABLE = {"tcd-epsilon-cosine": 7e-6, "lcm-epsilon-cosine": 7e-6}

LCM_KNOBS = {
    "prediction_type",
    "timestep_scaling",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
}

INPUTS = golden.load("inputs")
TABLES = golden.load("tables")


def floor_of(case: golden.Case) -> float:
    """A consistency model's pictures live in [-1, 1]: its errors are shares of at least 1."""
    return 1.0 if case.sampler == "cm" else 0.0


def replayed(case: golden.Case, k: int, x: np.ndarray[Any, Any], dtype: Any = np.float64) -> tuple[Any, Any]:
    """Replay step k of a case by the formula: returns (x at the next level, x0 or TCD's landing)."""
    m, x, z = replay.cast(dtype, INPUTS["m"][k], x, INPUTS["z"][k])
    config, options = dict(case.config), dict(case.init)
    if case.sampler == "cm":
        karras = {key: config[key] for key in ("sigma_min", "sigma_max", "rho") if key in config}
        sigmas, _ = replay.cm_path(config.pop("num_train_timesteps", 40), **options, **karras)
        now, then = sigmas[case.begin + k : case.begin + k + 2].astype(dtype)
        return replay.cm_step(m, x, z, now, then, clip=config.pop("clip_denoised", True), **config)
    eta = options.pop("eta", 0.0)
    grid = options.pop("original_inference_steps", config.get("original_inference_steps", 50))
    path = replay.vp_timesteps(config.get("num_train_timesteps", 1000), grid, **options)[case.begin :]
    table = replay.alphas_cumprod(**config).astype(dtype)
    last = k + 1 == len(path)
    if case.sampler == "lcm":
        knobs = {key: value for key, value in config.items() if key in LCM_KNOBS}
        return replay.lcm_step(m, x, z, table, path[k], None if last else path[k + 1], **knobs)
    eta = eta[k] if isinstance(eta, list) else eta
    kind = config.get("prediction_type", "epsilon")
    return replay.tcd_step(m, x, z, table, path[k], 0 if last else path[k + 1], eta, kind)


def start(case: golden.Case, state: Any) -> np.ndarray[Any, Any]:
    """The recorded path's first sample."""
    first = float(state.init_noise_sigma) if case.sampler == "cm" else 1.0
    return INPUTS["x"][0] * np.float32(first * case.scale)


@pytest.mark.parametrize("case", golden.CASES.values(), ids=lambda case: case.name)
def test_every_step_is_the_references(case: golden.Case) -> None:
    recorded = golden.path(case)
    state = injected.init(case.sampler, case.config, case.init, case.begin)
    n = state.num_steps
    assert n == len(recorded["t"])
    most, floor = ROUGH_TABLE.get(case.name, TOLERANCE), floor_of(case)
    x = start(case, state)
    for k, x_next in enumerate(recorded["x"]):
        exact = replayed(case, k, x)
        state, ours = injected.step(state, INPUTS["m"][k], x, INPUTS["z"][k])
        second = ours.landing if case.sampler == "tcd" else ours.x0
        assert second is not None
        assert ours.x.dtype == np.float32
        assert ours.t == np.float32(recorded["t"][k])
        assert replay.distance(ours.x, x_next, floor) <= most
        assert replay.distance(ours.x, exact[0], floor) <= TOLERANCE
        assert replay.distance(second, exact[1], floor) <= TOLERANCE
        if "second" in recorded:
            assert replay.distance(second, recorded["second"][k], floor) <= most
        if "x_in" in recorded:
            assert replay.distance(ours.x_in, recorded["x_in"][k]) <= 1e-6
        x = x_next


@pytest.mark.parametrize(
    "name",
    [
        "cm-201-n10",
        "cm-41-at-40-20-10-5-0-free",
        "tcd-epsilon-n10-eta0.3",
        "tcd-v_prediction-cosine",
        "tcd-eta-per-step",
        "tcd-sample-n10-eta1.0",
        "lcm-epsilon-n10",
        "lcm-threshold-0.9-3.0",
        "lcm-v_prediction-zero-snr",
    ],
)
def test_whole_paths_end_where_the_references_do(name: str) -> None:
    """Without looking at the recording on the way: errors may add up, and stay small."""
    case = golden.CASES[name]
    recorded = golden.path(case)
    state = injected.init(case.sampler, case.config, case.init, case.begin)
    x = start(case, state)
    for k in range(len(recorded["t"])):
        state, ours = injected.step(state, INPUTS["m"][k], x, INPUTS["z"][k])
        x = ours.x
        assert replay.distance(x, recorded["x"][k], floor_of(case)) <= 1e-5


@pytest.mark.parametrize("name", golden.KARRAS)
def test_noise_levels_and_network_times_are_bit_equal(name: str) -> None:
    config, options = golden.KARRAS[name]
    state: Any = injected.init("cm", config, options)
    np.testing.assert_array_equal(np.asarray(state.sigmas), TABLES[f"sigmas/{name}"])
    np.testing.assert_array_equal(np.asarray(state.timesteps), TABLES[f"timesteps/{name}"].astype(np.float32))


@pytest.mark.parametrize("name", golden.BETAS)
def test_signal_rates_are_the_references_up_to_its_float32(name: str) -> None:
    config = golden.BETAS[name]
    recorded = TABLES[f"alphas_cumprod/{name}"].astype(np.float64)
    exact = replay.alphas_cumprod(**config)
    T = len(recorded)
    state: Any = injected.init("tcd", config, {"timesteps": list(range(T - 1, -1, -1))})
    ours = []
    for _ in range(0, T, T // 20):  # twenty entries, evenly spread, by way of the public rates
        ours.append([float(rate) for rate in state.rates()])
        state = state.replace(index=state.index + T // 20)
    alpha, sigma = np.array(ours).T
    at = np.arange(T - 1, -1, -1)[:: T // 20]
    np.testing.assert_allclose(alpha, np.sqrt(exact[at]), rtol=1.2e-7, atol=0)
    np.testing.assert_allclose(sigma, np.sqrt(1 - exact[at]), rtol=1.2e-7, atol=0)
    # The distance to the reference is its table's: 1.3e-5 where beta is capped at 0.999, 2e-6 elsewhere, and at a
    # zero terminal SNR the differences of small numbers.
    most = {"cosine": 1.5e-5, "zero-snr": 2e-4}.get(name, 3e-6)
    np.testing.assert_allclose(exact, recorded, rtol=most, atol=1e-12)


def test_landing_index_of_every_eta_and_timestep() -> None:
    """101,000 pairs: eta = 0.00 ... 1.00, timesteps 0 ... 999, as the reference's own step reads its table."""
    recorded = golden.load("landings")["landings"]
    assert recorded.shape == (101, 1000)
    config = cmjax.tcd.TCDConfig(num_train_timesteps=1001)
    timesteps = list(range(1000, -1, -1))
    wrong = 0
    for row, landings in enumerate(recorded):
        state = cmjax.tcd.init(config, timesteps=timesteps, eta=row / 100)
        ours = np.asarray(state.landings)[:1000][::-1]  # the step from t lands below t - 1
        wrong += int(np.sum(ours != landings))
        assert np.array_equal(replay.landing(row / 100, np.arange(1000)), landings)
    assert wrong == 0


@pytest.mark.parametrize("name", golden.ADD_NOISE)
def test_add_noise_with_given_noise(name: str) -> None:
    sampler, config, times = golden.ADD_NOISE[name]
    recorded = golden.load("add_noise")[f"{name}/x"]
    for t, noised in zip(times, recorded, strict=True):
        options = {"num_steps": 10} if sampler == "cm" else {"timesteps": [t]}
        state = injected.init(sampler, config, options, begin=t if sampler == "cm" else 0)
        ours = cmjax.add_noise(state, jnp.asarray(INPUTS["m"][0]), jnp.asarray(INPUTS["z"][0]))
        assert replay.distance(ours, noised) <= TOLERANCE
        if sampler != "cm":
            bar = replay.alphas_cumprod(**config)[t]
            exact = np.sqrt(bar) * INPUTS["m"][0] + np.sqrt(1 - bar) * INPUTS["z"][0].astype(np.float64)
            assert replay.distance(ours, exact) <= 2e-7


def test_no_nan_for_any_sigma_min() -> None:
    """The reference gives NaN for 245 of these 999: where sigma_min^2 rounds to more than the square of its float32."""
    states = [
        injected.init("cm", {"sigma_min": k / 1000, "clip_denoised": False}, {"num_steps": 2}) for k in range(1, 1000)
    ]
    every = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states)
    x = jnp.asarray(INPUTS["x"][0][0, 0])
    first = jax.vmap(injected.taken, (0, None, None, None))(every, x, x, 1e3 * x)
    last = jax.vmap(injected.taken, (0, None, 0, None))(
        every.replace(index=every.index + 1), x, jnp.asarray(first.x), 1e3 * x
    )
    assert np.all(np.isfinite(first.x))
    assert np.all(np.isfinite(last.x))
    assert np.array_equal(last.x, last.x0)  # the last noise weighs exactly nothing
