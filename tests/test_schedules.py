"""The tables of the papers, by numbers that a reader can redo."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmjax import schedules as s


def test_karras_ends_and_published_middles() -> None:
    np.testing.assert_allclose(s.karras_sigmas([0, 39], 40), [80.0, 0.002], rtol=1e-12)
    published = {
        40: [(22, 1.382368), (17, 4.365562), (18, 3.519699)],
        201: [(106, 1.912844)],
        151: [(67, 3.991219), (62, 5.248503)],
    }
    for size, points in published.items():
        for index, sigma in points:
            assert s.karras_sigmas([index], size)[0] == pytest.approx(sigma, rel=1e-6)
    np.testing.assert_allclose(s.karras_sigmas([1, 2, 3], 40), [69.450946, 60.117395, 51.880318], rtol=1e-7)
    half = (1.8701222535385968 + 0.5 / 39 * (0.41155971378360795 - 1.8701222535385968)) ** 7
    assert s.karras_sigmas([0.5], 40)[0] == pytest.approx(half, rel=1e-12)
    assert s.karras_sigmas([0], 1)[0] == pytest.approx(80.0)  # a grid of one level, not 0 / 0


def test_network_times() -> None:
    np.testing.assert_allclose(
        s.sigma_to_timestep(np.array([80.0, 1.0, 0.002])), [1095.506658668, 0.0, -1553.652024606]
    )
    told = s.sigma_to_timestep(s.karras_sigmas([22], 40))
    assert told[0] == pytest.approx(80.9495, abs=1e-4)


def test_betas() -> None:
    np.testing.assert_allclose(s.betas("linear", 0.1, 0.5, 3), [0.1, 0.3, 0.5])
    np.testing.assert_allclose(s.betas("scaled_linear", 0.01, 0.09, 3), [0.01, 0.04, 0.09])  # roots 0.1, 0.2, 0.3
    cosine = s.betas("squaredcos_cap_v2", 0.1, 0.5, 4)
    f = [math.cos((u / 4 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(5)]
    np.testing.assert_allclose(cosine, [1 - f[1] / f[0], 1 - f[2] / f[1], 1 - f[3] / f[2], 0.999], rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"^beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, got 'sig"
    ):
        s.betas("sigmoid", 0.1, 0.5, 4)


def test_alphas_cumprod() -> None:
    table = s.alphas_cumprod()
    assert table.shape == (1000,)
    assert not table.flags.writeable
    picked = {
        0: 0.99914998,
        1: 0.99829602,
        19: 0.98224396,
        249: 0.67543209,
        499: 0.27766943,
        759: 0.05221289,
        999: 0.0046601,
    }
    for t, value in picked.items():
        assert table[t] == pytest.approx(value, rel=2e-6)
    assert s.alphas_cumprod("linear")[999] == pytest.approx(0.00157896, rel=1e-5)
    assert s.alphas_cumprod("squaredcos_cap_v2")[0] == pytest.approx(0.99995869, rel=1e-7)
    assert s.alphas_cumprod("squaredcos_cap_v2")[999] == pytest.approx(2.43e-9, rel=1e-2)
    trained = s.alphas_cumprod(num_train_timesteps=2, trained_betas=(0.1, 0.5))
    np.testing.assert_allclose(trained, [0.9, 0.45])
    alpha, sigma = s.rates(trained)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0)


def test_zero_terminal_snr() -> None:
    table = s.alphas_cumprod(rescale_betas_zero_snr=True)
    assert table[-1] == 0.0
    assert table[0] == pytest.approx(0.99914998, rel=1e-7)
    assert table[998] == pytest.approx(1.968e-7, rel=1e-3)
    assert table[499] == pytest.approx(0.242359, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_train_timesteps": 3, "trained_betas": (0.1, 0.2)},
            "trained_betas must have num_train_timesteps = 3 values, got 2",
        ),
        (
            {"num_train_timesteps": 2, "trained_betas": (0.1, 1.5)},
            "betas must lie in [0, 1], but the beta of timestep 1 is 1.5.",
        ),
        (
            {"schedule": "linear", "beta_start": 0.1, "beta_end": 2.0},
            "betas must lie in [0, 1], but the beta of timestep 474",
        ),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be at least 1, got 0."),
        (
            {"num_train_timesteps": 1, "rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr needs betas that add noise",
        ),
    ],
)
def test_numbers_that_make_no_schedule(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        s.alphas_cumprod(**arguments)
    assert str(error.value).startswith(message)


PATHS = {
    1: [999],
    2: [999, 499],
    3: [999, 679, 339],
    4: [999, 759, 499, 259],
    5: [999, 799, 599, 399, 199],
    6: [999, 839, 679, 499, 339, 179],
    7: [999, 859, 719, 579, 439, 299, 159],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
}


@pytest.mark.parametrize("n", PATHS)
def test_the_paths_of_a_thousand_timesteps(n: int) -> None:
    assert s.spread(s.training_grid(1000, 50), n).tolist() == PATHS[n]


def test_other_grids() -> None:
    assert s.training_grid(1000, 1000).tolist() == list(range(1000))
    assert s.spread(s.training_grid(1000, 1000), 4).tolist() == [999, 749, 499, 249]
    assert s.spread(s.training_grid(1000, 30), 4).tolist() == [989, 758, 494, 263]  # k = 33, so the grid ends at 989
    assert s.spread(s.training_grid(1000, 100), 60)[:3].tolist() == [999, 989, 969]
    for strength, path in {
        0.99: [979, 739, 499, 259],
        0.8: [799, 599, 399, 199],
        0.5: [499, 379, 259, 139],
        0.08: [79, 59, 39, 19],
    }.items():
        assert s.spread(s.training_grid(1000, 50, strength), 4).tolist() == path
    assert s.training_grid(1000, 50, 0.58)[-1] == 559  # 50 * 0.58 is 28.999... in double precision, and is truncated
    assert s.spread(s.training_grid(1000, 1000), 38)[1] == 973


def test_landings() -> None:
    arrivals = np.array([759, 499, 259, 0])
    assert s.landing(0.3, arrivals).tolist() == [531, 349, 181, 0]
    assert s.landing(0.5, arrivals).tolist() == [379, 249, 129, 0]
    assert s.landing(1.0, arrivals).tolist() == [0, 0, 0, 0]
    assert s.landing(0.0, arrivals).tolist() == arrivals.tolist()
    assert s.landing(np.array([0.3, 0.5, 1.0, 0.0]), arrivals).tolist() == [531, 249, 0, 0]
    assert s.landing(0.6, np.array([285])).tolist() == [114]  # 0.4 * 285, where other roundings give 113


def test_boundary_scalings() -> None:
    c_skip, c_out = s.boundary_scalings(np.array([0, 1, 19, 99, 999]), 10.0)
    np.testing.assert_allclose(c_skip, [1, 2.4938e-3, 6.9252e-6, 2.55e-7, 2.505e-9], rtol=1e-3)
    np.testing.assert_allclose(c_out, [0, 0.998752, 0.99999654, 0.99999988, 1], rtol=1e-6)
    np.testing.assert_allclose(s.boundary_scalings(np.array([999]), 0.01)[0], 2.5e-3, rtol=2e-3)
