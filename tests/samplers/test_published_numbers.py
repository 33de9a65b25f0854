"""Numbers that a reader can redo: this room runs the reference's published test loops and compares their sums.

The setting is the one of the reference's own scheduler tests. The sample counts 0, 1/768, ... 767/768 through an array
of shape (3, 8, 8, 4) whose last axis is then moved to the front; the noise is the same sample counted backwards; the
network is x t / (t + 1). Sums of absolute values hide order and sign, so these stand beside the recorded arrays, not in
their place. Wherever a VP sampler asks for noise it is given the flipped sample; consistency models are given what the
reference's generator draws at seed 0.
"""

from __future__ import annotations

from typing import Any

import golden
import injected
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax

SAMPLE = np.moveaxis(np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4) / 768, -1, 0)
FLIPPED = np.moveaxis(np.arange(768, dtype=np.float32)[::-1].reshape(3, 8, 8, 4) / 768, -1, 0)

KINDS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
THRESHOLD = {"thresholding": True, "prediction_type": "sample"}
ETAS = (0.0, 0.3, 0.5, 1.0)

# prediction, steps: TCD's sums at eta = 0, 0.3, 0.5, 1, then LCM's
VP_SUMS = {
    ("epsilon", 1): (29.871536, 29.871536, 29.871536, 29.871536, 18.709679),
    ("epsilon", 2): (106.360603, 147.983704, 140.802170, 108.313942, 96.734482),
    ("epsilon", 4): (152.999695, 280.383881, 251.440582, 171.626724, 157.578049),
    ("epsilon", 10): (181.204010, 446.485046, 382.005676, 242.264389, 221.295166),
    ("epsilon", 50): (196.798706, 716.535217, 582.411743, 337.969727, 295.327454),
    ("v", 1): (343.974457, 343.974457, 343.974457, 343.974457, 356.043213),
    ("v", 2): (44.902340, 79.405342, 74.440720, 77.139633, 88.575142),
    ("v", 4): (29.255518, 72.856194, 66.399055, 47.349251, 39.007599),
    ("v", 10): (65.109024, 232.734467, 207.928787, 140.559067, 125.843109),
    ("v", 50): (84.102684, 504.887695, 425.478333, 261.441467, 227.120544),
    ("x0", 1): (393.396484, 393.396484, 393.396484, 393.396484, 383.116486),
    ("x0", 2): (513.306946, 654.786133, 635.692688, 540.649658, 526.761902),
    ("x0", 4): (597.805237, 991.886963, 918.456665, 701.154541, 681.877747),
    ("x0", 10): (657.609070, 1510.354858, 1337.256958, 957.274109, 926.142944),
    ("x0", 50): (665.286560, 2536.901367, 2201.663086, 1476.504150, 1383.018311),
}


def loop(
    sampler: str,
    config: dict[str, Any],
    init: dict[str, Any],
    x: np.ndarray[Any, Any],
    draws: np.ndarray[Any, Any] | None = None,
    begin: int = 0,
) -> tuple[np.ndarray[Any, Any], list[injected.Step]]:
    """Run one loop with the network x t / (t + 1): returns the result and every step."""
    state = injected.init(sampler, config, init, begin)
    taken = []
    step = injected.step_compiled if state.num_steps >= 10 else injected.step
    for k in range(state.num_steps):
        x_in, t = cmjax.model_input(state, jnp.asarray(x))
        m = np.asarray(x_in) * np.asarray(t, np.float32) / (np.asarray(t, np.float32) + 1)
        state, one = step(state, m, x, FLIPPED if draws is None else draws[k])
        x = one.x
        taken.append(one)
    return x, taken


def size(x: Any) -> float:
    """Sum absolute values, in float64."""
    return float(np.abs(np.asarray(x, np.float64)).sum())


