"""Configs come from files: this room gives every field of every config values of other types."""

import dataclasses
import types
import typing

import pytest

import cmjax
from cmjax._typed import mistyped
from cmjax.models import UNetConfig
from cmjax.training import METHODS, Optimizer, Recipe

NAN, INF = float("nan"), float("inf")
WRONG = {
    bool: ["false", 1, None, []],
    int: [1.5, "8", True, NAN, [1], {}],
    float: ["1", True, NAN, INF, 1e39, None, [1.0]],
    str: [3, False, ["a"]],
}
CONFIGS = [*(sampler.Config for sampler in cmjax.samplers.ALL), UNetConfig, Recipe, Optimizer, *METHODS.values()]


def wrong_values():
    for config in CONFIGS:
        kinds = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            kind = kinds[field.name]
            allowed = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
            for one in allowed:
                for value in WRONG.get(one, []):
                    if not (value is None and type(None) in allowed):
                        yield pytest.param(config, field.name, value, id=f"{config.__name__}-{field.name}-{value!r}")


@pytest.mark.parametrize(("config", "name", "value"), list(wrong_values()))
def test_a_value_of_another_type_is_refused_by_name(config, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must be .*, got "):
        config(**{name: value})


def test_there_are_enough_of_them():
    assert len(list(wrong_values())) > 300


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_are_well_typed(config):
    assert mistyped(config()) is None


def test_lists_are_read_value_by_value():
    with pytest.raises(TypeError, match=r"^trained_betas must be a list, each a finite number or null, got"):
        cmjax.tcd.TCDConfig(trained_betas=(0.1, "0.2"))
    with pytest.raises(ValueError, match=r"^sample_size must be a whole number or a list, each a whole number or null"):
        UNetConfig(sample_size=(8, 8, 8))
    with pytest.raises(ValueError, match=r"^ema_decays must be a list, each a finite number, got \('1.5',\)"):
        Recipe(ema_decays=("1.5",))
    with pytest.raises(ValueError, match=r"^sample_size must be a positive integer, got 0"):
        UNetConfig(sample_size=(8, 0))


def test_a_file_is_named_with_the_field():
    with pytest.raises(ValueError, match=r"^scheduler_config.json: sigma_max must be a finite number, got '80'\.$"):
        cmjax.io.read_config({"_class_name": "CMStochasticIterativeScheduler", "sigma_max": "80"})
    with pytest.raises(ValueError, match="cmjax reads"):
        cmjax.io.read_config({"_class_name": ["TCDScheduler"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_min": 1e-60}, "0 < sigma_min < sigma_max must hold, got 1e-60 and 80"),
        ({"rho": 1e-3}, "rho = 0.001 leaves no room"),
        ({"rho": 1e30}, "rho = 1e[+]30 leaves no room"),
    ],
)
def test_numbers_that_leave_no_ladder_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cmjax.cm.init(cmjax.cm.CMConfig(**changes), num_steps=2)


def test_a_table_that_fits_no_memory_is_refused():
    with pytest.raises(ValueError, match="num_train_timesteps must be at most 1000000, got"):
        cmjax.lcm.init(cmjax.lcm.LCMConfig(num_train_timesteps=10**15), num_steps=2)


def test_a_config_of_another_family_is_refused():
    for init, config in ((cmjax.tcd.init, cmjax.cm.CMConfig()), (cmjax.cm.init, cmjax.tcd.TCDConfig())):
        with pytest.raises(TypeError, match=r"^config must be a \w+, as cmjax.io.read_config makes it, got a \w+\.$"):
            init(config, num_steps=1)
    with pytest.raises(TypeError, match="got the class CMConfig: call it"):
        cmjax.cm.init(cmjax.cm.CMConfig, num_steps=1)
    with pytest.raises(TypeError, match="got a dict"):
        cmjax.cm.init({}, num_steps=1)
