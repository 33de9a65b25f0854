"""Holes in pictures, as a network is told of them and as an edit: shapes, borders, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import PROMPTS, text_model

from cmjax import text_to_image
from cmjax.text_to_image import TextCond

SIZE = (8, 12)


def cond() -> TextCond:
    return TextCond(jnp.zeros((len(PROMPTS), 10, 8)))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (3, *SIZE, 3), minval=-1.0)


@pytest.fixture(scope="module")
def holes() -> jax.Array:
    return jnp.zeros((3, *SIZE), bool).at[:, 1:4, 3:8].set(True).at[1].set(False)


@pytest.mark.slow
def test_a_network_is_told_of_a_hole(images, holes):
    pipe = text_model(in_channels=9)
    extra = text_to_image.inpainting(pipe, cond(), images, holes).extra_channels
    assert extra.shape == (3, 4, 6, 5)
    np.testing.assert_array_equal(extra[..., 0], holes[:, ::2, ::2])  # from the pixel at the top left
    grey = jnp.where(holes[..., None], 0.0, images)
    np.testing.assert_array_equal(extra[..., 1:], pipe.autoencoder.encode(grey))
    one = text_to_image.inpainting(pipe, cond(), images[:1], holes[:1]).extra_channels
    np.testing.assert_allclose(one, jnp.tile(extra[:1], (3, 1, 1, 1)), atol=1e-5)
    other = images.at[:, 2, 4].set(jnp.nan)  # what is in the hole does not matter
    np.testing.assert_array_equal(text_to_image.inpainting(pipe, cond(), other, holes).extra_channels[0], extra[0])


def test_an_edit_frees_every_latent_that_has_pixels_in_the_hole(images, holes):
    edit = text_to_image.inpaint_edit(text_model(), images, holes)
    assert edit.reference.shape == (3, 4, 6, 4)
    free = np.zeros((4, 6), bool)
    free[0:2, 1:4] = True
    np.testing.assert_array_equal(edit.hole[0, ..., 0], free)
    assert not edit.hole[1].any()
    np.testing.assert_array_equal(edit(jnp.zeros((3, 4, 6, 4)))[1], edit.reference[1])
    many = text_to_image.inpaint_edit(text_model(), images[:1], holes)
    assert many.reference.shape == (3, 4, 6, 4)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"holes": jnp.zeros((3, *SIZE))}, TypeError, "holes must be boolean"),
        ({"holes": jnp.zeros((3, *SIZE, 1), bool)}, ValueError, "holes must have shape"),
        ({"holes": jnp.zeros((2, *SIZE), bool)}, ValueError, "holes must have shape"),
        ({"images": jnp.zeros((3, *SIZE), jnp.float32)}, ValueError, "images must have shape"),
        ({"images": jnp.zeros((3, *SIZE, 3), jnp.uint8)}, TypeError, "images"),
        ({"images": jnp.zeros((3, 9, 12, 3)), "holes": jnp.zeros((3, 9, 12), bool)}, ValueError, "multiples of 2"),
    ],
)
def test_what_does_not_fit_is_refused(images, holes, changes, error, said):
    given = {"images": images, "holes": holes} | changes
    with pytest.raises(error, match=said):
        text_to_image.inpaint_edit(text_model(), **given)
    with pytest.raises(error, match=said):
        text_to_image.inpainting(text_model(in_channels=9), cond(), **given)


def test_a_batch_that_the_condition_does_not_have_is_refused(images, holes):
    with pytest.raises(ValueError, match="must be one or 3"):
        text_to_image.inpainting(text_model(in_channels=9), cond(), images[:2], holes[:2])


def test_a_network_that_is_told_of_no_hole_is_refused(images, holes):
    with pytest.raises(ValueError, match=r"reads 4: give draw the edit of inpaint_edit"):
        text_to_image.inpainting(text_model(), cond(), images, holes)
