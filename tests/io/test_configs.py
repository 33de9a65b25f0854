import json

import jax
import numpy as np
import pytest

import cmjax
from cmjax.io import config_dict, read_config, write_config
from cmjax.samplers import ALL

SD15 = {  # a scheduler_config.json as Stable Diffusion 1.5 has it
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize("sampler", ALL)
def test_a_written_config_is_read_back_equal(sampler, tmp_path):
    config = sampler.Config(**{"sigma_max" if sampler is cmjax.ctm else "num_train_timesteps": 123})
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert read_config(tmp_path / "scheduler_config.json") == config
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == sampler.Config.scheduler
    assert [p.name for p in tmp_path.iterdir()] == ["scheduler_config.json"]


def test_trained_betas_survive_and_the_config_stays_hashable():
    config = read_config({"_class_name": "TCDScheduler", "trained_betas": [0.1, 0.3]})
    assert config.trained_betas == (0.1, 0.3)
    assert hash(config) == hash(read_config(config_dict(config)))


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    values = {"_class_name": "LCMScheduler", "new_key": [1, [2, "x"]], "other": {"a": [1]}, "none": None}
    config = read_config(values)
    hash(config)
    write_config(config, tmp_path / "c.json")
    written = json.loads((tmp_path / "c.json").read_text())
    assert {key: written[key] for key in values} == values
    assert read_config(tmp_path / "c.json") == config


def test_another_schedulers_file_is_read_as_the_asked_one():
    config = read_config(SD15, as_=cmjax.tcd.TCDConfig)
    assert type(config) is cmjax.tcd.TCDConfig
    assert (config.beta_end, config.steps_offset, config.set_alpha_to_one) == (0.012, 1, False)
    assert dict(config.extra) == {"skip_prk_steps": True}
    assert config_dict(config)["_class_name"] == "TCDScheduler"
    assert config_dict(config)["skip_prk_steps"] is True


def test_another_scheduler_is_refused_by_name():
    with pytest.raises(
        ValueError, match="is for UniPCMultistepScheduler; cmjax reads CMStochasticIterativeScheduler, TCDS"
    ):
        read_config({"_class_name": "UniPCMultistepScheduler"})
    with pytest.raises(ValueError, match="names no scheduler"):
        read_config({})


def test_pndm_is_read_as_ddim_and_nothing_is_clipped_unless_the_file_says_so():
    config = read_config(SD15)
    assert type(config) is cmjax.ddim.DDIMConfig
    assert (config.beta_schedule, config.steps_offset, config.set_alpha_to_one) == ("scaled_linear", 1, False)
    assert dict(config.extra) == {"skip_prk_steps": True}
    bare = {"_class_name": "PNDMScheduler"}
    assert (read_config(bare).clip_sample, read_config(bare).set_alpha_to_one) == (False, False)
    assert read_config({**bare, "clip_sample": True}).clip_sample is True
    assert read_config({"_class_name": "DDIMScheduler"}).clip_sample is True  # its own default


VP = [sampler for sampler in ALL if sampler is not cmjax.cm and hasattr(sampler.Config(), "beta_start")]


@pytest.mark.parametrize("sampler", VP)
@pytest.mark.parametrize("other", VP)
def test_every_variance_preserving_sampler_takes_the_configs_of_the_others(sampler, other):
    said = {"num_train_timesteps": 100, "beta_end": 0.015, "prediction_type": "sample"}
    config = other.Config(**said)
    state = sampler.init(config, 2)
    read = read_config(config_dict(config), as_=sampler.Config)
    assert {name: getattr(read, name) for name in said} == said
    assert read.beta_start == config.beta_start  # what is not said is the file's scheduler's
    assert read.values().get("clip_sample", False) == config.values().get("clip_sample", False)
    for ours, same in zip(jax.tree.leaves(state), jax.tree.leaves(sampler.init(read, 2)), strict=True):
        np.testing.assert_array_equal(ours, same)
    with pytest.raises(TypeError, match=r"config must be a VPConfig, as .* makes it, got a CMConfig"):
        sampler.init(cmjax.cm.CMConfig(), 2)


def test_the_least_lambda_of_a_file_may_be_infinite(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(
        '{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "use_karras_sigmas": true}'
    )
    config = read_config(tmp_path)
    assert config.use_karras_sigmas is True
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert "-Infinity" in (tmp_path / "scheduler_config.json").read_text()
    clipped = cmjax.dpmpp.DPMPPConfig(extra={"lambda_min_clipped": -5.1}, beta_schedule="squaredcos_cap_v2")
    assert cmjax.dpmpp.init(clipped, 2).timesteps[0] < 999


def test_what_is_no_config_class_is_said():
    for as_, got in (
        (cmjax.tcd, "the module cmjax.samplers.tcd"),
        ("TCDConfig", "'TCDConfig'"),
        (dict, "<class 'dict'>"),
    ):
        with pytest.raises(TypeError, match=f"as_ must be a config class, such as cmjax.tcd.TCDConfig, got {got}"):
            read_config(SD15, as_=as_)


def test_what_is_no_config_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json does not exist"):
        read_config(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": ')
    with pytest.raises(ValueError, match=r"scheduler_config\.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, but it holds a list"):
        read_config(tmp_path)


def test_a_models_folder_stands_for_the_file_in_its_scheduler_folder(tmp_path):
    (tmp_path / "scheduler").mkdir()
    write_config(cmjax.cm.CMConfig(rho=5.0), tmp_path / "scheduler")
    assert read_config(tmp_path).rho == 5.0
