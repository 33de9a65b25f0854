"""A model that is a denoiser says so in its file, walks where a consistency model jumps, and never jumps silently."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from tiny import checkpoint

import cmjax
from cmjax.cli.errors import UsageError
from cmjax.cli.options import PathOptions
from cmjax.cli.sampler_path import choose_sampler, own_path
from cmjax.io import Checkpoint, config_dict, read_config
from cmjax.parameterization import c_in, c_out, c_skip
from cmjax.training.methods import METHODS

DATA = Gaussian()
CONFIG = cmjax.cm.CMConfig(clip_denoised=False)


def network(_, x_in, t, cond=None):
    """The network of the exact denoiser."""
    sigma = jnp.exp(t / 250.0)[:, None] if jnp.ndim(t) else jnp.exp(t / 250.0)
    x = x_in / c_in(sigma, 0.5)
    return (DATA.denoise(x, sigma) - c_skip(sigma, 0.5, 0.0) * x) / c_out(sigma, 0.5, 0.0)


MODEL = jax.tree_util.Partial(network, jnp.zeros(()))


def test_a_denoiser_walks_to_the_data_as_the_ode_does():
    config = CONFIG.of_denoiser(20)
    show, state = own_path(config, 2)
    assert state.num_steps == 20
    shape = (2000, 8)
    x = cmjax.generate(show(Checkpoint(MODEL, config)), state, jax.random.key(0), shape)
    assert float(x.mean()) == pytest.approx(DATA.mean, abs=0.03)
    levels = np.append(np.asarray(state.sigmas / state.alphas, np.float64), 0.01)
    spread = levels[0] * np.prod(1 + np.diff(levels) * levels[:-1] / (DATA.std**2 + levels[:-1] ** 2))  # Euler's, exact
    assert float(x.std()) == pytest.approx(spread, rel=0.02)
    jumped = cmjax.generate(MODEL, cmjax.cm.init(CONFIG, 2), jax.random.key(0), shape)
    assert abs(float(jumped.std()) / DATA.std - 1) > 0.3  # what the same network gives where it is taken for f


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_student_of_few_steps_takes_the_steps_it_was_trained_on(steps):
    state = own_path(CONFIG.of_denoiser(steps), 2)[1]
    trained = cmjax.schedules.karras_sigmas(np.arange(steps), steps + 1)
    np.testing.assert_allclose(np.asarray(state.sigmas / state.alphas), trained, rtol=0.02)


def test_the_file_keeps_the_mark_and_other_keys(tmp_path):
    config = cmjax.cm.CMConfig(extra=(("kept", 3),)).of_denoiser(20)
    cmjax.save((checkpoint().model, config), tmp_path / "m")
    text = json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text())
    assert text["denoiser_steps"] == 20 and text["kept"] == 3
    found = cmjax.load(tmp_path / "m").config
    assert found == config and found.denoiser_steps == 20
    assert found.of_denoiser(8).denoiser_steps == 8
    assert found.of_denoiser(8).of_consistency_model().extra == (("kept", 3),)
    assert cmjax.cm.CMConfig().denoiser_steps is None
    assert "denoiser_steps" not in config_dict(cmjax.cm.CMConfig())


@pytest.mark.parametrize("steps", [0, -1, 2.0, "20", True, [20]])
def test_a_mark_that_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match="denoiser_steps must be a whole number of at least 1"):
        read_config({"_class_name": "CMStochasticIterativeScheduler", "denoiser_steps": steps})


def test_no_consistency_sampler_takes_a_denoiser():
    with pytest.raises(ValueError, match=r"a denoiser.*cmjax\.ode\.solve"):
        cmjax.cm.init(CONFIG.of_denoiser(20), 2)


@pytest.mark.parametrize("wrong", [{"sampler": "cm"}, {"sampler": "lcm"}, {"eta": 0.3}, {"sigmas": (80.0, 1.0)}])
def test_commands_walk_with_it_and_refuse_to_jump(wrong):
    checkpoint = Checkpoint(MODEL, CONFIG.of_denoiser(20))
    with pytest.raises(UsageError, match="the model is a denoiser, which walks as DDIM"):
        choose_sampler(checkpoint, "a denoiser", PathOptions(**wrong))


@pytest.mark.parametrize(("given", "steps"), [({}, 20), ({"steps": 6}, 6), ({"timesteps": (600, 300, 9)}, 3)])
def test_commands_take_as_many_steps_as_asked(given, steps):
    setup = choose_sampler(Checkpoint(MODEL, CONFIG.of_denoiser(20)), "a denoiser", PathOptions(**given))
    assert setup.state.num_steps == steps and setup.sampler == "tcd"
    assert not np.asarray(setup.state.eta if hasattr(setup.state, "eta") else 0.0).any()


def test_what_methods_make():
    made = {name: method().made(method.config_type(), 1, 1) for name, method in METHODS.items()}
    steps = {name: config.denoiser_steps for name, config in made.items() if isinstance(config, cmjax.cm.CMConfig)}
    assert {name: n for name, n in steps.items() if n} == {"edm": 20, "pd": 8}
    assert METHODS["cd"]().made(CONFIG.of_denoiser(20), 1, 1) == CONFIG  # a student of a denoiser is none
    halving = METHODS["pd"](num_steps=2, stages=(1.0, 1.0))
    assert [halving.made(CONFIG, step, 4).denoiser_steps for step in range(5)] == [4, 4, 4, 2, 2]
