"""Flows against the installed reference, both of its schedulers, on random configurations."""

from __future__ import annotations

import math
from typing import Any

import injected
import jax.numpy as jnp
import numpy as np
import pytest
import replay
from parity.live import SHAPES, TOLERANCE, Ledger, Noise

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def draw(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Draw a config, `init`'s options, and those of the reference's `set_timesteps`."""
    T = int(rng.choice([1000, int(rng.integers(10, 2000))]))
    config: dict[str, Any] = {"num_train_timesteps": T, "invert_sigmas": bool(rng.random() < 0.2)}
    options: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if rng.random() < 0.5:
        config["shift"] = float(np.round(10 ** rng.uniform(-0.7, 1.0), 2))
    else:
        config |= {"use_dynamic_shifting": True, "time_shift_type": str(rng.choice(["exponential", "linear"]))}
        if rng.random() < 0.5:
            options["mu"] = theirs["mu"] = float(rng.uniform(0.1, 3.0))
        else:
            config |= {"base_shift": float(rng.uniform(0.2, 1.0)), "max_shift": float(rng.uniform(1.0, 2.0))}
            tokens = int(rng.integers(64, 8192))
            options["image_seq_len"] = tokens
            theirs["mu"] = mu_of_the_pipelines(tokens, config["base_shift"], config["max_shift"])
    n = int(rng.integers(2, 10))
    if rng.random() < 0.2:
        config["shift_terminal"] = float(np.round(rng.uniform(0.01, 0.3), 2))
    elif rng.random() < 0.2:
        n = 1
    if rng.random() < 0.4:
        config[f"use_{rng.choice(['karras', 'exponential', 'beta'])}_sigmas"] = True
    how = rng.choice(["number", "trailing", "sigmas", "timesteps"], p=[0.4, 0.2, 0.3, 0.1])
    if how == "timesteps" and not set(config) - {"num_train_timesteps", "invert_sigmas", "shift"}:
        config["shift"] = 1.0  # the reference would shift the levels, and not the timesteps
        options["timesteps"] = np.sort(rng.uniform(0.01 * T, T, n))[::-1].tolist()
        theirs["timesteps"] = options["timesteps"]
    elif how == "sigmas":
        options["sigmas"] = np.sort(rng.uniform(0.01, 1.0, n))[::-1].tolist()
        theirs["sigmas"] = options["sigmas"]
    elif how == "trailing":
        options |= {"num_steps": n, "spacing": "trailing"}
        theirs["sigmas"] = np.linspace(1.0, 1 / n, n).tolist()
    else:
        options["num_steps"] = theirs["num_inference_steps"] = n
    return config, options, theirs


def mu_of_the_pipelines(tokens: int, base_shift: float, max_shift: float) -> float:
    """The line through (256, base_shift) and (4096, max_shift), in the order of operations of diffusers' pipelines."""
    slope = (max_shift - base_shift) / (4096 - 256)
    return tokens * slope + (base_shift - slope * 256)


def test_every_step(number: int, ledger: Ledger) -> None:
    rng = np.random.default_rng((3, number))
    config, options, theirs = draw(rng)
    how = ("euler", "stochastic", "lcm")[number % 3]
    ours: Any = cmjax.flow.FlowLCMConfig if how == "lcm" else cmjax.flow.FlowConfig
    if how == "stochastic":
        config["stochastic_sampling"] = True
    reference = getattr(diffusers, ours.scheduler)(**config)
    reference.set_timesteps(**theirs)
    state = cmjax.flow.init(ours(**config), **options)
    n, inverted = state.num_steps, config["invert_sigmas"]
    assert n == len(reference.timesteps)

    # The tables: bit-equal after the cast to float32.
    told = reference.timesteps.numpy()
    sigmas = 1 - reference.sigmas.numpy() if inverted else reference.sigmas.numpy()
    if inverted:  # 1 - (1 - s) is s, but for the last digits of a small s
        np.testing.assert_allclose(state.sigmas, sigmas, rtol=0, atol=6e-8)
        np.testing.assert_allclose(state.timesteps, told, rtol=2e-7, atol=1e-4)
    else:
        np.testing.assert_array_equal(np.asarray(state.sigmas), sigmas)
    if "timesteps" in options:  # told there as they were given, here as T times the level
        np.testing.assert_allclose(state.timesteps, told, rtol=2e-7)
    elif not inverted:
        np.testing.assert_array_equal(np.asarray(state.timesteps), told)

    shape = SHAPES[number % len(SHAPES)]
    draws = Noise(number)
    eta = float(how != "euler")
    levels = np.asarray(state.sigmas, np.float64)
    x0, z = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    x = z if inverted else torch_noised(reference, x0, z)
    mine = cmjax.add_noise(state, jnp.asarray(x0), jnp.asarray(z))
    exact = (1 - levels[0]) * x0 + levels[0] * z
    assert replay.distance(mine, exact) <= TOLERANCE
    if not inverted:  # there, the reference returns the picture as it is
        ledger.judge("flow", mine, x, exact, exact)
    for k, t in enumerate(reference.timesteps):
        m = rng.standard_normal(shape).astype(np.float32)
        z = draws.next(shape) if eta else np.zeros(shape, np.float32)
        given = torch.from_numpy(m), t, torch.from_numpy(x)
        (x_next,) = reference.step(*given, generator=draws.generator, return_dict=False)
        state, taken = injected.step(state, m, x, z)
        v = -m if inverted else m
        exact = replay.flow_step(*replay.cast(np.float64, v, x, z), levels[k], levels[k + 1], eta)
        if eta and inverted:  # the reference takes 1 - s for s there
            assert replay.distance(taken.x, exact[0]) <= TOLERANCE
            x = taken.x.copy()
            continue
        rounded = replay.flow_step(*replay.cast(np.float32, v, x, z), *sigmas[k : k + 2], np.float32(eta))
        ledger.judge("flow", taken.x, x_next.numpy(), exact[0], rounded[0])
        x = x_next.numpy()
    ledger.counts["flow", "configurations"] += 1


def torch_noised(reference: Any, x0: np.ndarray[Any, Any], z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Noise a picture to the reference's first level."""
    times = reference.timesteps[:1].repeat(len(x0))
    return reference.scale_noise(torch.from_numpy(x0), times, torch.from_numpy(z)).numpy()


def test_mu_of_flux2() -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    for tokens in (64, 1024, 4300, 4301, 16384):
        for steps in (1, 4, 50, 200):
            expected = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
            assert cmjax.schedules.flux2_mu(tokens, steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("number_of_steps", [1, 2, 4, 8])
def test_published_settings(number_of_steps: int) -> None:
    """The configs of few-step models, as their files have them, on the levels of their pipelines."""
    n = number_of_steps
    trailing = {"sigmas": np.linspace(1.0, 1 / n, n)}
    qwen = {"use_dynamic_shifting": True, "base_shift": math.log(3), "max_shift": math.log(3)}
    cases: tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
        ({"shift": 3.0}, {"num_steps": n}, {"num_inference_steps": n}),  # Stable Diffusion 3 Turbo
        ({"shift": 1.0}, {"num_steps": n, "spacing": "trailing"}, trailing),  # FLUX.1 schnell
        ({"shift": 3.0}, {"num_steps": n, "spacing": "trailing"}, trailing),  # Z-Image-Turbo
        (qwen, {"num_steps": n, "spacing": "trailing"}, {**trailing, "mu": math.log(3)}),  # Qwen-Image-Lightning
    )
    for config, options, theirs in cases:
        reference = diffusers.FlowMatchEulerDiscreteScheduler(**config)
        reference.set_timesteps(**theirs)
        read = cmjax.io.read_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **config})
        state = cmjax.flow.init(read, **options)
        np.testing.assert_array_equal(np.asarray(state.sigmas), reference.sigmas.numpy())
        np.testing.assert_array_equal(np.asarray(state.timesteps), reference.timesteps.numpy())
