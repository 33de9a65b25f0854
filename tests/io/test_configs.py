import json

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
    config = sampler.Config(num_train_timesteps=123)
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
        ValueError, match="is for EulerDiscreteScheduler; cmjax reads CMStochasticIterativeScheduler, TCDS"
    ):
        read_config({"_class_name": "EulerDiscreteScheduler"})
    with pytest.raises(ValueError, match="names no scheduler"):
        read_config({})


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
