"""Memory grows with what is asked for as it should: read off compiled programs, none of which is run."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import text_model

import cmjax

RANK = 2


def temporary(*, batch: int = 4, side: int = 32, steps: int = 2, loras: int = 0) -> int:
    """The bytes that `draw` takes beside weights, inputs and pictures."""
    pipe, rng = text_model(), np.random.default_rng(0)
    state = cmjax.tcd.init(pipe.config, num_steps=steps)
    for _ in range(loras):
        lora = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), cmjax.lora.new(pipe, RANK)
        )
        pipe = cmjax.lora.attach(pipe, lora)
    cond = pipe.encode(pipe.tokenize(["a"] * batch), size=(side, side))
    draw = jax.jit(partial(cmjax.text_to_image.draw, size=(side, side)))
    return draw.lower(pipe, state, jax.random.key(0), cond).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_pictures_and_pixels_take_their_own_memory_and_steps_take_none() -> None:
    base = temporary()
    assert 2 * base < temporary(batch=16) <= 4.1 * base
    long = temporary(side=128)  # its attention is in chunks; smaller pictures have the square of their logits
    assert 2 * long < temporary(side=256) <= 4.1 * long
    assert temporary(steps=32) - base < 16 * 30  # longer tables alone


@pytest.mark.slow
def test_each_lora_takes_no_more_than_its_products() -> None:
    none, one, three = (temporary(loras=n) for n in (0, 1, 3))
    assert one <= 1.1 * none
    assert three - one <= 0.1 * none
