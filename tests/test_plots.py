import sys

import numpy as np
import pytest

import cmjax

pytest.importorskip("matplotlib")


def test_the_ladder_shows_the_levels_of_each_path(tmp_path):
    states = {
        "cm": cmjax.cm.init(cmjax.cm.CMConfig(), timesteps=[22, 0]),
        "tcd": cmjax.tcd.init(cmjax.tcd.TCDConfig(), num_steps=4),
    }
    figure = cmjax.plots.sigma_ladder(states)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cm", "tcd"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [80.0, 1.382368], rtol=1e-6)
    alphas_cumprod = np.array([0.00466010, 0.05221289, 0.27766943, 0.65897524])  # at 999, 759, 499, 259
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.sqrt(1 / alphas_cumprod - 1), rtol=1e-5)
    figure.savefig(tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 1000


def test_the_map_shows_where_each_step_lands_and_what_is_added():
    config = cmjax.flow.FlowConfig()
    states = {str(eta): cmjax.flow.init(config, sigmas=[1.0, 0.5], eta=eta) for eta in (0.0, 0.5, 1.0)}
    steps = [cmjax.plots._levels_and_landings(state) for state in states.values()]
    lands = np.degrees(np.arctan([1.0, 1 / 3, 0.0]))  # at s = 0.5, 0.25 and 0
    np.testing.assert_allclose(steps, [[(90, landing, 45), (45, 0, 0)] for landing in lands], atol=1e-4)
    assert len(cmjax.plots.sampler_map(states).axes[0].texts) == 6 + 2  # two steps fresh, where eta is above 0
    with pytest.raises(ValueError, match="at least one path"):
        cmjax.plots.sampler_map({})
    names = [text.get_text() for text in cmjax.plots.sampler_map().axes[0].get_xticklabels()]
    assert names == [sampler.__name__.rpartition(".")[2] for sampler in cmjax.samplers.ALL]


def test_strips_put_each_image_in_its_place():
    images = np.linspace(-1, 1, 6).reshape(3, 2, 1, 1, 1) * np.ones((3, 2, 4, 4, 1))
    figure = cmjax.plots.eta_strip(images, [0, 0.5, 1])
    shown = [int(axes.images[0].get_array()[0, 0]) for axes in figure.axes]
    assert shown == [0, 102, 204, 51, 153, 255]  # row by row: image 0 under each eta, then image 1
    assert [axes.get_title() for axes in figure.axes[:3]] == ["η = 0", "η = 0.5", "η = 1"]


def test_a_trajectory_is_titled_by_its_levels():
    state = cmjax.cm.init(cmjax.cm.CMConfig(), timesteps=[22, 0])
    trajectory = cmjax.Trajectory(x=np.zeros((3, 2, 4, 4, 3)), x0=np.zeros((2, 2, 4, 4, 3)))
    figure = cmjax.plots.trajectory_strip(trajectory, state)
    assert [axes.get_title() for axes in figure.axes] == ["σ/α = 80", "σ/α = 1.38", "", ""]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="at least one path"):
        cmjax.plots.sigma_ladder({})
    with pytest.raises(ValueError, match=r"images must be f\[2, N, H, W, C\] for 2 etas"):
        cmjax.plots.eta_strip(np.zeros((3, 1, 4, 4, 1)), [0, 1])
    state = cmjax.cm.init(cmjax.cm.CMConfig(), 2)
    with pytest.raises(ValueError, match=r"x0 must be f\[2, N, H, W, C\]"):
        cmjax.plots.trajectory_strip(cmjax.Trajectory(x=np.zeros(1), x0=np.zeros((3, 1, 4, 4, 1))), state)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cmjax\[plots\]'"):
        cmjax.plots.eta_strip(np.zeros((1, 1, 4, 4, 1)), [0])


def test_pure_noise_has_no_rung():
    config = cmjax.tcd.TCDConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    state = cmjax.tcd.init(config, 4)
    figure = cmjax.plots.sigma_ladder({"tcd": state})
    assert len(figure.axes[0].texts) == 3
    images = np.zeros((4, 1, 2, 2, 1))
    strip = cmjax.plots.trajectory_strip(cmjax.Trajectory(np.zeros((5, 1, 2, 2, 1)), images), state)
    assert strip.axes[0].get_title() == "σ/α = inf"
