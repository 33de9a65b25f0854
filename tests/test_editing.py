"""Edits: this room checks what they keep and what they leave to the model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.editing import chain, inpaint

PHOTO = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32))
HOLE = jnp.zeros((1, 4, 4, 1), bool).at[:, 1:3, 1:3].set(True)


def test_inpaint_keeps_the_known_pixels_bit_for_bit() -> None:
    x0 = jnp.ones_like(PHOTO)
    edited = inpaint(PHOTO, HOLE)(x0)
    np.testing.assert_array_equal(edited[:, 1:3, 1:3], 1.0)
    np.testing.assert_array_equal(edited[:, 0], PHOTO[:, 0])
    np.testing.assert_array_equal(inpaint(PHOTO, HOLE[0])(x0), edited)  # a mask without a batch axis broadcasts
    np.testing.assert_array_equal(
        inpaint(np.asarray(PHOTO[:1]), np.asarray(HOLE))(x0)[1], edited[1] * 0 + inpaint(PHOTO[:1], HOLE)(x0[1:])[0]
    )


@pytest.mark.parametrize("sampler", cmjax.samplers.ALL, ids=lambda m: m.__name__.split(".")[-1])
def test_every_sampler_returns_the_known_pixels(sampler: Any) -> None:
    state = sampler.init(sampler.Config(), num_steps=3)
    edit = chain(jax.tree_util.Partial(jnp.tanh), inpaint(PHOTO, HOLE))
    x = cmjax.add_noise(state, PHOTO, jax.random.key(0))
    net = jax.tree_util.Partial(lambda x, t, cond: 0.1 * x)
    restored = jax.jit(cmjax.sample)(net, state, x, jax.random.key(1), edit=edit)
    known = ~np.broadcast_to(HOLE, PHOTO.shape)
    np.testing.assert_array_equal(np.asarray(restored)[known], np.asarray(PHOTO)[known])
    assert np.abs(np.asarray(restored)[~known]).max() <= 1.0
    assert restored.std() > 0


def test_chain_goes_from_left_to_right() -> None:
    add, double = jax.tree_util.Partial(lambda x: x + 1.0), jax.tree_util.Partial(lambda x: x * 2.0)
    assert chain(add, double)(jnp.float32(1.0)) == 4.0
    assert chain(double, add)(jnp.float32(1.0)) == 3.0
    assert chain()(jnp.float32(1.0)) == 1.0


def test_an_edit_that_changes_the_shape_is_refused() -> None:
    state = cmjax.cm.init(cmjax.cm.CMConfig(), num_steps=1)
    with pytest.raises(ValueError, match=r"edit returned shape \(2, 4\) for x0 of shape \(2, 4, 4, 3\)"):
        cmjax.step(state, PHOTO, PHOTO, jax.random.key(0), edit=lambda x0: x0[:, :, 0, 0])


def test_wrong_masks() -> None:
    with pytest.raises(TypeError, match="hole must be boolean"):
        inpaint(PHOTO, HOLE.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"hole has shape \(2, 4, 4\) for photo of shape \(2, 4, 4, 3\)"):
        inpaint(PHOTO, HOLE[..., 0].repeat(2, 0))
