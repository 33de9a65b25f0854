"""TCD against the installed reference, on random configurations."""

from __future__ import annotations

from typing import Any

import injected
import jax.numpy as jnp
import numpy as np
import pytest
import replay
from parity.live import SHAPES, Ledger, Noise, draw_vp, noised

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def test_every_step(number: int, ledger: Ledger) -> None:
    rng = np.random.default_rng((2, number))
    run = draw_vp(rng, dense=True)
    n = len(run.path)
    eta: Any = float(rng.choice([0.0, 0.3, 1.0, round(rng.uniform(), 2)]))
    if rng.random() < 0.2:
        eta = [round(float(one), 2) for one in rng.uniform(size=n)]
    etas = eta if isinstance(eta, list) else [eta] * n
    reference = diffusers.TCDScheduler(**run.reference_config)
    reference.set_timesteps(**run.reference_options)
    reference.set_begin_index(run.begin)
    begin = run.begin
    state = injected.init("tcd", run.config, {**run.options, "eta": eta}, begin)
    np.testing.assert_array_equal(np.asarray(state.timesteps), reference.timesteps[begin:].numpy())
    np.testing.assert_array_equal(run.path[begin:], reference.timesteps[begin:].numpy())

    shape = SHAPES[number % len(SHAPES)]
    draws = Noise(number)
    tables = run.exact_table, reference.alphas_cumprod.numpy()
    kind = run.config["prediction_type"]
    x = noised("tcd", reference, state, tables, rng, shape, ledger)
    for k in range(begin, n):
        t, t_next = int(run.path[k]), int(run.path[k + 1]) if k + 1 < n else 0
        m, z = rng.standard_normal(shape).astype(np.float32), draws.next(shape)
        x_next, x_s = reference.step(
            torch.from_numpy(m),
            torch.tensor(t),
            torch.from_numpy(x),
            eta=etas[k],
            generator=draws.generator,
            return_dict=False,
        )
        state, taken = injected.step(state, m, x, z)
        assert taken.t == t
        exact, rounded = (
            replay.tcd_step(*replay.cast(table.dtype, m, x, z), table, t, t_next, etas[k], prediction_type=kind)
            for table in tables
        )
        ledger.judge("tcd", taken.x, x_next.numpy(), exact[0], rounded[0])
        ledger.judge("tcd", taken.landing, x_s.numpy(), exact[1], rounded[1])
        x = x_next.numpy()
    ledger.counts["tcd", "configurations"] += 1


def test_landing_index_of_every_eta_and_timestep() -> None:
    """101,000 pairs, as torch computes them: eta = 0.00 ... 1.00, timesteps 0 ... 999."""
    config = cmjax.tcd.TCDConfig(num_train_timesteps=1001)
    for row in range(101):
        eta = row / 100
        state = cmjax.tcd.init(config, timesteps=list(range(1000, -1, -1)), eta=eta)
        theirs = torch.floor((1 - eta) * torch.arange(999, -1, -1)).to(torch.long).numpy()
        np.testing.assert_array_equal(np.asarray(state.landings)[:1000], theirs)


def test_recordings_are_what_the_installed_reference_computes() -> None:
    """The arrays of tests/golden, recorded again: within 1e-6 of the largest value, for other builds of torch."""
    from golden import CASES, load
    from golden.record import record_add_noise, record_path, record_tables

    inputs = dict(load("inputs"))
    again = {"paths": {}, "tables": record_tables(), "add_noise": record_add_noise(inputs)}
    for case in CASES.values():
        again["paths"] |= record_path(case, inputs)
    for name, arrays in again.items():
        stored = load(name)
        assert set(stored) == set(arrays)
        for key, array in arrays.items():
            assert replay.distance(array, stored[key]) <= 1e-6, key


def test_a_float32_eta_may_land_one_index_away() -> None:
    """float32(0.3) is not 0.3: a documented difference of at most one, not more."""
    config = cmjax.tcd.TCDConfig()
    for eta in (0.1, 0.3, 0.7):
        ours = cmjax.tcd.init(config, num_steps=50, eta=jnp.float32(eta))
        exact = cmjax.tcd.init(config, num_steps=50, eta=eta)
        assert int(np.max(np.abs(np.asarray(ours.landings) - np.asarray(exact.landings)))) <= 1
