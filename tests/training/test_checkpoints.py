"""Checkpoints: whole or not there, of this recipe and this network, and honest about the machine."""

import dataclasses
import importlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from toy import CONFIG, RECIPE, bits, model, network

from cmjax import training
from cmjax.training.checkpoints import restore, save


def test_a_state_comes_back_bit_for_bit_and_two_are_kept(tmp_path):
    state = training.init(model(), RECIPE)
    for step in (3, 6, 9):
        save(tmp_path, state.replace(step=jnp.int32(step)), RECIPE, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "9"]
    read, environment = restore(tmp_path, state, RECIPE, CONFIG)
    assert bits(read) == bits(state.replace(step=jnp.int32(9)))
    assert environment == training.environment()
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(state), strict=True))


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    state = training.init(model(), RECIPE)
    save(tmp_path, state, RECIPE, CONFIG)

    def killed(*_, **__):
        raise KeyboardInterrupt

    step = importlib.import_module("orbax.checkpoint").Checkpointer
    with monkeypatch.context() as patch:  # all is written; what makes it count, the last renaming, never happens
        patch.setattr("os.rename", killed)
        patch.setattr("os.replace", killed)
        patch.setattr("pathlib.Path.rename", killed)
        patch.setattr("pathlib.Path.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, state.replace(step=jnp.int32(5)), RECIPE, CONFIG)
    assert step and training.latest_step(tmp_path) == 0
    assert int(restore(tmp_path, state, RECIPE, CONFIG)[0].step) == 0
    assert len(list(tmp_path.iterdir())) == 2
    save(tmp_path, state.replace(step=jnp.int32(6)), RECIPE, CONFIG)  # what the kill left is not in the way, and goes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "6"]


def test_a_checkpoint_of_another_network_or_recipe_is_refused(tmp_path):
    save(tmp_path, training.init(model(), RECIPE), RECIPE, CONFIG)
    other = jax.tree_util.Partial(network, {"gain": jnp.zeros(2), "bias": jnp.zeros((4, 4, 1)), "class": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"of another network or optimizer: .*gain"):
        restore(tmp_path, training.init(other, RECIPE), RECIPE, CONFIG)
    fewer = jax.tree_util.Partial(network, {name: w for name, w in model().args[0].items() if name != "class"})
    with pytest.raises(ValueError, match=r"class.* was float32\[3\], but is None now"):
        restore(tmp_path, training.init(fewer, RECIPE), RECIPE, CONFIG)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model())
    with pytest.raises(ValueError, match=r"was float32\[.*\], but is bfloat16\["):
        restore(tmp_path, training.init(half, RECIPE), RECIPE, CONFIG)
    for changed, message in (
        (dataclasses.replace(RECIPE, seed=1), "seed = 0, not 1"),
        (dataclasses.replace(RECIPE, method=training.EasyConsistencyTuning()), r"ect.stages = \[6, 4, 4\], not "),
    ):
        with pytest.raises(ValueError, match=f"followed a recipe with {message}"):
            restore(tmp_path, training.init(model(), changed), changed, CONFIG)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    state = training.init(model(), RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr(training.checkpoints, "_FORMAT", 2)
        save(tmp_path, state, RECIPE, CONFIG)
    with pytest.raises(ValueError, match=r"not a whole checkpoint of this version of cmjax \(it is of format 2, not 1"):
        restore(tmp_path, state, RECIPE, CONFIG)


@pytest.mark.parametrize("part", ["meta/metadata", "state/manifest.ocdbt", "meta", "state", "state/d"])
def test_a_damaged_checkpoint_is_said(tmp_path, part):
    state = training.init(model(), RECIPE)
    save(tmp_path, state, RECIPE, CONFIG)
    path = tmp_path / "0" / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        restore(tmp_path, state, RECIPE, CONFIG)


def test_nothing_to_resume_from_is_said(tmp_path):
    state = training.init(model(), RECIPE)
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        restore(tmp_path / "nowhere", state, RECIPE, CONFIG)
    assert training.latest_step(tmp_path / "nowhere") is None