@pytest.mark.parametrize(("kind", "n"), VP_SUMS)
def test_vp_loops(kind: str, n: int) -> None:
    """Each sum agrees to 3e-5 of itself: what is left is the reference's float32 table."""
    config = {"prediction_type": KINDS[kind]}
    *tcd, lcm = VP_SUMS[kind, n]
    for eta, expected in zip(ETAS, tcd, strict=True):
        x, _ = loop("tcd", config, {"num_steps": n, "eta": eta}, SAMPLE)
        assert size(x) == pytest.approx(expected, rel=3e-5)
    x, _ = loop("lcm", config, {"num_steps": n}, SAMPLE)
    assert size(x) == pytest.approx(lcm, rel=3e-5)


@pytest.mark.parametrize(("n", "total", "mean"), [(1, 29.8715, 0.0389), (10, 181.2040, 0.2359)])
def test_tcd_as_the_reference_tests_it(n: int, total: float, mean: float) -> None:
    x, _ = loop("tcd", {}, {"num_steps": n, "eta": 0.0}, SAMPLE)
    assert abs(size(x) - total) < 1e-3
    assert abs(size(x) / x.size - mean) < 1e-3


@pytest.mark.parametrize(
    ("config", "init", "expected"),
    [
        ({}, {"num_steps": 4, "original_inference_steps": 1000}, 282.496490),
        ({}, {"num_steps": 8, "original_inference_steps": 1000}, 407.597504),
        ({}, {"num_steps": 4, "strength": 0.5}, 337.568787),
        ({"beta_schedule": "linear"}, {"num_steps": 4}, 255.897339),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"num_steps": 4}, 988.288635),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"num_steps": 4}, 62.630539),
    ],
)
def test_tcd_grids_and_betas(config: dict[str, Any], init: dict[str, Any], expected: float) -> None:
    x, _ = loop("tcd", config, {**init, "eta": 0.3}, SAMPLE)
    assert size(x) == pytest.approx(expected, rel=3e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epsilon", [(500.0761, 343.8413), (549.1733, 393.5221), (515.3335, 395.4734), (280.3839, 280.3839)]),
        ("v", [(424.9695, 183.9625), (356.4831, 132.8501), (269.2891, 127.3319), (72.8562, 72.8562)]),
        ("x0", [(573.1092, 499.3063), (795.4185, 726.6436), (986.6738, 909.1443), (991.8870, 991.8870)]),
    ],
)
def test_tcd_step_by_step(kind: str, expected: list[tuple[float, float]]) -> None:
    """Both outputs of each step: the sample at the next timestep, and where it landed before the noise."""
    _, taken = loop("tcd", {"prediction_type": KINDS[kind]}, {"num_steps": 4, "eta": 0.3}, SAMPLE)
    for one, (after, landed) in zip(taken, expected, strict=True):
        assert size(one.x) == pytest.approx(after, rel=3e-5)
        assert size(one.landing) == pytest.approx(landed, rel=3e-5)


def test_lcm_step_by_step() -> None:
    expected = [(377.6292, 18.7097), (350.0917, 45.8398), (305.8233, 100.8528), (157.5780, 157.5780)]
    _, taken = loop("lcm", {}, {"num_steps": 4}, SAMPLE)
    for one, (after, denoised) in zip(taken, expected, strict=True):
        assert size(one.x) == pytest.approx(after, rel=3e-5)
        assert size(one.x0) == pytest.approx(denoised, rel=3e-5)


@pytest.mark.parametrize(
    ("config", "scale", "expected"),
    [
        ({"clip_sample": True, "clip_sample_range": 0.25}, 5, 133.5932),
        (THRESHOLD, 5, 581.3085),
        ({**THRESHOLD, "sample_max_value": 3, "dynamic_thresholding_ratio": 0.9}, 5, 450.8147),
        ({**THRESHOLD, "sample_max_value": 0.5}, 5, 765.2254),
        ({"timestep_scaling": 0.01}, 1, 167.1262),
    ],
)
def test_lcm_clipping_thresholding_and_scaling(config: dict[str, Any], scale: float, expected: float) -> None:
    x, _ = loop("lcm", config, {"num_steps": 4}, scale * SAMPLE)
    assert size(x) == pytest.approx(expected, rel=3e-5)


