"""Curricula: exact values, clamped at the end, one trace for all steps."""

import chex
import jax
import jax.numpy as jnp
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


def test_following_a_curriculum_traces_once():
    @jax.jit
    @chex.assert_max_traces(1)
    def at(k):
        return curricula.num_scales(k, total_steps=100), curricula.gap(k, (10, 10)), curricula.ema_decay(k)

    chex.clear_trace_counter()
    assert len({tuple(map(float, at(k))) for k in range(0, 100, 10)}) > 8
