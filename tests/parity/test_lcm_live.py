"""LCM against the installed reference, on random configurations."""

from __future__ import annotations

from typing import Any

import injected
import numpy as np
import pytest
import replay
from parity.live import SHAPES, TOLERANCE, Ledger, Noise, draw_vp, noised

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def knobs(rng: np.random.Generator, rank: int) -> dict[str, Any]:
    """Draw clipping, thresholding (the reference's needs rank 3) and the boundary's scale."""
    config: dict[str, Any] = {}
    if rng.random() < 0.4:
        config["timestep_scaling"] = float(10 ** rng.uniform(-2, 1.5))
    if rng.random() < 0.3:
        config |= {"clip_sample": True, "clip_sample_range": float(rng.uniform(0.2, 3))}
    if rank >= 3 and rng.random() < 0.3:
        config |= {
            "thresholding": True,
            "dynamic_thresholding_ratio": float(rng.uniform(0.5, 1)),
            "sample_max_value": float(rng.uniform(0.5, 4)),
        }
    return config


def test_every_step(number: int, ledger: Ledger) -> None:
    rng = np.random.default_rng((3, number))
    shape = SHAPES[number % len(SHAPES)]
    run = draw_vp(rng, dense=False)
    extra = knobs(rng, len(shape))
    n, begin = len(run.path), run.begin
    reference = diffusers.LCMScheduler(**run.reference_config, **extra)
    reference.set_timesteps(**run.reference_options)
    reference.set_begin_index(begin)
    state = injected.init("lcm", {**run.config, **extra}, run.options, begin)
    np.testing.assert_array_equal(np.asarray(state.timesteps), reference.timesteps[begin:].numpy())
    np.testing.assert_array_equal(run.path[begin:], reference.timesteps[begin:].numpy())

    draws = Noise(number)
    tables = run.exact_table, reference.alphas_cumprod.numpy()
    settings = {**extra, "prediction_type": run.config["prediction_type"]}
    x = noised("lcm", reference, state, tables, rng, shape, ledger)
    for k in range(begin, n):
        t, t_next = int(run.path[k]), int(run.path[k + 1]) if k + 1 < n else None
        m, z = rng.standard_normal(shape).astype(np.float32), draws.next(shape)
        x_next, x0 = reference.step(
            torch.from_numpy(m), torch.tensor(t), torch.from_numpy(x), generator=draws.generator, return_dict=False
        )
        state, taken = injected.step(state, m, x, z)
        assert taken.t == t
        exact, rounded = (
            replay.lcm_step(*replay.cast(table.dtype, m, x, z), table, t, t_next, **settings) for table in tables
        )
        # Cut to a range far below its size (epsilon near pure noise), x0 keeps the digits that float32 lost before the
        # cut: there the share is taken so that one float32 epsilon of the uncut x0 is allowed.
        uncut, _ = replay.x0_eps(settings["prediction_type"], m, x, run.exact_table[t])
        cut = extra.get("clip_sample", False) or extra.get("thresholding", False)
        floor = float(np.max(np.abs(uncut)) * np.finfo(np.float32).eps / TOLERANCE) if cut else 0.0
        ledger.judge("lcm", taken.x0, x0.numpy(), exact[1], rounded[1], floor)
        # A shortened custom path keeps its full count in the reference, which then noises the last sample again.
        miscounted = reference.num_inference_steps != n
        if t_next is None and miscounted:
            x_next = x0
        ledger.judge("lcm", taken.x, x_next.numpy(), exact[0], rounded[0], floor)
        x = x_next.numpy()
    ledger.counts["lcm", "configurations"] += 1
