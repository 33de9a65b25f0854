"""Recipes: what files say and what is refused, by name; learning rates; stages."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import recipes, training
from cmjax.training import EasyConsistencyTuning, ImprovedConsistencyTraining, Optimizer, Recipe


def test_the_learning_rate_warms_up_holds_and_falls():
    rate = Optimizer(warmup_steps=10, hold=0.5).schedule(200)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(99)], [0, 5e-4, 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose([rate(150), rate(200), rate(500)], [10**-3.5, 1e-4, 1e-4], rtol=1e-5)


def test_a_rate_without_a_warm_up_is_whole_from_the_first_step():
    assert Optimizer(warmup_steps=0).schedule(30)(0) == np.float32(1e-3)


def test_stages_are_shares_of_any_run():
    method = EasyConsistencyTuning(stages=(4, 1, 0.5, 2.5, 4))
    assert method.stage_steps(12000) == (4000, 1000, 500, 2500, 4000)
    assert method.stage_steps(12) == (4, 1, 1, 2, 4)  # ends at 4, 5, 5.5, 8 and 12, of which 5.5 is rounded to even
    assert [method.figures(k, 12000)["gap"] for k in (0, 3999, 4000, 5500, 11999)] == [1, 1, 0.5, 0.125, 0.0625]


@pytest.mark.parametrize("name", recipes.built_in())
def test_every_recipe_of_the_library_is_one(name):
    given = recipes.read(name)
    scheduler, lora = given.pop("scheduler", None), given.pop("lora", {})
    assert lora.keys() <= {"rank", "alpha", "targets"}
    recipe = Recipe().changed(given, name)
    assert given["method"] in training.METHODS
    again = Recipe().changed(json.loads(json.dumps(recipe.to_dict())), "run.json")
    assert again == recipe and hash(again) == hash(recipe)
    assert scheduler is None or isinstance(cmjax.io.read_config(scheduler), recipe.method.config_type)


def test_a_recipe_may_be_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'method = "ict"\nsteps = 900\n[ict]\nhuber_c = 0.1\n[optimizer]\nname = "radam"\n'
    )
    recipe = Recipe().changed(recipes.read(tmp_path / "mine.toml"), "mine.toml")
    assert recipe.method == ImprovedConsistencyTraining(huber_c=0.1)
    assert (recipe.steps, recipe.optimizer.name, recipe.batch_size) == (900, "radam", 64)
    (tmp_path / "mine.json").write_text(json.dumps(recipe.to_dict()))
    assert Recipe().changed(recipes.read(tmp_path / "mine.json"), "mine.json") == recipe


def test_files_that_are_no_recipes_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no recipe 'etc': give a TOML file, or one of autoencoder, cd, .*ect, .*ict"
    ):
        recipes.read("etc")
    for name, text, message in (
        ("a.toml", "steps = ", "a.toml is not TOML"),
        ("b.json", "[]", "b.json must hold a JSON object, but it holds a list"),
        ("c.toml", "\xff", "c.toml is not TOML"),
    ):
        (tmp_path / name).write_text(text, encoding="latin1")
        with pytest.raises(ValueError, match=message):
            recipes.read(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 2}, "x.toml has unknown names: speed"),
        ({"ect": {"speed": 2}}, r"x.toml \[ect\] has unknown names: speed"),
        ({"method": "ict", "ect": {}}, "x.toml has unknown names: ect"),
        ({"batch_sise": 2}, r"x.toml has unknown names: batch_sise. Did you mean batch_size\?"),
        ({"optimizer": {"speed": 2}}, r"x.toml \[optimizer\] has unknown names: speed"),
        ({"optimizer": 3}, r"x.toml \[optimizer\] must be a table of names and values, got 3"),
        ({"method": "sorcery"}, "x.toml: method must be one of ect, ict.*, got 'sorcery'"),
        ({"method": ["ect"]}, "x.toml: method must be one of ect, ict"),
        ({"steps": "many"}, "x.toml: steps must be a whole number, got 'many'"),
        ({"ect": {"stages": ["a"]}}, "x.toml: stages must be a list, each a finite number"),
        ({"method": "ict", "steps": 3}, "x.toml: total_steps must be at least 8"),
    ],
)
def test_what_no_recipe_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().changed(changes, "x.toml")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Optimizer, "learning_rate", 0.0),
        (Optimizer, "final_learning_rate", -1e-3),
        (Optimizer, "clip_norm", -1.0),
        (Optimizer, "warmup_steps", -1),
        (Optimizer, "hold", 1.5),
        (Optimizer, "name", "sgd"),
        (Optimizer, "b2", 1.0),
        (Optimizer, "mu_dtype", "float16"),
        (EasyConsistencyTuning, "stages", (10, 0)),
        (EasyConsistencyTuning, "stages", ()),
        (EasyConsistencyTuning, "initial_gap", 2.0),
        (EasyConsistencyTuning, "proposal_std", -1.0),
        (EasyConsistencyTuning, "huber_c", 0.0),
        (ImprovedConsistencyTraining, "proposal_std", 0.0),
        (Recipe, "method", "ect"),
        (Recipe, "optimizer", "adam"),
        (Recipe, "steps", 0),
        (Recipe, "batch_size", 0),
        (Recipe, "accumulate", 3),
        (Recipe, "ema_decays", (2.0,)),
        (Recipe, "ema_decays", ()),
        (Recipe, "ema_stds", "wide"),
        (Recipe, "seed", 2**40),
    ],
)
def test_numbers_that_cannot_work_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        kind(**{name: value})


def test_an_average_wider_than_a_run_is_refused():
    with pytest.raises(ValueError, match=r"std must .* got 0.4"):
        Recipe(ema_stds=(0.4,))


def test_weight_decay_needs_an_optimizer_that_has_it():
    with pytest.raises(ValueError, match="weight_decay is for 'adamw' and 'lion', but the optimizer is 'adam'"):
        Optimizer(weight_decay=0.01)
    assert dataclasses.replace(Optimizer(), name="adamw", weight_decay=0.01).transformation(10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "adafactor", "weight_decay": 0.1}, "weight_decay is for 'adamw' and 'lion', but .* 'adafactor'"),
        ({"name": "adafactor", "mu_dtype": "bfloat16"}, "mu_dtype must be 'float32' for 'adafactor', got 'bfloat16'"),
        ({"name": "radam", "mu_dtype": "bfloat16"}, "mu_dtype must be 'float32' for 'radam', .* adam, adamw, lion"),
        ({"name": "adafactor", "b2": 0.999}, "b2 must be left out for 'adafactor', which has none, got 0.999"),
    ],
)
def test_what_an_optimizer_does_not_have_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**given)


@pytest.mark.parametrize(
    ("given", "numbers", "coarse"),
    [
        ({"name": "adamw"}, 2 * 64 * 48, 0),
        ({"name": "adamw", "mu_dtype": "bfloat16"}, 2 * 64 * 48, 64 * 48),
        ({"name": "lion"}, 64 * 48, 0),
        ({"name": "lion", "mu_dtype": "bfloat16", "weight_decay": 0.1}, 64 * 48, 64 * 48),
        ({"name": "adafactor"}, 64 + 48, 0),
    ],
)
def test_the_state_of_an_optimizer_is_as_small_as_it_says(given, numbers, coarse):
    state = jax.eval_shape(Optimizer(**given).transformation(10).init, {"w": jnp.zeros((64, 48)), "frozen": None})
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 1]
    assert sum(leaf.size for leaf in leaves) == numbers
    assert sum(leaf.size for leaf in leaves if leaf.dtype == jnp.bfloat16) == coarse
