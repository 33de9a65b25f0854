"""Flows and angles: this room checks what their `init` plans and refuses, and how the rules relate to each other."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

import cmjax
from cmjax import flow, scm
from cmjax.parameterization import from_trigflow, trigflow_of_flow

FLOW, SCM = flow.FlowConfig(), scm.SCMConfig()
DYNAMIC = flow.FlowConfig(use_dynamic_shifting=True)
LINEAR = flow.FlowConfig(use_dynamic_shifting=True, time_shift_type="linear")
DATA = Gaussian(mean=0.3, std=0.6)
KEY = jax.random.key(0)


def levels(config: Any, *args: Any, **options: Any) -> list[float]:
    return np.asarray(flow.init(config, *args, **options).sigmas, np.float64).round(4).tolist()


# ---- what is planned -------------------------------------------------------------------------------------------------


def test_levels_are_shifted_stretched_and_spaced() -> None:
    trailing = {"num_steps": 4, "spacing": "trailing"}
    assert levels(FLOW, **trailing) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert levels(flow.FlowConfig(shift=3.0), **trailing) == [1.0, 0.9, 0.75, 0.5, 0.0]
    assert levels(LINEAR, **trailing, mu=3.0) == [1.0, 0.9, 0.75, 0.5, 0.0]
    assert levels(DYNAMIC, **trailing, mu=math.log(3.0)) == [1.0, 0.9, 0.75, 0.5, 0.0]
    assert levels(FLOW, sigmas=[1.0, 0.75, 0.5, 0.25]) == levels(FLOW, timesteps=[1000, 750, 500, 250])
    assert levels(flow.FlowConfig(shift=9.0), timesteps=[1000, 750]) == [1.0, 0.75, 0.0]  # as told: not shifted
    assert levels(FLOW, 2) == [1.0, 0.001, 0.0]
    assert levels(flow.FlowConfig(shift_terminal=0.1), **trailing) == [1.0, 0.7, 0.4, 0.1, 0.0]
    spaced: dict[str, Any] = {"karras": {}, "exponential": {}, "beta": {}}
    for name in spaced:
        keys: dict[str, Any] = {f"use_{name}_sigmas": True}
        spaced[name] = flow.FlowConfig(**keys)
    assert levels(spaced["exponential"], sigmas=[1.0, 0.5, 0.01]) == [1.0, 0.1, 0.01, 0.0]
    assert levels(spaced["karras"], sigmas=[1.0, 0.5, 0.01])[1] == round(((1 + 0.01 ** (1 / 7)) / 2) ** 7, 4)
    assert levels(spaced["beta"], sigmas=[1.0, 0.2, 0.01]) == [1.0, 0.505, 0.01, 0.0]  # symmetric
    assert levels(FLOW, 4, spacing="trailing", strength=0.5) == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert levels(FLOW, 2, strength=0.5) == [0.5, 0.001, 0.0]
    assert levels(FLOW, sigmas=[0.9, 0.6, 0.3], strength=0.7) == [0.6, 0.3, 0.0]
    assert flow.init(FLOW, sigmas=[0.9, 0.6]).init_noise_sigma == np.float32(0.9)


# Levels that diffusers 0.42.1 prints for four steps
RECORDED: list[tuple[dict[str, Any], dict[str, Any], list[float]]] = [
    ({"shift": 3.0}, {}, [1.0, 0.857692301, 0.602150559, 0.00892857183]),
    ({"shift": 3.0, "use_karras_sigmas": True}, {}, [1.0, 0.286693931, 0.0625886321, 0.00892857183]),
    ({"shift": 3.0, "use_beta_sigmas": True}, {}, [1.0, 0.727045774, 0.281882823, 0.00892857183]),
    (
        {"shift_terminal": 0.1, "use_exponential_sigmas": True},
        {},
        [1.0, 0.464158893, 0.215443462, 0.100000001],
    ),
    (
        {"use_dynamic_shifting": True},
        {"spacing": "trailing", "image_seq_len": 1024},
        [1.0, 0.849234819, 0.652489424, 0.384944737],
    ),
]


@pytest.mark.parametrize(("config", "options", "expected"), RECORDED)
def test_levels_are_the_references_bit_by_bit(config: Any, options: Any, expected: list[float]) -> None:
    state = flow.init(flow.FlowConfig(**config), 4, **options)
    np.testing.assert_array_equal(np.asarray(state.sigmas), np.float32([*expected, 0.0]))


def test_the_size_of_the_picture_gives_mu() -> None:
    def same(one: Any, other: Any) -> None:
        np.testing.assert_allclose(flow.init(DYNAMIC, 5, **one).sigmas, flow.init(DYNAMIC, 5, **other).sigmas)

    same({"image_seq_len": 256}, {"mu": 0.5})
    same({"image_seq_len": 4096}, {"mu": 1.15})
    same({"image_seq_len": 2176}, {"mu": 0.825})
    fixed = flow.FlowConfig(use_dynamic_shifting=True, base_shift=math.log(3), max_shift=math.log(3))  # Qwen-Lightning
    np.testing.assert_allclose(flow.init(fixed, sigmas=[1.0, 0.5]).sigmas, [1.0, 0.75, 0.0], rtol=1e-6)


def test_an_inverted_flow_is_the_flow_with_its_time_and_its_network_turned() -> None:
    usual, turned = flow.init(FLOW, 3, eta=0.5), flow.init(flow.FlowConfig(invert_sigmas=True), 3, eta=0.5)
    np.testing.assert_array_equal(usual.sigmas, turned.sigmas)
    np.testing.assert_allclose(turned.timesteps, 1000 - np.asarray(usual.timesteps), atol=1e-3)
    out, x, z = jnp.linspace(-1, 1, 5), jnp.linspace(2, -3, 5), jnp.ones(5)
    one = usual.renoise(usual.predict(out, x), z)
    np.testing.assert_array_equal(turned.renoise(turned.predict(-out, x), z), one)


def test_the_scheduler_chooses_eta_and_eta_is_a_knob() -> None:
    for config, eta in ((FLOW, 0), (flow.FlowConfig(stochastic_sampling=True), 1), (flow.FlowLCMConfig(), 1)):
        assert flow.init(config, 2).etas.tolist() == [eta, eta]
        assert flow.init(config, 2, eta=[0.5, 0.25]).etas.tolist() == [0.5, 0.25]
    pred, z = cmjax.Prediction(jnp.float32(2.0), jnp.float32(-1.0)), jnp.float32(1.0)
    state = flow.init(FLOW, sigmas=[1.0, 0.6], eta=0.0)  # lands on (0.4, 0.6)
    assert state.renoise(pred, 1e3 * z) == pytest.approx(0.4 * 2.0 - 0.6)
    state = flow.init(FLOW, sigmas=[1.0, 0.6], eta=1.0)
    assert state.renoise(pred, z) == pytest.approx(0.4 * 2.0 + 0.6)
    state = flow.init(FLOW, sigmas=[1.0, 0.6], eta=0.5)  # lands on (0.7, 0.3); 4/7 of it is kept
    assert state.land(pred) == pytest.approx(0.7 * 2.0 - 0.3)
    fresh = math.sqrt(0.6**2 - (0.3 * 4 / 7) ** 2)
    assert state.renoise(pred, z) == pytest.approx(4 / 7 * (0.7 * 2.0 - 0.3) + fresh)
    assert np.isnan(jax.jit(lambda eta: flow.init(FLOW, 2, eta=eta).etas)(1.5)).all()


def test_levels_and_angles_may_be_traced() -> None:
    config = flow.FlowConfig(shift=3.0)
    traced = jax.jit(lambda sigmas: flow.init(config, sigmas=sigmas))(jnp.array([1.0, 0.5]))
    for one, other in zip(*map(jax.tree.leaves, (traced, flow.init(config, sigmas=[1.0, 0.5]))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)

    def reward(angle: jax.Array) -> jax.Array:
        state = scm.init(SCM, timesteps=jnp.stack([jnp.float32(1.5), angle]))
        return cmjax.sample(lambda x, t, cond: jnp.sin(x), state, jnp.ones((1, 2)), KEY).mean()

    assert float(jax.grad(reward)(1.0)) != 0.0


def test_angles() -> None:
    def path(*args: Any, **options: Any) -> list[float]:
        return np.asarray(scm.init(SCM, *args, **options).angles, np.float64).round(4).tolist()

    assert path(1) == [1.5708, 0.0]
    assert path(2) == [1.5708, 1.3, 0.0]
    assert path(2, intermediate_timesteps=None) == [1.5708, 0.7854, 0.0]
    assert path(4, max_timesteps=1.2) == [1.2, 0.9, 0.6, 0.3, 0.0]
    assert path(2, strength=0.5) == [0.7854, 0.65, 0.0]
    assert path(timesteps=[1.5, 1.0, 0.5], strength=0.7) == [1.0, 0.5, 0.0]
    assert scm.init(scm.SCMConfig(sigma_data=0.7), 1).init_noise_sigma == np.float32(0.7)


# ---- how the rules relate --------------------------------------------------------------------------------------------


def velocity(y: jax.Array, s: jax.Array, cond: Any = None) -> jax.Array:
    return jnp.sin(2.0 * y) - s


def test_angles_are_a_flow_noised_anew_under_another_clock() -> None:
    """With s = sin a / (cos a + sin a), y = x / (cos a + sin a) goes where x goes, whatever the network."""
    angles = np.array([1.5, 1.2, 0.7])
    s = np.sin(angles) / (np.cos(angles) + np.sin(angles))
    a: Any = scm.init(scm.SCMConfig(sigma_data=1.0), timesteps=angles)
    b: Any = flow.init(flow.FlowConfig(num_train_timesteps=1), sigmas=s, eta=1.0)
    net, x = trigflow_of_flow(velocity, scale=1.0), jnp.linspace(-2.0, 2.0, 6)
    y = x / float(np.sin(1.5) + np.cos(1.5))
    for k in range(3):
        z = jax.random.normal(jax.random.key(k), (6,))
        (x_in, t), (y_in, time) = a.model_input(x), b.model_input(y)
        x, y = a.renoise(a.predict(net(x_in, t), x), z), b.renoise(b.predict(velocity(y_in, time), y), z)
        a, b = (state.replace(index=state.index + 1) for state in (a, b))
        angle = float(a.angles[k + 1])
        np.testing.assert_allclose(x / (np.cos(angle) + np.sin(angle)), y, rtol=0, atol=2e-6)


def test_angles_are_a_consistency_model_under_another_clock() -> None:
    """With sigma = sigma_data tan a, cos a x_sigma is x; `cm` ends at its least level, so that is made tiny."""
    config = cmjax.cm.CMConfig(sigma_min=1e-5, sigma_max=80.0, clip_denoised=False)
    sigmas = np.array([60.0, 2.0, 0.4])
    angles = np.arctan(sigmas / 0.5)
    a: Any = scm.init(SCM, timesteps=angles)
    b: Any = cmjax.cm.init(config, sigmas=sigmas)
    model, x = from_trigflow(velocity, config), jnp.linspace(-0.5, 0.5, 6)
    y = x / float(np.cos(angles[0]))
    for k in range(3):
        z = jax.random.normal(jax.random.key(k), (6,))
        (x_in, t), (y_in, time) = a.model_input(x), b.model_input(y)
        x, y = a.renoise(a.predict(velocity(x_in, t), x), z), b.renoise(b.predict(model(y_in, time, None), y), z)
        a, b = (state.replace(index=state.index + 1) for state in (a, b))
        np.testing.assert_allclose(x / np.cos(float(a.angles[k + 1])), y, rtol=0, atol=1e-4)


def flow_error(n: int) -> float:
    """How far Euler's steps end from the flow of Gaussian data, from s = 0.9 on."""

    def model(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        s = t / 1000.0
        return (x - DATA.x0(x, 1.0 - s, s)) / s

    x = jnp.linspace(-2.0, 2.0, 5)[:, None]
    end = cmjax.sample(model, flow.init(FLOW, sigmas=np.linspace(0.9, 0.0, n + 1)[:-1]), x, KEY)
    return float(jnp.abs(end - DATA.flow(x, (0.1, 0.9), (1.0, 0.0))).max())


def test_eulers_step_is_of_first_order_on_gaussian_data() -> None:
    errors = [flow_error(n) for n in (16, 32, 64)]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.1)


