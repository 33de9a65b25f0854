"""Samplers of networks that are told where a step lands: what those are told, which rules hold, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax.models import UNet, UNetConfig, from_nnx, told_length, with_target

KEY = jax.random.key(0)
CTM, FLOW, SHORT = cmjax.ctm.CTMConfig(), cmjax.meanflow.MeanFlowConfig(), cmjax.meanflow.ShortcutConfig()
SMALL = UNetConfig(
    in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, num_class_embeds=3,
    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
)  # fmt: skip


def told(sampler: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the network is told at each step: t and s."""
    seen: list[Any] = []

    def model(x: jax.Array, t: jax.Array, cond: Any, s: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t, s: seen.append((float(t), float(s))), t, s, ordered=True)
        return jnp.zeros_like(x)

    cmjax.generate(model, state, KEY, (1, 2)).block_until_ready()
    jax.effects_barrier()
    return tuple(np.array(seen).T)


def test_a_flow_is_told_where_its_steps_land() -> None:
    t, s = told(cmjax.meanflow, cmjax.meanflow.init(FLOW, 4))
    np.testing.assert_array_equal(t, [1000, 750, 500, 250])
    np.testing.assert_array_equal(s, [750, 500, 250, 0])
    _, s = told(cmjax.meanflow, cmjax.meanflow.init(dataclasses.replace(FLOW, num_train_timesteps=1), 2, eta=0.5))
    np.testing.assert_array_equal(s, [0.25, 0])


