"""Pictures of one batch that differ in everything, and batches and weights on several devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from texts import PROMPTS, text_model

import cmjax
from cmjax.text_to_image import TextToImage, draw, load, redraw, save

SIZE, MOST = (8, 8), 4
ETAS, SCALES = (0.0, 0.3, 1.0), (1.0, 2.0, 4.0)
KEYS = cmjax.image_keys(0, jnp.arange(3))


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return text_model()


@pytest.fixture(scope="module")
def cond(pipe: TextToImage) -> Any:
    return jax.jit(TextToImage.encode)(pipe, pipe.tokenize(PROMPTS))


def row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i : i + 1], tree)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def path(config: Any, i: int, num_steps: int, skip: int = 0, **options: Any) -> Any:
    return cmjax.skip(cmjax.tcd.init(config, num_steps, eta=ETAS[i], **options), skip)


@pytest.mark.slow
def test_each_picture_of_a_batch_has_its_own_key_prompt_eta_guidance_steps_and_strength(pipe, cond):
    """`pad` makes states of one shape of paths of any length, and `vmap` gives each picture its own.

    Strength in both meanings: the last one of two steps, all of four steps in the cleaner part of the grid, and the
    last three of four.
    """
    states = [path(pipe.config, 0, 2, 1), path(pipe.config, 1, 4, strength=0.5), path(pipe.config, 2, 4, 1)]
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, *SIZE, 3)), jnp.float32)
    padded = [cmjax.pad(state, MOST) for state in states]

    @jax.jit
    def together(pipe: Any, *each: Any) -> Any:
        def one(*each: Any) -> Any:
            state, image, key, cond, scale = each
            image, key, cond = jax.tree.map(lambda leaf: leaf[None], (image, key, cond))
            return redraw(pipe, state, image, key, cond, guidance=scale)[0]

        return jax.vmap(one)(*each)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
    batch = together(pipe, stacked, images, KEYS, cond, jnp.array(SCALES))
    alone = jax.jit(lambda pipe, state, *rest: redraw(pipe, state, *rest[:-1], guidance=rest[-1]))
    for i in range(3):
        given = images[i : i + 1], KEYS[i : i + 1], row(cond, i), jnp.float32(SCALES[i])
        close(alone(pipe, padded[i], *given)[0], batch[i])  # and by the laws of `pad` those of the path itself


# ---- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def here(pipe: TextToImage, cond: Any) -> Any:
    return draw(pipe, cmjax.tcd.init(pipe.config, 2), KEYS[:2], row2(cond), size=SIZE)


def row2(cond: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:2], cond)


@pytest.mark.slow
def test_weights_divided_among_devices_draw_the_same_pictures(pipe, cond, mesh, here, tmp_path):
    save(pipe, tmp_path / "model")

    def divided(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, P(*(None,) * (len(shape) - 1), None if shape[-1] % 2 else "devices"))

    there = load(tmp_path / "model", sharding=divided)
    kinds = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(there)}
    assert kinds == {2} and any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(there.unet))
    close(draw(there, cmjax.tcd.init(pipe.config, 2), KEYS[:2], row2(cond), size=SIZE), here)


@pytest.mark.slow
def test_each_device_draws_its_part_of_a_batch(pipe, cond, mesh, here):
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("devices"))
    given = jax.device_put((KEYS[:2], row2(cond)), split)
    drawn = draw(jax.device_put(pipe, everywhere), cmjax.tcd.init(pipe.config, 2), *given, size=SIZE)
    assert len(drawn.sharding.device_set) == 2 and not drawn.sharding.is_fully_replicated
    close(drawn, here)