# ---- what is refused -------------------------------------------------------------------------------------------------

BETA_TOO = flow.FlowConfig(use_karras_sigmas=True, use_beta_sigmas=True)
TERMINAL = flow.FlowConfig(shift_terminal=0.1)
VALUES = [
    (lambda: flow.init(flow.FlowConfig(shift=0.0), 4), "shift must be positive, got 0; 1 moves nothing."),
    (lambda: flow.init(FLOW, 0), "num_steps must be between 1 and num_train_timesteps = 1000, got 0."),
    (lambda: flow.init(FLOW, 1001), "num_steps must be between 1 and num_train_timesteps = 1000, got 1001."),
    (lambda: flow.init(FLOW, 20, strength=0.01), "num_steps must be between 1 and 10 (num_train_timesteps = 1000 tim"),
    (lambda: flow.init(FLOW, 2, strength=1e-4), "strength = 0.0001 leaves none of 1000 levels; it must be at least"),
    (lambda: flow.init(FLOW), "Give exactly one of num_steps, timesteps and sigmas, got none."),
    (
        lambda: flow.init(FLOW, sigmas=[0.5, 0.6]),
        "sigmas must be strictly decreasing, but sigmas[1] = 0.6 follows 0.5.",
    ),
    (lambda: flow.init(FLOW, sigmas=[1.2, 0.6]), "sigmas must lie in (0, 1], got 1.2. (The final 0 is added.)"),
    (lambda: flow.init(FLOW, sigmas=[1.0, 0.0]), "sigmas must lie in (0, 1], got 0. (The final 0 is added.)"),
    (lambda: flow.init(FLOW, timesteps=[1001]), "timesteps must lie in (0, 1000], got 1001. (The"),
    (lambda: flow.init(DYNAMIC, 4), "use_dynamic_shifting needs mu, or image_seq_len, the number of tokens that the"),
    (lambda: flow.init(FLOW, 4, mu=1.0), "mu and image_seq_len are for use_dynamic_shifting, but this config has the"),
    (lambda: flow.init(LINEAR, 4, mu=-1.0), "mu must be a finite number, positive where time_shift_type is 'linear'"),
    (lambda: flow.init(FLOW, 4, spacing="leading"), "spacing must be 'linspace' or 'trailing', got 'leading'."),
    (lambda: flow.init(FLOW, 4, eta=1.5), "eta must lie in [0, 1], got 1.5."),
    (
        lambda: flow.init(FLOW, 4, eta=[0.1, 0.2]),
        "eta must be a scalar or have one value per step, (4,), or one per image",
    ),
    (lambda: flow.init(BETA_TOO, 4), "Only one of use_karras_sigmas and use_beta_sigmas can space the levels: set one"),
    (lambda: flow.init(TERMINAL, 1), "shift_terminal = 0.1 stretches the path between its first level and its last:"),
    (lambda: flow.init(flow.FlowConfig(shift_terminal=1.0), 4), "shift_terminal must lie in [0, 1), got 1.0."),
    (lambda: flow.init(flow.FlowConfig(shift=1e9), 4), "the levels must fall from at most 1 to above 0, but shift ="),
    (lambda: flow.init(flow.FlowConfig(time_shift_type="log"), 4), "time_shift_type must be 'exponential' or 'linear'"),
    (lambda: flow.init(flow.FlowConfig(num_train_timesteps=0), 1), "num_train_timesteps must be at least 1, got 0."),
    (
        lambda: flow.init(flow.FlowConfig(max_image_seq_len=256), 1),
        "max_image_seq_len must be above base_image_seq_len",
    ),
    (
        lambda: flow.init(flow.FlowLCMConfig(scale_factors=(0.5, 1.0)), 2),
        "scale_factors enlarge samples between steps, which a path cannot do: set them to None",
    ),
    (lambda: scm.init(SCM, 0), "num_steps must be between 1 and num_train_timesteps = 1000, got 0."),
    (lambda: scm.init(SCM, 4, max_timesteps=1.6), "max_timesteps must lie in (0, 1.5708], angles from data to noise,"),
    (lambda: scm.init(SCM, 4, max_timesteps=0.0), "max_timesteps must lie in (0, 1.5708], angles from data to noise,"),
    (lambda: scm.init(SCM, 2, max_timesteps=1.2), "intermediate_timesteps must be below max_timesteps = 1.2, got 1.3;"),
    (
        lambda: scm.init(SCM, 4, intermediate_timesteps=1.0),
        "intermediate_timesteps is the second angle of two, but num",
    ),
    (
        lambda: scm.init(SCM, timesteps=[1.5, 0.0]),
        "timesteps must lie in (0, 1.5708], angles from data to noise, got 0",
    ),
    (
        lambda: scm.init(SCM, timesteps=[999, 1]),
        "timesteps must lie in (0, 1.5708], angles from data to noise, got 999",
    ),
    (
        lambda: scm.init(scm.SCMConfig(prediction_type="scm"), 2),
        "prediction_type must be 'trigflow', the velocity in an",
    ),
    (lambda: scm.init(scm.SCMConfig(sigma_data=0.0), 2), "sigma_data must be positive, got 0."),
]


@pytest.mark.parametrize(("call", "message"), VALUES, ids=[message[:40] for _, message in VALUES])
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(message)


def test_the_configs_of_others_are_refused() -> None:
    with pytest.raises(TypeError, match=r"config must be a FlowConfig, as .* makes it, got a TCDConfig"):
        flow.init(cmjax.tcd.TCDConfig(), 2)  # type: ignore[arg-type]
    read = cmjax.io.read_config({"_class_name": "FlowMatchLCMScheduler", "shift": 3.0, "_diffusers_version": "0.36"})
    assert read == flow.FlowLCMConfig(shift=3.0)
    assert cmjax.samplers.sampler_of(read) is flow
    assert cmjax.io.config_dict(read)["_class_name"] == "FlowMatchLCMScheduler"
