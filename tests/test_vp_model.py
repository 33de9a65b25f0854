import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

import cmjax
from cmjax import losses, schedules
from cmjax.models import from_function, trigflow_of_vp, vp_from_sigma

CM = cmjax.cm.CMConfig()
VP = cmjax.tcd.TCDConfig(prediction_type="sample")
ALPHA, SIGMA = schedules.rates(schedules.alphas_cumprod())


def raw(params, x, t, cond):
    """Some smooth raw network."""
    return jnp.tanh(params * x + 0.001 * t.reshape(t.shape + (1,) * (x.ndim - t.ndim)))


def truth(x0):
    """The raw network whose consistency function always says x0."""

    def network(x0, x_in, t, cond):
        sigma = jnp.exp(t / 250)
        x = x_in * jnp.sqrt(sigma**2 + 0.25)
        skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        return (x0 - skip * x) * jnp.sqrt(sigma**2 + 0.25) / (0.5 * (sigma - 0.002))

    return from_function(network, x0)


@pytest.mark.parametrize("t", [0, 1, 250, 999])
def test_it_is_f_of_x_over_alpha(t):
    model = from_function(raw, jnp.float32(1.5))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    wanted = cmjax.consistency_fn(model, CM)(x / np.float32(ALPHA[t]), jnp.float32(SIGMA[t] / ALPHA[t]))
    for time in (jnp.int32(t), jnp.float32(t), jnp.full(2, t)):
        np.testing.assert_allclose(vp_from_sigma(model, CM, VP)(x, time), wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", [cmjax.tcd, cmjax.lcm])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_tcd_and_lcm_sample_it(sampler, num_steps):
    x0 = jnp.linspace(-1, 1, 8).reshape(1, 8)
    config = sampler.Config(prediction_type="sample")
    state = sampler.init(config, num_steps)
    model = vp_from_sigma(truth(x0), CM, config)
    path = jax.jit(cmjax.trajectory)(model, state, cmjax.prior(state, jax.random.key(0), (1, 8)), jax.random.key(1))
    np.testing.assert_allclose(path.x0[-1], x0, atol=2e-4)


def test_a_table_serves_as_well_as_a_config():
    model = from_function(raw, jnp.float32(1.5))
    by_config, by_table = vp_from_sigma(model, CM, VP), vp_from_sigma(model, CM, schedules.alphas_cumprod())
    np.testing.assert_array_equal(by_config.gains, by_table.gains)
    np.testing.assert_array_equal(by_config.sigmas, by_table.sigmas)


def test_weights_and_tables_are_leaves():
    model = vp_from_sigma(from_function(raw, jnp.float32(1.5)), CM, VP)
    assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(), (1000,), (1000,)]


def test_noise_beyond_sigma_max_is_scaled_to_it():
    """With zero terminal SNR the last timestep is pure noise: alpha = 0 and sigma / alpha is infinite."""
    config = cmjax.tcd.TCDConfig(prediction_type="sample", rescale_betas_zero_snr=True)
    model = vp_from_sigma(from_function(raw, jnp.float32(1.5)), CM, config)
    assert float(model.sigmas[999]) == 80.0 and float(model.gains[999]) == 80.0
    assert jnp.isfinite(model.gains).all()
    np.testing.assert_allclose(model.gains[:900], 1 / ALPHA_ZERO[:900], rtol=1e-6)


ALPHA_ZERO = schedules.rates(schedules.alphas_cumprod(rescale_betas_zero_snr=True))[0]


def test_a_timestep_outside_of_the_table_gives_nan():
    model = vp_from_sigma(from_function(raw, jnp.float32(1.5)), CM, VP)
    assert jnp.isnan(model(jnp.ones((2, 3)), jnp.array([1000, -1]))).all()


def test_the_dropout_key_passes_through():
    def network(x, t, cond, key=None):
        return x if key is None else jnp.zeros_like(x)

    model, x = vp_from_sigma(from_function(network), CM, VP), jnp.ones((1, 2))
    assert (model(x, jnp.int32(500)) != model(x, jnp.int32(500), None, key=jax.random.key(0))).all()


@pytest.mark.parametrize(
    ("vp", "message"),
    [
        (cmjax.tcd.TCDConfig(), "prediction_type must be 'sample', got 'epsilon'"),
        (np.array([0.1, 0.9]), "alphas_cumprod, decreasing numbers in"),
        (np.array([1.5]), "alphas_cumprod, decreasing numbers in"),
        (np.array([]), "alphas_cumprod, decreasing numbers in"),
    ],
)
def test_other_tables_are_refused(vp, message):
    with pytest.raises(ValueError, match=message):
        vp_from_sigma(from_function(raw, jnp.float32(1.5)), CM, vp)


