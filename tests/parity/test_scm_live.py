"""Consistency models in angles against the installed reference, on random configurations."""

from __future__ import annotations

import math
from typing import Any

import injected
import jax.numpy as jnp
import numpy as np
import pytest
import replay
from parity.live import SHAPES, Ledger, Noise

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def draw(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Draw a config, `init`'s options, and those of the reference's `set_timesteps`."""
    config = {"sigma_data": float(rng.choice([0.5, 1.0, rng.uniform(0.1, 2.0)]))}
    n = int(rng.integers(1, 9))
    if rng.random() < 0.4:
        angles = np.sort(rng.uniform(0.01, 1.57, n))[::-1].tolist()
        theirs = {"timesteps": [*angles, 0.0], "max_timesteps": None, "intermediate_timesteps": None}
        return config, {"timesteps": angles}, {"num_inference_steps": n, **theirs}
    options: dict[str, Any] = {"num_steps": n}
    if rng.random() < 0.5:
        options["max_timesteps"] = float(rng.choice([math.atan(80 / config["sigma_data"]), rng.uniform(1.3, 1.57)]))
    if n == 2:
        options["intermediate_timesteps"] = float(rng.uniform(0.1, 1.29)) if rng.random() < 0.8 else None
    theirs = {"num_inference_steps": n, "intermediate_timesteps": None}
    return config, options, theirs | {key: value for key, value in options.items() if key != "num_steps"}


def test_every_step(number: int, ledger: Ledger) -> None:
    rng = np.random.default_rng((4, number))
    config, options, theirs = draw(rng)
    reference = diffusers.SCMScheduler(**config)
    reference.set_timesteps(**theirs)
    reference.set_begin_index(0)
    state = injected.init("scm", config, options)
    angles, n = reference.timesteps.numpy(), state.num_steps
    even = "timesteps" not in options and options.get("intermediate_timesteps") is None and n > 1
    exact_angles = np.asarray(state.angles, np.float64)
    if even:  # spaced in float32 there, in float64 here
        highest = options.get("max_timesteps", 1.5708)
        np.testing.assert_array_equal(state.angles, np.linspace(highest, 0.0, n + 1).astype(np.float32))
        np.testing.assert_allclose(np.asarray(state.angles), angles, rtol=0, atol=2.4e-7)
    else:
        np.testing.assert_array_equal(np.asarray(state.angles), angles)

    shape = SHAPES[number % len(SHAPES)]
    draws = Noise(number)
    sigma_data = config["sigma_data"]
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(sigma_data)
    assert float(state.init_noise_sigma) == np.float32(sigma_data)
    for k in range(n):
        m, z = rng.standard_normal(shape).astype(np.float32), draws.next(shape)
        scaled = torch.from_numpy(m) * sigma_data  # as the pipeline scales what the network returns
        x_next, x0 = reference.step(
            scaled, reference.timesteps[k], torch.from_numpy(x), generator=draws.generator, return_dict=False
        )
        state, taken = injected.step(state, m, x, z)
        assert taken.t == exact_angles[k]
        np.testing.assert_allclose(taken.x_in, x / np.float32(sigma_data), rtol=3e-7)
        arrays = replay.cast(np.float64, m, x, z)
        exact = replay.scm_step(*arrays, *exact_angles[k : k + 2], sigma_data)
        rounded = replay.scm_step(m, x, z, *angles[k : k + 2], np.float32(sigma_data))
        ledger.judge("scm", taken.x, x_next.numpy(), exact[0], rounded[0])
        ledger.judge("scm", taken.x0, x0.numpy(), exact[1], rounded[1])
        x = x_next.numpy()
    ledger.counts["scm", "configurations"] += 1


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_loop_of_sana_sprint(steps: int) -> None:
    """Its pipeline's arithmetic around a network that was trained as a flow, with a function for the network."""
    rng = np.random.default_rng(steps)
    shape, sigma_data = (2, 4, 4, 3), 0.5

    def velocity(y: Any, s: Any, cond: Any = None) -> Any:
        return (torch if isinstance(y, torch.Tensor) else jnp).sin(3.0 * y) + s

    reference = diffusers.SCMScheduler()
    reference.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    reference.set_begin_index(0)
    state: Any = cmjax.scm.init(cmjax.scm.SCMConfig(), steps)
    model = cmjax.parameterization.trigflow_of_flow(velocity, scale=1.0)
    draws = Noise(steps)
    x = z = rng.standard_normal(shape).astype(np.float32)
    latents, x0 = torch.from_numpy(z) * sigma_data, None
    x = jnp.asarray(z) * state.init_noise_sigma
    for angle in reference.timesteps[:-1]:
        s = torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))
        norm = torch.sqrt(s**2 + (1 - s) ** 2)
        y = latents / sigma_data * norm
        out = ((1 - 2 * s) * y + (1 - 2 * s + 2 * s**2) * velocity(y, s)) / norm
        z = draws.next(shape)
        latents, x0 = reference.step(out * sigma_data, angle, latents, generator=draws.generator, return_dict=False)
        x_in, t = cmjax.model_input(state, x)
        x = state.renoise(state.predict(model(x_in, t), x), jnp.asarray(z))
        state = state.replace(index=state.index + 1)
        np.testing.assert_allclose(x, latents.numpy(), rtol=0, atol=2e-6)
    assert x0 is not None
    np.testing.assert_allclose(x / sigma_data, x0.numpy() / sigma_data, rtol=0, atol=4e-6)