def test_a_trajectory_model_is_told_in_logarithms() -> None:
    t, s = told(cmjax.ctm, cmjax.ctm.init(CTM, sigmas=[80.0, 2.0, 0.5], eta=[0.6, 0.0, 1.0]))
    np.testing.assert_allclose(t, 250 * np.log([80.0, 2.0, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(s, 250 * np.log([1.6, 0.5, 0.002]), rtol=1e-6)


def test_steps_are_the_jumps_of_the_functions_that_are_trained() -> None:
    """The state's arithmetic and `ctm_fn`'s, `mean_flow_fn`'s: one step with eta 0 is one jump."""

    def model(x: jax.Array, t: jax.Array, cond: Any, s: jax.Array) -> jax.Array:
        return jnp.sin(x + 0.001 * t) + 0.002 * s

    for config, sampler, make in (
        (CTM, cmjax.ctm, cmjax.parameterization.ctm_fn),
        (FLOW, cmjax.meanflow, cmjax.parameterization.mean_flow_fn),
    ):
        state = sampler.init(config, 3)
        walked = cmjax.trajectory(model, state, cmjax.prior(state, KEY, (4, 2)), KEY).x
        g = make(model, config)
        for k in range(3):
            jumped = g(walked[k], state.sigmas[k], state.sigmas[k + 1])
            np.testing.assert_allclose(walked[k + 1], jumped, rtol=2e-5, atol=2e-5)


def test_eta_1_is_the_rule_of_consistency_models() -> None:
    """Jumps to the clean end, then fresh noise: with a network that ignores s, `cm`'s path but for its boundary."""
    config = cmjax.cm.CMConfig(clip_denoised=False)
    ctm, cm = cmjax.ctm.init(CTM, sigmas=[80.0, 5.0], eta=1.0), cmjax.cm.init(config, sigmas=[80.0, 5.0])

    def model(x: jax.Array, t: jax.Array, cond: Any, s: Any = None) -> jax.Array:
        return jnp.cos(x)

    a, b = (cmjax.generate(model, state, KEY, (8, 4)) for state in (ctm, cm))
    np.testing.assert_allclose(a, b, atol=5e-3)


def test_a_network_of_lengths_is_told_the_length() -> None:
    net = told_length(lambda x, t, cond, d: jnp.full_like(x, 1.0) * d)
    state = cmjax.meanflow.init(SHORT, 4)
    x = cmjax.sample(net, state, jnp.zeros((1, 2)), KEY)
    np.testing.assert_allclose(x, -250.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cmjax.meanflow.init(SHORT, 3),
            "num_steps must be a power of two .*, got 3: give 4.",
        ),
        (lambda: cmjax.meanflow.init(SHORT, 256), "num_steps must be between 1 and finest = 128, got 256."),
        (lambda: cmjax.meanflow.init(SHORT, 4, eta=0.3), "eta must be 0 for a shortcut model"),
        (lambda: cmjax.meanflow.init(SHORT, sigmas=[1.0, 0.5]), "sigmas must be left out"),
        (lambda: cmjax.meanflow.init(cmjax.meanflow.ShortcutConfig(finest=100), 4), "finest must be a power of two"),
        (lambda: cmjax.meanflow.init(FLOW, 4, eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
        (lambda: cmjax.meanflow.init(FLOW, sigmas=[0.5, 0.7]), "sigmas must be strictly decreasing"),
        (lambda: cmjax.meanflow.init(FLOW, sigmas=[1.5]), r"sigmas must lie in \(0, 1\], got 1.5"),
        (lambda: cmjax.meanflow.init(FLOW), "Give exactly one of num_steps and sigmas, got none."),
        (lambda: cmjax.ctm.init(CTM, 0), "num_steps must be between 1 and 1000, got 0."),
        (lambda: cmjax.ctm.init(CTM, sigmas=[90.0]), r"\[0.002, 80\], got 90"),
        (
            lambda: cmjax.ctm.init(CTM, sigmas=[0.002]),
            "sigmas must lie above sigma_min = 0.002",
        ),
        (lambda: cmjax.ctm.init(cmjax.ctm.CTMConfig(rho=0.0), 2), "rho must be positive, got 0."),
        (lambda: cmjax.ctm.init(CTM, 2, eta=[0.1, 0.2, 0.3]), r"one value per step, \(2,\), got shape \(3,\)"),
    ],
)
def test_a_path_that_cannot_be_right_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_traced_eta_out_of_range_is_nan() -> None:
    for sampler in (cmjax.ctm, cmjax.meanflow):
        state = jax.jit(lambda eta, sampler=sampler: sampler.init(sampler.Config(), 2, eta=eta))(jnp.float32(1.5))
        assert np.isnan(state.model_options()["s"])


def test_networks_of_one_time_and_samplers_of_two_do_not_meet_unnoticed() -> None:
    state = cmjax.meanflow.init(FLOW, 2)
    with pytest.raises(TypeError, match=r"model must take s, where the step lands, for this sampler"):
        cmjax.generate(lambda x, t, cond: x, state, KEY, (1, 2))
    guided = cmjax.guidance.classifier_free(lambda x, t, cond: x, 2.0, jnp.zeros(()))
    with pytest.raises(TypeError, match=r"model must take s, where the step lands"):
        cmjax.generate(guided, state, KEY, (1, 2), jnp.zeros(1))
    net, labels = from_nnx(UNet(SMALL, rngs=nnx.Rngs(0))), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=r"s must be None: the network is told one time only .* Take another sampler"):
        cmjax.generate(net, state, KEY, (2, 8, 8, 1), labels)
    with pytest.raises(ValueError, match="s is missing: the network is told where a step lands"):
        cmjax.generate(with_target(net), cmjax.flow.init(cmjax.flow.FlowConfig(), 2), KEY, (2, 8, 8, 1), labels)


def test_a_network_that_is_given_a_target_computes_what_it_did_and_survives_its_folder(tmp_path: Any) -> None:
    net = from_nnx(UNet(SMALL, rngs=nnx.Rngs(0)))
    leaves = {name: leaf + 0.1 for name, leaf in net.leaves().items()}  # else a new network returns 0
    net = net.replace(leaves)
    wider = with_target(net)
    assert with_target(wider) is wider
    x, t, labels = jax.random.normal(KEY, (2, 8, 8, 1)), jnp.float32(400.0), jnp.array([0, 2])
    np.testing.assert_array_equal(wider(x, t, labels, s=jnp.float32(100.0)), net(x, t, labels))
    cmjax.save(cmjax.io.Checkpoint(wider, SHORT), tmp_path / "model")
    made = cmjax.load(tmp_path / "model")
    assert made.config == SHORT
    assert made.model.config.target_embed_type == "timestep"
    assert "target_embed_type" not in net.config.to_dict()
    with pytest.raises(TypeError, match=r"network must be models\.from_nnx of a UNet"):
        with_target(cmjax.models.from_function(lambda x, t, cond: x))


def test_the_class_embedding_of_numbers_can_carry_the_target() -> None:
    config = dataclasses.replace(SMALL, num_class_embeds=None, class_embed_type="timestep")
    net = from_nnx(UNet(config, rngs=nnx.Rngs(0)))
    net = net.replace({name: leaf + 0.1 for name, leaf in net.leaves().items()})
    x, t, s = jax.random.normal(KEY, (2, 8, 8, 1)), jnp.float32(400.0), jnp.array([100.0, 200.0])
    np.testing.assert_array_equal(net(x, t, s=s), net(x, t, s))
    with pytest.raises(ValueError, match="cond must be None where s is given"):
        net(x, t, s, s=s)
