"""Batches of captioned pictures: what is in them, that (seed, step) decides all of it, and training on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import text_model

import cmjax
from cmjax import training
from cmjax.io import Captioned
from cmjax.models import from_function
from cmjax.text_to_image import captioned_batches

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
CAPTIONS = (("red fox", "fox"), ("blue fox",), ("a", "b", "c"), ("red",), ("blue",))
DATA = Captioned(IMAGES, CAPTIONS)
RECIPE = training.Recipe(method=training.NoisePrediction(), steps=3, batch_size=2, seed=4)


@functools.cache
def all_batches(drop, xl=False):
    """The batches of five steps, two epochs, with the texts' own conditions."""
    pipe = text_model(xl=xl)
    source = captioned_batches(pipe, DATA, RECIPE, drop=drop)
    return pipe, source, [source.batch(step) for step in range(5)]


def conditions(pipe, xl=False):
    texts = [*dict.fromkeys(text for of_one in CAPTIONS for text in of_one), ""]
    cond = jax.jit(type(pipe).encode)(pipe, pipe.tokenize(texts))
    return dict(zip(texts, np.asarray(cond.context), strict=True))


@pytest.mark.slow
def test_each_picture_has_its_latents_and_one_of_its_captions():
    pipe, _, batches = all_batches(0.0)
    latents = np.asarray(pipe.autoencoder.encode(IMAGES.astype(np.float32) / 127.5 - 1))
    contexts, seen = conditions(pipe), {}
    for x, cond in batches:
        assert x.shape == (2, 4, 4, 4) and x.dtype == np.float32 and cond.pooled is None
        for one, context in zip(x, np.asarray(cond.context), strict=True):
            i = int(np.abs(latents - one).max((1, 2, 3)).argmin())
            np.testing.assert_allclose(one, latents[i], rtol=1e-4, atol=1e-5)
            told = min(contexts, key=lambda text: np.abs(contexts[text] - context).max())
            np.testing.assert_allclose(context, contexts[told], rtol=1e-4, atol=1e-5)
            assert told in CAPTIONS[i]
            seen.setdefault(i, []).append(told)
    assert {i: len(told) for i, told in seen.items()} == dict.fromkeys(range(5), 2)
    assert any(len(set(told)) == 2 for told in seen.values())  # not always the first


@pytest.mark.slow
def test_all_captions_can_be_dropped():
    pipe, _, batches = all_batches(1.0)
    empty = conditions(pipe)[""]
    for _, cond in batches:
        np.testing.assert_allclose(cond.context, np.stack([empty, empty]), rtol=1e-4, atol=1e-5)


def test_a_share_is_dropped_and_the_others_stay():
    (_, _, whole), (_, _, some), (_, _, none) = (all_batches(drop) for drop in (0.0, 0.5, 1.0))
    kinds = []
    for (x, cond), (y, part), (_, empty) in zip(whole, some, none, strict=True):
        np.testing.assert_array_equal(x, y)
        for a, b, c in zip(cond.context, part.context, empty.context, strict=True):
            kinds.append(bool((b == a).all()))
            assert kinds[-1] or (b == c).all()
    assert 2 <= sum(kinds) <= 8


def test_seed_and_step_decide_everything():
    _, source, batches = all_batches(0.5)
    again = captioned_batches(text_model(), DATA, RECIPE, drop=0.5)
    for step in (0, 3):
        for found in (next(again.starting_at(step)), source.batch(step)):
            jax.tree.map(np.testing.assert_array_equal, found, batches[step])
    for mine, its in zip(again, batches, strict=False):
        jax.tree.map(np.testing.assert_array_equal, mine, its)
    other = captioned_batches(text_model(), DATA, training.Recipe(batch_size=2, seed=5), drop=0.5)
    assert any((other.batch(step)[0] != batches[step][0]).any() for step in range(5))


def test_networks_that_are_told_sizes_are_told_the_pictures():
    pipe = text_model(xl=True)
    wide = Captioned(np.zeros((2, 4, 12, 1), np.uint8), (("red",), ("blue",)))  # grey ones get three channels
    x, cond = captioned_batches(pipe, wide, RECIPE, drop=1.0).batch(0)
    assert x.shape == (2, 2, 6, 4)
    np.testing.assert_array_equal(cond.sizes, [[4, 12, 0, 0, 4, 12]] * 2)
    assert not np.asarray(cond.context).any() and not np.asarray(cond.pooled).any()  # no text is zeros there


def network():
    """A network of few numbers that reads latents and texts, and compiles at once."""
    params = {"gain": jnp.float32(0.1), "told": jnp.full((8, 4), 0.1), "bias": jnp.zeros(4)}

    def call(params, x, t, cond):
        told = cond.context.mean(1) @ params["told"]
        return params["gain"] * x + told[:, None, None] + params["bias"][None, None, None]

    return from_function(call, params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["few numbers", pytest.param("a UNet", marks=pytest.mark.slow)])
def test_a_model_is_trained_and_distilled(kind):
    pipe, batches, _ = all_batches(0.5)
    start = pipe.unet if kind == "a UNet" else network()
    trained = training.train(start, pipe.config, batches, recipe=RECIPE)
    before, after = jax.tree.leaves(start), jax.tree.leaves(trained.ema)
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True))
    recipe = training.Recipe(method=training.TrajectoryDistillation(), steps=2, batch_size=2, seed=4)
    _, batches, _ = all_batches(0.0)
    no_text = pipe.without_text(pipe.encode(pipe.tokenize(["a"])))
    teacher = cmjax.guidance.classifier_free(trained.ema, 2.0, no_text), pipe.config
    student = training.train(trained.ema, pipe.config, batches, recipe=recipe, teacher=teacher)
    assert int(student.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(student.ema))


@pytest.mark.parametrize(
    ("data", "recipe", "drop", "message"),
    [
        (DATA, {}, 1.5, r"drop must lie in \[0, 1\], a share of the captions, got 1.5"),
        (DATA, {"batch_size": 6}, 0.1, "batch_size is 6 but there are 5 pictures"),
        (DATA, {"flip": True}, 0.1, "flip must be False: mirrored latents"),
        (Captioned(IMAGES, CAPTIONS[:4]), {}, 0.1, "for each of the 5 pictures, got 4, of which 0 are empty"),
        (Captioned(IMAGES, (*CAPTIONS[:4], ())), {}, 0.1, "got 5, of which 1 are empty"),
        (Captioned(IMAGES / 255, CAPTIONS), {}, 0.1, r"data.images must be u8\[N, H, W, C\], got float64"),
        (Captioned(IMAGES[:, :7], CAPTIONS), {}, 0.1, "size must be a height and width that are multiples of 2"),
    ],
)
def test_what_cannot_work_is_refused(data, recipe, drop, message):
    with pytest.raises(ValueError, match=message):
        captioned_batches(text_model(), data, training.Recipe(**{"batch_size": 2, **recipe}), drop=drop)
