"""Curricula: exact values, clamped at the end, one trace for all steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import curricula


def test_num_scales_doubles_eight_times():
    levels = [11, 21, 41, 81, 161, 321, 641, 1281]  # Song & Dhariwal 2023: s0 = 10, s1 = 1280
    at = [curricula.num_scales(k, total_steps=800_000) for k in range(0, 800_000, 100_000)]
    assert [int(n) for n in at] == levels
    assert int(curricula.num_scales(99_999, total_steps=800_000)) == 11
    assert int(curricula.num_scales(10**9, total_steps=800_000)) == 1281


def test_num_scales_ends_at_its_end():
    # K' = floor(800 / (log2 75 + 1)) = 110, and min(2 * 2^7, 150) + 1 = 151
    at = [int(curricula.num_scales(k, total_steps=800, initial=2, final=150)) for k in (0, 109, 110, 769, 770, 10**6)]
    assert at == [3, 3, 5, 129, 151, 151]
    assert int(curricula.num_scales(0, total_steps=1, initial=7, final=7)) == 8
    assert curricula.num_scales(0, total_steps=800).dtype == jnp.int32


def test_num_scales_needs_room_to_double():
    with pytest.raises(ValueError, match="total_steps must be at least 8"):
        curricula.num_scales(0, total_steps=7)
    with pytest.raises(ValueError, match="1 <= initial <= final must hold, got 20 and 10"):
        curricula.num_scales(0, total_steps=100, initial=20, final=10)


@pytest.mark.parametrize(("total", "initial", "final"), [(800_000, 10, 1280), (400_000, 10, 640), (9_999, 2, 150)])
def test_num_scales_is_its_formula_at_every_step(total, initial, final):
    k = np.arange(total + 1000)
    interval = np.floor(total / (np.log2(np.floor(final / initial)) + 1))
    formula = np.minimum(initial * 2.0 ** np.floor(k / interval), final) + 1
    np.testing.assert_array_equal(curricula.num_scales(k, total_steps=total, initial=initial, final=final), formula)


PUBLISHED = [(800_000, 2, 200, 0.95), (1_000_000, 2, 150, 0.95), (800_000, 2, 150, 0.9)]  # ImageNet, LSUN, CIFAR-10
SHORT = [(400, 10, 1280, 0.9), (720, 1, 9, 0.5), (50, 3, 3, 0.9), (1, 2, 150, 0.9)]


@pytest.mark.parametrize(
    ("total", "initial", "final", "decay"), [*(pytest.param(*one, marks=pytest.mark.slow) for one in PUBLISHED), *SHORT]
)
def test_progressive_scales_and_their_decay_are_their_formulas_at_every_step(total, initial, final, decay):
    k = np.arange(total + 1000)
    growth = (final + 1) ** 2 - initial**2
    intervals = np.maximum(np.ceil(np.sqrt(np.minimum(k / total, 1) * growth + initial**2) - 1), 1)
    given = {"total_steps": total, "initial": initial, "final": final}
    np.testing.assert_array_equal(curricula.progressive_scales(k, **given), intervals + 1)
    decays = np.exp(initial * np.log(decay) / intervals)
    np.testing.assert_allclose(curricula.target_decay(k, decay=decay, **given), decays, rtol=1e-7)


def test_progressive_scales_where_float32_is_off_by_one():
    # s = ceil(sqrt(120405 / 800000 (201^2 - 2^2) + 2^2) - 1) = ceil(77.000006) = 78, which float32 rounds to 77 first
    assert int(curricula.progressive_scales(120_404, total_steps=800_000, final=200)) == 78
    assert int(curricula.progressive_scales(120_405, total_steps=800_000, final=200)) == 79
    assert curricula.progressive_scales(0, total_steps=10).dtype == jnp.int32
    assert curricula.target_decay(0, total_steps=10).dtype == jnp.float32


def test_progressive_scales_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        curricula.progressive_scales(0, total_steps=0)
    with pytest.raises(ValueError, match="1 <= initial <= final must hold, got 20 and 10"):
        curricula.target_decay(0, total_steps=9, initial=20, final=10)
    with pytest.raises(ValueError, match="decay must be above 0 and below 1, got 1"):
        curricula.target_decay(0, total_steps=9, decay=1)


def test_progressive_steps_halve_down_to_the_end():
    published = (50_000,) * 11 + (100_000,) * 2
    starts = [*range(0, 550_000, 50_000), 550_000, 650_000]
    at = [[int(curricula.progressive_steps(k, published)) for k in (start, start + 49_999)] for start in starts]
    assert at == [[2**i, 2**i] for i in range(12, -1, -1)]
    assert [int(curricula.progressive_steps(k, (2, 1), final=4)) for k in (-1, 0, 1, 2, 3, 10**9)] == [8, 8, 8, 4, 4, 4]


@pytest.mark.parametrize("curriculum", [curricula.gap, curricula.progressive_steps])
def test_a_curriculum_needs_a_stage(curriculum):
    with pytest.raises(ValueError, match="stage_steps must have at least one stage"):
        curriculum(0, ())


def test_progressive_steps_end_at_a_step_at_least():
    with pytest.raises(ValueError, match="final must be at least 1, got 0"):
        curricula.progressive_steps(0, (1,), final=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"initial": 0.0}, r"initial must lie in \(0, 1\], got 0.0"),
        ({"initial": 1.5}, r"initial must lie in \(0, 1\], got 1.5"),
        ({"q": 0.5}, "q must be at least 1, since gaps shrink, got 0.5"),
        ({"q": float("nan")}, "q must be at least 1, since gaps shrink, got nan"),
    ],
)
def test_a_gap_stays_in_its_range(given, message):
    with pytest.raises(ValueError, match=message):
        curricula.gap(0, (2, 1), **given)


def test_gap_halves_and_stays():
    assert [float(curricula.gap(k, (2, 1, 3))) for k in range(8)] == [1, 1, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert float(curricula.gap(5, (4, 4), q=4.0)) == 0.25
    assert [float(curricula.gap(k, (1, 1), initial=0.25)) for k in (0, 1)] == [0.25, 0.125]
    assert float(curricula.gap(10**6, (7,))) == 1.0


def test_ema_decay_rises_to_its_end():
    decays = jnp.stack([curricula.ema_decay(k, final=0.999) for k in range(0, 20_000, 100)])
    assert (
        bool((jnp.diff(decays) >= 0).all())
        and float(decays[0]) == pytest.approx(0.9)
        and float(decays[-1]) == pytest.approx(0.999)
    )


def test_power_ema_exponent_and_std_are_inverses():
    # Karras et al. 2024 and their code: std .05 -> 16.97, .10 -> 6.94, .01 -> 97.0
    at = [curricula.power_ema_exponent(std) for std in (0.01, 0.05, 0.1)]
    np.testing.assert_allclose(at, [96.995, 16.972, 6.937], atol=1e-3)
    for std in (0.001, 0.02, 0.25, 0.288, 12**-0.5):
        assert curricula.power_ema_std(curricula.power_ema_exponent(std)) == pytest.approx(std, rel=1e-9)
    assert curricula.power_ema_std(0.0) == 12**-0.5


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, float("nan")])
def test_power_ema_exponent_refuses_a_width_that_no_power_has(std):
    with pytest.raises(ValueError, match="std must be above 0 and at most"):
        curricula.power_ema_exponent(std)


def test_power_ema_std_refuses_a_falling_power():
    with pytest.raises(ValueError, match="exponent must be at least 0"):
        curricula.power_ema_std(-0.5)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_power_ema_weighs_training_by_its_power(std):
    n = 5000
    decay = np.asarray(curricula.power_ema_decay(np.arange(n), std=std), np.float64)
    formula = (1 - 1 / np.arange(1.0, n + 1)) ** (curricula.power_ema_exponent(std) + 1)
    np.testing.assert_allclose(decay, formula, rtol=0, atol=1.2e-7)
    weight = (1 - decay) * np.append(np.cumprod(decay[:0:-1])[::-1], 1.0)  # of each step in the average after n updates
    time = np.arange(1, n + 1) / n
    assert weight.sum() == pytest.approx(1.0) and decay[0] == 0.0
    mean = (weight * time).sum()
    assert ((weight * (time - mean) ** 2).sum()) ** 0.5 == pytest.approx(std, rel=2e-3)


def test_following_a_curriculum_traces_once():
    @jax.jit
    @chex.assert_max_traces(1)
    def at(k):
        scales = curricula.num_scales(k, total_steps=100), curricula.progressive_scales(k, total_steps=100)
        steps = curricula.gap(k, (10, 10)), curricula.progressive_steps(k, (30, 30))
        return *scales, *steps, curricula.ema_decay(k), curricula.power_ema_decay(k)

    chex.clear_trace_counter()
    assert len({tuple(map(float, at(k))) for k in range(0, 100, 10)}) > 8


def test_the_tangent_warms_up_and_stays():
    warm = [float(curricula.tangent_warmup(k, warmup_steps=10)) for k in (0, 1, 5, 10, 10**9)]
    assert warm == pytest.approx([0, 0.1, 0.5, 1, 1])
    assert float(curricula.tangent_warmup(0, warmup_steps=0)) == 1.0
    traced = jax.jit(lambda k: curricula.tangent_warmup(k, warmup_steps=10))(jnp.int32(3))
    assert float(traced) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="warmup_steps must be at least 0, got -1"):
        curricula.tangent_warmup(0, warmup_steps=-1)