# ---- angles for timesteps --------------------------------------------------------------------------------------------

V = cmjax.lcm.LCMConfig(prediction_type="v_prediction")
ANGLES = np.arctan2(*schedules.rates(schedules.alphas_cumprod())[::-1])
TIMES = jnp.array([0, 1, 250, 998, 999])
DATA = Gaussian(0.3, 0.8)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_estimate_at_an_angle_is_that_at_its_timestep(kind):
    config = dataclasses.replace(V, prediction_type=kind)
    model = from_function(raw, jnp.float32(1.5))
    net, x = trigflow_of_vp(model, config), jax.random.normal(jax.random.key(0), (5, 4))
    angle = net.angles[TIMES]
    np.testing.assert_array_equal(net.timestep(angle), TIMES)
    wanted = jax.jit(lambda g, x: g.predict(x, TIMES).x0)(cmjax.tcd.trajectory_fn(model, config), x)
    x0 = jax.jit(lambda net, x: jnp.cos(angle)[:, None] * x - jnp.sin(angle)[:, None] * net(x, angle))(net, x)
    np.testing.assert_allclose(x0, wanted, rtol=1e-4, atol=1e-5)


def test_angles_between_two_timesteps_and_beyond_all():
    config = dataclasses.replace(V, prediction_type="sample")
    net = trigflow_of_vp(lambda x, t, cond: 0.0 * x + t.reshape(-1, 1), config)
    between = jnp.asarray(0.75 * ANGLES[400] + 0.25 * ANGLES[401], jnp.float32)
    np.testing.assert_allclose(net.timestep(between), 400.25, atol=1e-3)
    angle = jnp.array([0.0, ANGLES[0] / 2, 1.55, 1.5708], jnp.float32)
    x = jnp.ones((4, 1))
    x0 = (jnp.cos(angle)[:, None] * x - jnp.sin(angle)[:, None] * net(x, angle))[:, 0]
    assert float(x0[0]) == 1.0 and float(x0[1]) == pytest.approx(0.5, abs=0.01)  # ever less of the first estimate, 0
    np.testing.assert_allclose(x0[2:], 999.0, rtol=1e-5)  # the estimate at the last timestep


def test_pure_noise_is_an_angle_too():
    net = trigflow_of_vp(from_function(raw, jnp.float32(1.5)), dataclasses.replace(V, rescale_betas_zero_snr=True))
    assert float(net.angles[-1]) == pytest.approx(np.pi / 2) and jnp.isfinite(net(jnp.ones((1, 2)), jnp.pi / 2)).all()


def test_a_sampler_of_angles_draws_what_one_of_timesteps_draws():
    model, times = from_function(raw, jnp.float32(1.5)), [999, 499]
    net = trigflow_of_vp(model, V)
    scm = cmjax.scm.init(cmjax.scm.SCMConfig(sigma_data=1.0), timesteps=np.asarray(net.angles)[times])
    ours, wanted = (
        cmjax.generate(one, state, jax.random.key(1), (2, 3))
        for one, state in ((net, scm), (model, cmjax.lcm.init(V, timesteps=times)))
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


def exact(jump, x, t, cond=None):
    """The v of the exact denoiser of `DATA`, or of its exact consistency function, at any timestep."""
    angle = jnp.interp(t, jnp.arange(1000.0), jnp.asarray(ANGLES, jnp.float32))[:, None]
    rates = jnp.cos(angle), jnp.sin(angle)
    x0 = DATA.flow(x, rates, (1.0, 0.0)) if jump else DATA.x0(x, *rates)
    return (rates[0] * x - x0) / rates[1]


def test_the_exact_jump_of_gaussian_data_has_no_tangent_and_no_gradient():
    student = lambda w: lambda x, t, cond=None: w * exact(True, x, t)  # noqa: E731
    teacher = trigflow_of_vp(functools.partial(exact, False), V)
    x0, key = DATA.draw(jax.random.key(0), (256, 3)), jax.random.key(1)

    @jax.jit
    @jax.value_and_grad
    def loss(w):
        net = trigflow_of_vp(student(w), V)
        options = {"sigma_data": 1.0, "sigma_min": 0.03, "sigma_max": 14.5, "tangent_constant": None}
        return losses.continuous_consistency(net, x0, key, teacher=teacher, **options).mean()

    (right, slope), (wrong, steep) = loss(jnp.float32(1.0)), loss(jnp.float32(0.9))
    assert float(right) < 1e-4 * float(wrong) and abs(float(slope)) < 0.01 * abs(float(steep))
