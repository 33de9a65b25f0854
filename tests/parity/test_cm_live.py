"""Consistency models against the installed reference, on random configurations."""

from __future__ import annotations

from typing import Any

import injected
import jax.numpy as jnp
import numpy as np
import pytest
import replay
from parity.live import SHAPES, Ledger, Noise, subset

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def draw(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Draw a config, `init`'s options and the step to begin at."""
    N = int(rng.choice([2, 18, 40, 151, 201, int(rng.integers(2, 1001))]))
    config: dict[str, Any] = {"num_train_timesteps": N, "clip_denoised": bool(rng.random() < 0.5)}
    if rng.random() < 0.8:
        config["sigma_min"] = float(np.round(10 ** rng.uniform(-3, -0.5), 3))
        config["sigma_max"] = float(10 ** rng.uniform(0.5, 3))
        config["rho"] = float(rng.uniform(1, 10))
        config["sigma_data"] = float(rng.uniform(0.1, 2))
        config["s_noise"] = float(rng.uniform(0.9, 1.1))
    if rng.random() < 0.5:
        options: dict[str, Any] = {"num_steps": int(rng.integers(1, min(N, 12) + 1))}
        n = options["num_steps"]
    else:
        options = {"timesteps": subset(rng, N, 8)}
        n = len(options["timesteps"])
    return config, options, int(rng.integers(0, n)) if rng.random() < 0.3 else 0


def test_every_step(number: int, ledger: Ledger) -> None:
    rng = np.random.default_rng((1, number))
    config, options, begin = draw(rng)
    reference = diffusers.CMStochasticIterativeScheduler(**config)
    reference.set_timesteps(**{"num_inference_steps" if key == "num_steps" else key: v for key, v in options.items()})
    reference.set_begin_index(begin)
    state = injected.init("cm", config, options, begin)

    # The tables: bit-equal after the cast to float32.
    np.testing.assert_array_equal(np.asarray(state.sigmas), reference.sigmas[begin:].numpy())
    np.testing.assert_array_equal(np.asarray(state.timesteps), reference.timesteps[begin:].numpy().astype(np.float32))
    n = len(reference.timesteps) - begin
    assert state.num_steps == n

    shape = SHAPES[number % len(SHAPES)]
    draws = Noise(number)
    karras = {key: config[key] for key in ("sigma_min", "sigma_max", "rho") if key in config}
    exact_sigmas, _ = replay.cm_path(config["num_train_timesteps"], **options, **karras)
    exact_sigmas = exact_sigmas[begin:]
    sigmas = reference.sigmas[begin:].numpy()
    knobs = {key: value for key, value in config.items() if key in ("sigma_min", "sigma_data", "s_noise")}
    knobs["clip"] = config["clip_denoised"]

    x0, z = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    noised = reference.add_noise(
        torch.from_numpy(x0), torch.from_numpy(z), reference.timesteps[begin : begin + 1].repeat(shape[0])
    ).numpy()
    ours = cmjax.add_noise(state, jnp.asarray(x0), jnp.asarray(z))
    ledger.judge("cm", ours, noised, x0 + exact_sigmas[0] * z.astype(np.float64), x0 + sigmas[0] * z, floor=1.0)

    x = noised
    for k, t in enumerate(reference.timesteps[begin:]):
        m, z = rng.standard_normal(shape).astype(np.float32), draws.next(shape)
        x_in = reference.scale_model_input(torch.from_numpy(x), t).numpy()
        (x_next,) = reference.step(
            torch.from_numpy(m), t, torch.from_numpy(x), generator=draws.generator, return_dict=False
        )
        state, taken = injected.step(state, m, x, z)
        assert replay.distance(taken.x_in, x_in) <= 1e-6
        exact, _ = replay.cm_step(*replay.cast(np.float64, m, x, z), exact_sigmas[k], exact_sigmas[k + 1], **knobs)
        with np.errstate(invalid="ignore"):
            rounded = float32_step(m, x, z, sigmas[k], sigmas[k + 1], len(reference.timesteps) > 1, **knobs)
        ledger.judge("cm", taken.x, x_next.numpy(), exact, rounded, floor=1.0)
        x = x_next.numpy() if np.all(np.isfinite(x_next.numpy())) else taken.x.copy()
    ledger.counts["cm", "configurations"] += 1


def float32_step(m: Any, x: Any, z: Any, sigma: Any, sigma_next: Any, noisy: bool, **knobs: Any) -> Any:
    """Replay the reference's rounding: sigma^2 - sigma_min^2 in float32 leaves noise, or NaN, at the end."""
    exact_end, _ = replay.cm_step(m, x, z * 0, sigma, sigma_next, **knobs)
    sigma_min = np.float32(knobs.get("sigma_min", 0.002))
    sigma_next = np.maximum(sigma_next, sigma_min)
    stray = np.sqrt(sigma_next**2 - np.float32(knobs.get("sigma_min", 0.002) ** 2))
    return exact_end + knobs.get("s_noise", 1.0) * z * noisy * stray
