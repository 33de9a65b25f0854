"""The README's programs run as they are written, in order, in one session."""

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
import cmjax.recipes

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def session():
    names: dict = {"__name__": "readme"}
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for program in PROGRAMS:
            exec(compile(program, str(README), "exec"), names)
    return names


def test_all_programs_are_there():
    assert len(PROGRAMS) == 14


def test_one_step_gives_ten_pictures(session):
    assert session["images"].shape == (64, 28, 28, 1)  # the last program's, drawn on every device
    assert len(session["images"].sharding.device_set) == jax.device_count()


def test_the_loop_by_hand_gives_finite_pictures(session):
    assert int(session["tcd_config"].num_train_timesteps) == 1000
    assert session["strip"].shape == (11, 1, 28, 28, 1)
    assert bool(jnp.isfinite(session["strip"]).all())
    assert float(jnp.abs(session["strip"][0] - session["strip"][10]).max()) > 0.1  # eta does something


def test_image_to_image_starts_from_the_images(session):
    assert session["shoes"].shape == (10, 28, 28, 1)
    assert session["shoes"].std() > 0.1


def test_inpainting_keeps_what_is_known(session):
    known = ~np.broadcast_to(session["hole"], session["photo"].shape)
    np.testing.assert_allclose(np.asarray(session["restored"])[known], np.asarray(session["photo"])[known], atol=1e-6)
    assert float(jnp.abs(session["restored"] - session["photo"]).max()) > 0.01  # the hole was filled anew


def test_a_model_is_sharded_by_its_weights_too(session):
    kernels = [leaf for leaf in jax.tree.leaves(session["spread"]) if leaf.ndim == 4]
    assert any(leaf.addressable_shards[0].data.size * jax.device_count() == leaf.size for leaf in kernels)
    np.testing.assert_allclose(session["fully_sharded"], session["images"][:8], rtol=0, atol=2e-3)


def test_chunks_change_no_picture(session):
    np.testing.assert_allclose(session["images_in_chunks"][:8], session["fully_sharded"], rtol=0, atol=2e-3)
    assert session["images_in_chunks"].shape == (40, 28, 28, 1)


def test_the_number_of_steps_is_a_value(session):
    assert session["drawn"].shape == (4, 28, 28, 1)
    assert bool(jnp.isfinite(session["drawn"]).all())


def test_the_training_step_trains(session):
    assert np.isfinite(float(session["loss"]))
    assert np.isfinite(float(session["linen_loss"]))


def test_the_table_of_recipes_is_whole():
    text = README.read_text(encoding="utf-8")
    table = text[text.index("| recipe | what is learned") : text.index("A recipe is a [short TOML file]")]
    rows = [row for row in table.splitlines() if row.startswith("|")][2:]
    first = " ".join(row.split("|")[1] for row in rows)
    assert set(re.findall(r"`(\w+)`", first)) == set(cmjax.recipes.built_in())
    for row in rows:
        for name in re.findall(r"`(\w+)`", row.split("|")[3]):
            assert name in cmjax.losses.__all__, name


def test_what_is_compiled_before_the_weights_are_there_draws_a_picture(session):
    assert session["sneaker"].shape == (1, 28, 28, 1)
    assert bool(jnp.isfinite(session["sneaker"]).all())


def test_the_sampler_in_one_file_recovers_what_its_network_says(session):
    # v = -sin(a) x says x0 = cos(a) x + sin(a)^2 x and so on: what counts is that the loop ran it to the end, finite
    assert session["x"].shape == (2, 8, 8, 3)
    assert bool(jnp.isfinite(session["x"]).all())
