"""Configs come from files: this room gives every field of every config values of other types."""

import dataclasses
import fractions
import json
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax._typed import frozen, mistyped, thawed
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
        kinds = typing.get_type_hints(config)  # without the bounds
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
    with pytest.raises(ValueError, match=r"^sample_size\[1\] must be a positive integer, got 0"):
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


def there_and_back(config):
    """A config as it is after a file: written as JSON, and read."""
    if isinstance(config, UNetConfig):
        return UNetConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    if isinstance(config, Recipe):
        return Recipe().changed(json.loads(json.dumps(config.to_dict())), "a.json")
    if isinstance(config, Optimizer):
        return there_and_back(Recipe(optimizer=config)).optimizer
    if type(config) in METHODS.values():
        return there_and_back(Recipe(method=config)).method
    return cmjax.io.read_config(json.loads(json.dumps(cmjax.io.config_dict(config))))


def other_kinds(value):
    """The same value as other libraries have it."""
    if isinstance(value, bool):
        return [np.bool_(value), np.array(value), jnp.array(value)]
    if isinstance(value, int):
        return [np.int64(value), np.int32(value), np.array(value), jnp.int32(value)]
    if isinstance(value, float):
        kinds = [np.float32, np.float64, np.longdouble, np.array, jnp.float32, jnp.bfloat16, fractions.Fraction]
        rounds_to_one = value < 1.0 <= float(jnp.bfloat16(value))  # and so leaves [0, 1)
        return [kind(value) for kind in kinds if not (kind is jnp.bfloat16 and rounds_to_one)]
    if isinstance(value, str):
        return [np.str_(value)]
    if isinstance(value, tuple) and value:
        alike = [list(value), [np.array(one) for one in value]]
        return alike if isinstance(value[0], str) else [*alike, np.array(value), jnp.array(value)]
    return []


def is_plain(value):
    return type(value) in (int, float, bool, str) or (type(value) is tuple and all(map(is_plain, value)))


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_accepted_survives_json_and_equals_itself(config):
    tried = 0
    for field in dataclasses.fields(config):
        default = getattr(config(), field.name)
        for value in other_kinds(default):
            made = config(**{field.name: value})
            assert is_plain(getattr(made, field.name)), (field.name, value)
            if not isinstance(default, str | tuple):
                assert getattr(made, field.name) == pytest.approx(default, rel=1e-2)
            assert there_and_back(made) == made and hash(there_and_back(made)) == hash(made)
            tried += 1
    assert tried > 3


def test_sequences_of_numbers_become_tuples():
    betas = np.linspace(0.1, 0.2, 4, dtype=np.float32)
    config = cmjax.tcd.TCDConfig(num_train_timesteps=np.int64(4), trained_betas=betas)
    assert there_and_back(config) == config and config.trained_betas == tuple(map(float, betas))
    assert UNetConfig(sample_size=np.array([8, 16])).sample_size == (8, 16)


def test_what_has_no_plain_number_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^sigma_max must be a finite number, got "):
        jax.jit(lambda sigma: cmjax.cm.CMConfig(sigma_max=sigma).sigma_max)(80.0)
    for wrong in (10**400, fractions.Fraction(10**400), np.datetime64("2020-01-01", "ns"), np.ones(1), 1j):
        with pytest.raises(TypeError, match=r"^sigma_max must be a finite number, got "):
            cmjax.cm.CMConfig(sigma_max=wrong)


def test_kept_keys_survive_json_too(tmp_path):
    kept = {"lambda_min": -INF, "noise": NAN, "betas": np.ones(2), "more": {"a": [np.float32(0.5)]}, "none": None}
    config = cmjax.tcd.TCDConfig(extra=kept)
    cmjax.io.write_config(config, tmp_path)
    again = cmjax.io.read_config(tmp_path)
    assert again == config and hash(again) == hash(config)
    assert thawed(frozen(kept["more"])) == {"a": [0.5]}
    for extra, message in (
        ({"a": {1, 2}}, r"extra must hold values that JSON has, got a = \{1, 2\}"),
        ([("a", 1), ("a", 2)], "extra must hold each key once, .* got 'a'"),
        ({"beta_end": 1}, "none of them a field .* got 'beta_end'"),
        ({"_a": 1}, "begun by _, got '_a'"),
        ("ab", "extra must be a mapping, or pairs of a key and a value, got 'ab'"),
    ):
        with pytest.raises(TypeError, match=message):
            cmjax.tcd.TCDConfig(extra=extra)
