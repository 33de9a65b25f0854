"""What the reference cannot do or ignores, against the formula in float64: this room covers the stated differences."""

from __future__ import annotations

from typing import Any

import golden
import injected
import jax.numpy as jnp
import numpy as np
import pytest
import replay

import cmjax

TOLERANCE = 5e-6
INPUTS = golden.load("inputs")
M, Z = INPUTS["m"], INPUTS["z"]


def run_cm(state: Any, sigmas: np.ndarray[Any, Any], **knobs: Any) -> None:
    """Hold a consistency model's whole path to the formula at the noise levels it should visit."""
    np.testing.assert_allclose(np.asarray(state.sigmas), sigmas, rtol=1e-7)
    np.testing.assert_allclose(np.asarray(state.timesteps), 250 * np.log(sigmas[:-1]), rtol=1e-6, atol=1e-5)
    assert float(state.init_noise_sigma) == pytest.approx(sigmas[0], rel=1e-7)
    x = INPUTS["x"][0] * np.float32(sigmas[0])
    for k in range(len(sigmas) - 1):
        exact, _ = replay.cm_step(*replay.cast(np.float64, M[k], x, Z[k]), sigmas[k], sigmas[k + 1], **knobs)
        state, ours = injected.step(state, M[k], x, Z[k])
        assert replay.distance(ours.x, exact, 1.0) <= TOLERANCE
        x = ours.x


@pytest.mark.parametrize("timesteps", [[22.5, 3.25], [38.9, 10.1, 0.0], [22], [39], [39, 38, 0.001]])
def test_cm_visits_fractional_grid_indices_and_starts_at_any_level(timesteps: list[float]) -> None:
    """The reference cuts fractions off, and keeps sigma_max as its starting noise wherever the path starts."""
    sigmas, _ = replay.cm_path(40, timesteps=timesteps)
    run_cm(cmjax.cm.init(cmjax.cm.CMConfig(), timesteps=timesteps), sigmas)


def test_cm_visits_given_noise_levels() -> None:
    sigmas = [80.0, 24.4, 5.84, 0.9, 0.0661]
    run_cm(cmjax.cm.init(cmjax.cm.CMConfig(), sigmas=sigmas), np.array([*sigmas, 0.002]))


def test_cm_s_noise_given_to_init() -> None:
    sigmas, _ = replay.cm_path(40, num_steps=4)
    run_cm(cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=4, s_noise=1.05), sigmas, s_noise=1.05)


def test_cm_last_step_is_the_identity_where_the_path_ends_at_sigma_min() -> None:
    """With every grid point visited, the last one is sigma_min: c_skip = 1 and c_out = 0, exactly."""
    state = cmjax.skip(cmjax.cm.init(cmjax.cm.CMConfig(clip_denoised=False), num_steps=40), 39)
    x = INPUTS["x"][0]
    _, ours = injected.step(state, M[0], x, 1e3 * Z[0])
    np.testing.assert_array_equal(ours.x, x)


@pytest.mark.parametrize(
    "bounds",
    [
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0},
        {"thresholding": True, "clip_sample": True, "clip_sample_range": 0.1},
    ],
    ids=["clip", "threshold", "threshold goes first"],
)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_tcd_bounds_x0_as_its_config_says(kind: str, bounds: dict[str, Any]) -> None:
    """The reference reads these keys and ignores them. eps stays the model's own."""
    config = {"prediction_type": kind, **bounds}
    state = injected.init("tcd", config, {"num_steps": 4, "eta": 0.4})
    table, path = replay.alphas_cumprod(), [999, 759, 499, 259, 0]
    x = INPUTS["x"][0] * np.float32(5)
    for k in range(4):
        unbounded = replay.tcd_step(*replay.cast(np.float64, M[k], x, Z[k]), table, path[k], path[k + 1], 0.4, kind)
        exact = replay.tcd_step(
            *replay.cast(np.float64, M[k], x, Z[k]), table, path[k], path[k + 1], 0.4, kind, **bounds
        )
        state, ours = injected.step(state, M[k], x, Z[k])
        assert replay.distance(ours.x, exact[0]) <= TOLERANCE
        assert replay.distance(ours.landing, exact[1]) <= TOLERANCE
        assert replay.distance(ours.x, unbounded[0]) > 1e-3
        x = ours.x


def test_lcm_never_noises_its_last_sample() -> None:
    """The reference does, after a custom path that strength has shortened: it counts the steps of the full path."""
    state = injected.init("lcm", {}, {"timesteps": [999, 759, 499, 259], "strength": 0.5})
    np.testing.assert_array_equal(np.asarray(state.timesteps), [499, 259])
    table = replay.alphas_cumprod()
    x = INPUTS["x"][0]
    for k, (t, t_next) in enumerate([(499, 259), (259, None)]):
        exact, _ = replay.lcm_step(*replay.cast(np.float64, M[k], x, Z[k]), table, t, t_next)
        state, ours = injected.step(state, M[k], x, Z[k])
        assert replay.distance(ours.x, exact) <= TOLERANCE
        x = ours.x
    np.testing.assert_array_equal(ours.x, ours.x0)


@pytest.mark.parametrize("T", [100, 1000])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tcd_small_eta_adds_the_right_small_noise(schedule: str, T: int) -> None:
    """Where the landing is next to the timestep, the noise is a small difference of large numbers."""
    config = {"beta_schedule": schedule, "num_train_timesteps": T, "original_inference_steps": 10}
    if schedule != "squaredcos_cap_v2":
        config |= {"beta_start": 1e-5, "beta_end": 0.005}
    table = replay.alphas_cumprod(**config)  # type: ignore[arg-type]
    for eta in (0.001, 0.01, 0.02):
        state = injected.init("tcd", config, {"num_steps": 5, "eta": eta})
        path = [*np.asarray(state.timesteps).tolist(), 0]
        x = INPUTS["x"][0]
        for k in range(5):
            exact, _ = replay.tcd_step(*replay.cast(np.float64, M[k], x, Z[k]), table, path[k], path[k + 1], eta)
            state, ours = injected.step(state, M[k], x, Z[k])
            assert replay.distance(ours.x, exact) <= TOLERANCE
            x = ours.x


def test_vp_add_noise_keeps_small_noise_in_half_precision() -> None:
    """At t = 0 the reference's bfloat16 adds no noise at all: 1 - alpha_bar rounds to 0. Here it is 0.029."""
    state = injected.init("tcd", {}, {"timesteps": [0]})
    z = jnp.ones((2, 3), jnp.bfloat16)
    noised = cmjax.add_noise(state, jnp.zeros((2, 3), jnp.bfloat16), z)
    assert noised.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(noised, np.float32), np.sqrt(0.00085), rtol=4e-3)