@pytest.mark.parametrize("sampler", ["tcd", "lcm"])
def test_vp_add_noise(sampler: str) -> None:
    """One image of the sample at each of four times."""
    for row, (t, expected) in enumerate([(0, 98.2656), (19, 107.6883), (499, 131.9645), (999, 101.8477)]):
        state = injected.init(sampler, {}, {"timesteps": [t]})
        noised = cmjax.add_noise(state, jnp.asarray(SAMPLE[row]), jnp.asarray(FLIPPED[row]))
        assert size(noised) == pytest.approx(expected, abs=1e-4)


# --- consistency models: N = 201, sigma from 0.002 to 80, the sample times 80 --------------------------------------

DRAWS = golden.load("draws")["z"]  # what the reference's generator draws first and second at seed 0
CM = {"num_train_timesteps": 201, "sigma_min": 0.002, "sigma_max": 80.0}


def test_cm_one_step() -> None:
    x, _ = loop("cm", CM, {"num_steps": 1}, 80 * SAMPLE)
    assert size(x) == pytest.approx(192.7613, abs=1e-3)
    assert size(x) / x.size == pytest.approx(0.250991, abs=1e-6)


def test_cm_ten_steps_start_from_the_ninth() -> None:
    """Image-to-image: the sample noised to the ninth of ten levels, then the last two steps."""
    state = injected.init("cm", CM, {"num_steps": 10}, begin=8)
    x = np.asarray(cmjax.add_noise(state, jnp.asarray(80 * SAMPLE), jnp.asarray(FLIPPED)))
    x_first, taken = loop("cm", CM, {"num_steps": 10}, x, DRAWS, begin=8)
    assert size(x_first) == pytest.approx(763.9186, abs=2e-2)
    assert size(taken[0].x) == pytest.approx(764.8728, abs=2e-2)
    assert x_first.shape == x.shape


@pytest.mark.parametrize(
    ("N", "timesteps", "first", "last"), [(201, [106, 0], 1205.9116, 347.6357), (40, [22, 0], 881.0198, 354.8913)]
)
def test_cm_two_steps(N: int, timesteps: list[int], first: float, last: float) -> None:
    x, taken = loop("cm", {**CM, "num_train_timesteps": N}, {"timesteps": timesteps}, 80 * SAMPLE, DRAWS)
    assert size(taken[0].x) == pytest.approx(first, rel=2e-5)
    assert size(x) == pytest.approx(last, rel=2e-5)


@pytest.mark.parametrize(
    ("N", "expected"),
    [
        (201, "80 45.313736 24.408342 12.381577 5.8389478 2.5152190 .96541691 .31828329 .085087202 .016720753 .002"),
        (40, "80 44.630203 23.610094 11.718514 5.3800044 2.2404397 .82294136 .25562951 .062762402 .010812047 .002"),
    ],
)
def test_cm_noise_levels(N: int, expected: str) -> None:
    state: Any = injected.init("cm", {"num_train_timesteps": N}, {"num_steps": 10})
    np.testing.assert_allclose(np.asarray(state.sigmas), [float(word) for word in expected.split()], rtol=1e-7)


@pytest.mark.parametrize(
    ("N", "index", "sigma", "t"),
    [
        (40, 22, 1.382368, 80.9495),
        (201, 106, 1.912844, 162.1477),
        (40, 17, 4.365562, 368.4367),
        (40, 18, 3.519699, 314.5939),
        (151, 67, 3.991219, 346.0242),
        (151, 62, 5.248503, 414.4857),
        (18, 11, 0.585348, -133.8871),
    ],
)
def test_cm_published_second_steps(N: int, index: int, sigma: float, t: float) -> None:
    """The second noise level of each published two-step schedule, and what the network is told there."""
    state: Any = injected.init("cm", {"num_train_timesteps": N}, {"timesteps": [index, 0]})
    np.testing.assert_allclose(np.asarray(state.sigmas), [80, sigma, 0.002], rtol=4e-7)
    np.testing.assert_allclose(np.asarray(state.timesteps), [1095.506658668, t], rtol=1e-6)
