"""Text-to-image models as a whole: their laws, on tiny networks."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import PROMPTS, text_model

import cmjax
from cmjax import text_to_image
from cmjax.text_to_image import Prompt, TextCond, TextToImage

KEY = jax.random.key(0)
SIZE = (8, 8)


@pytest.fixture(scope="module", params=["sd", pytest.param("xl", marks=pytest.mark.slow)])
def pipe(request: pytest.FixtureRequest) -> TextToImage:
    return text_model(xl=request.param == "xl")


@pytest.fixture(scope="module")
def state(pipe: TextToImage):
    return cmjax.tcd.init(pipe.config, num_steps=2, eta=0.3)


@pytest.fixture(scope="module")
def cond(pipe: TextToImage):
    return jax.jit(TextToImage.encode)(pipe, pipe.tokenize(PROMPTS))


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


def test_draw_is_encode_generate_and_decode_by_hand(pipe, state, cond):
    @jax.jit
    def by_hand(pipe, state, tokens):
        latents = cmjax.generate(pipe.model, state, KEY, pipe.latent_shape(3, SIZE), pipe.encode(tokens))
        return pipe.autoencoder.decode(latents)

    drawn = text_to_image.draw(pipe, state, KEY, cond, size=SIZE)
    assert drawn.shape == (3, *SIZE, 3) and drawn.dtype == jnp.float32
    close(drawn, by_hand(pipe, state, pipe.tokenize(PROMPTS)))
    prompt = Prompt(pipe.tokenize(PROMPTS))
    close(drawn, text_to_image.draw_prompt(pipe, state, KEY, pipe.latent_shape(3, SIZE), prompt))
    steps = partial(text_to_image.draw_prompt, pipe, state, KEY, pipe.latent_shape(3, SIZE), prompt, keep_steps=True)
    path = steps(preview=pipe.autoencoder.replace(network=jax.tree.map(jnp.zeros_like, pipe.autoencoder.network)))
    assert path.x0.shape == (2, 3, *SIZE, 3) and not np.any(path.x0)  # the estimates alone are previews
    close(path.x[-1], drawn)
    with pytest.raises(ValueError, match="preview must decode 4 channels of latents to 2 pixels a side"):
        steps(preview=text_to_image.load_autoencoder("emoji", abstract=True))


def test_a_batch_is_a_loop_and_padding_it_changes_nobody(pipe, state, cond):
    keys = cmjax.image_keys(0, jnp.arange(3))
    batch = text_to_image.draw(pipe, state, keys, cond, size=SIZE)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], cond)
        close(text_to_image.draw(pipe, state, keys[i : i + 1], one, size=SIZE), batch[i : i + 1], atol=1e-4)


def test_no_knob_compiles_anew(pipe, cond):
    traced = []

    @jax.jit
    def draw(pipe, state, cond, guidance, negative):
        traced.append(1)
        return text_to_image.draw(pipe, state, KEY, cond, size=SIZE, guidance=guidance, negative=negative)

    away = pipe.without_text(cond)
    pictures = [
        draw(pipe, cmjax.tcd.init(pipe.config, 2, eta=eta), cond, jnp.float32(guidance), away)
        for eta, guidance in ((0.0, 1.0), (0.3, 4.0))
    ]
    assert len(traced) == 1
    assert np.abs(pictures[0] - pictures[1]).max() > 0.01
    plain = text_to_image.draw(pipe, cmjax.tcd.init(pipe.config, 2, eta=0.0), KEY, cond, size=SIZE)
    close(pictures[0], plain, atol=1e-4)  # a guidance of 1 is the model itself


@pytest.mark.slow
def test_each_picture_has_its_own_guidance_and_eta(pipe, cond):
    state = cmjax.tcd.init(pipe.config, 2, eta=jnp.array([[0.0, 0.5, 1.0]]))
    scales, keys = jnp.array([1.0, 2.0, 3.0]), cmjax.image_keys(0, jnp.arange(3))
    batch = text_to_image.draw(pipe, state, keys, cond, size=SIZE, guidance=scales)
    one = jax.tree.map(lambda leaf: leaf[2:], cond)
    alone = cmjax.tcd.init(pipe.config, 2, eta=1.0)
    close(text_to_image.draw(pipe, alone, keys[2:], one, size=SIZE, guidance=3.0), batch[2:], atol=1e-4)


@pytest.mark.slow
def test_redraw_is_encode_noise_sample_and_decode_by_hand(pipe, cond):
    images = jnp.tile(jnp.linspace(-0.9, 0.9, 8)[:, None, None], (3, 1, 8, 3))
    state = cmjax.skip(cmjax.tcd.init(pipe.config, num_steps=4, eta=0.3), 2)

    @jax.jit
    def by_hand(pipe, state, cond):
        k_x, k_z = jax.random.split(KEY)
        x = cmjax.add_noise(state, pipe.autoencoder.encode(images), k_x)
        return pipe.autoencoder.decode(cmjax.sample(pipe.model, state, x, k_z, cond))

    close(text_to_image.redraw(pipe, state, images, KEY, cond), by_hand(pipe, state, cond))


def test_a_folder_is_loaded_and_saved_without_loss(pipe, tmp_path):
    text_to_image.save(pipe, tmp_path / "saved")
    again = text_to_image.load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again), jax.tree.leaves(pipe))
    for name in ("tokenizers", "config", "pipeline", "zeros_for_empty"):
        assert getattr(again, name) == getattr(pipe, name)
    for a, b in ((again.unet, pipe.unet), (again.autoencoder.network, pipe.autoencoder.network)):
        assert a.config == b.config
    half = text_to_image.load(tmp_path / "saved", dtype="bfloat16", param_dtype="bfloat16", abstract=True)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half)} == {"bfloat16", "float32"}


def test_no_text_is_what_the_encoders_make_of_an_empty_one(pipe, cond):
    empty = pipe.encode(pipe.tokenize(["", "", ""]))
    close(pipe.replace(zeros_for_empty=False).without_text(cond).context, empty.context)
    assert pipe.zeros_for_empty == (len(pipe.text_encoders) == 2)
    zeros = pipe.replace(zeros_for_empty=True).without_text(cond)
    assert not np.any(zeros.context)
    close(pipe.without_text(cond, pipe.tokenize(PROMPTS[1:2])).context[0], cond.context[1])


def test_networks_are_told_the_size_that_is_drawn(monkeypatch):
    pipe = text_model(xl=True)
    tokens, encode = pipe.tokenize(PROMPTS), jax.jit(TextToImage.encode, static_argnames="size")
    native, wide = (encode(pipe, tokens, size=size).sizes for size in (None, (8, 16)))
    assert native.tolist() == [[8, 8, 0, 0, 8, 8]] * 3 and wide.tolist() == [[8, 16, 0, 0, 8, 16]] * 3
    assert text_model().encode(text_model().tokenize(["a"]), size=(8, 16)).sizes is None
    with pytest.raises(ValueError, match="give one of them"):
        pipe.encode(tokens, size=(8, 16), sizes=jnp.zeros(6))
    sizes, encoded = [], Prompt.encoded
    monkeypatch.setattr(Prompt, "encoded", lambda self, pipe, size: (sizes.append(size), encoded(self, pipe, size))[1])
    state, shape = cmjax.tcd.init(pipe.config, 1), pipe.latent_shape(3, (8, 16))
    jax.eval_shape(lambda prompt: text_to_image.draw_prompt(pipe, state, KEY, shape, prompt), Prompt(tokens))
    assert sizes == [(8, 16)]


@pytest.mark.slow
def test_a_refiner_leads_away_from_another_score():
    refiner = text_model(xl=True, projection_class_embeddings_input_dim=8 + 5 * 4)
    assert refiner.is_refiner and not text_model(xl=True).is_refiner
    told = TextCond(jnp.ones((2, 3, 16)), jnp.ones((2, 8)), sizes=jnp.array([[8.0, 8.0, 0.0, 0.0, 7.0]] * 2))
    assert refiner.without_text(told).sizes.tolist() == [[8, 8, 0, 0, 2.5]] * 2
    six = told.replace(sizes=jnp.ones((2, 6)))
    assert text_model(xl=True).without_text(six).sizes.tolist() == [[1] * 6] * 2


@pytest.mark.slow
def test_long_texts_take_several_windows(pipe, state):
    long = "red fox " * 9
    with pytest.warns(UserWarning, match="cut"):
        text_model().tokenize([long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = pipe.tokenize([long], windows=None, weights=True)
    cond = jax.jit(TextToImage.encode)(pipe, tokens)
    assert cond.context.shape[1] == 10 * tokens[0].ids.shape[1] > 10
    assert pipe.without_text(cond).context.shape == cond.context.shape
    assert np.isfinite(text_to_image.draw(pipe, state, KEY, cond, size=SIZE)).all()


# ---- bad input -------------------------------------------------------------------------------------------------------


def small(folder: Path) -> Path:
    """The folder of the package's model, to be damaged; weights are linked, since none are read."""
    from cmjax.io.locate import resolve

    shutil.copytree(resolve("emoji"), folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    return folder


def change(path: Path, **values) -> None:
    content = json.loads(path.read_text()) | values
    path.unlink()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"cross_attention_dim": 64}, "width 64 .* width 128"),
        ("unet", {"out_channels": 3}, "latents of 4"),
        ("vae", {"latent_channels": 8}, "latents of 8"),
        ("vae", {"_class_name": "UNet2DConditionModel"}, "vae must hold a"),
        ("text_encoder", {"vocab_size": 100}, "1105 tokens, but text_encoder/ knows 100"),
        ("text_encoder", {"max_position_embeddings": 8}, "24 tokens, but text_encoder/ reads 8"),
        ("unet", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_weights_are_read(tmp_path, part, changes, said):
    folder = small(tmp_path / "model")
    change(folder / part / "config.json", **changes)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=said):
        text_to_image.load(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(tmp_path, part):
    folder = small(tmp_path / "model")
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=part):
        text_to_image.load(folder)


def test_models_are_told_apart():
    with pytest.raises(ValueError, match=r"text_to_image\.load"):
        cmjax.load("emoji")
    with pytest.raises(ValueError, match=r"without text.*cmjax\.load"):
        text_to_image.load("fashion-mnist-cm")


def test_what_does_not_suit_is_refused(pipe, state, cond):
    with pytest.raises(ValueError, match="negative acts on guidance"):
        text_to_image.draw(pipe, state, KEY, cond, negative=cond)
    with pytest.raises(ValueError, match="multiples of 2"):
        text_to_image.draw(pipe, state, KEY, cond, size=(9, 8))
    with pytest.raises(ValueError, match="arrays, one for each text encoder"):
        pipe.encode(pipe.tokenize(PROMPTS) * 2)
    with pytest.raises(ValueError, match="guidance must be a number"):
        pipe.encode(pipe.tokenize(PROMPTS), guidance=jnp.ones(2))
    with pytest.raises(TypeError, match="TextToImage"):
        text_to_image.save(pipe.unet, "nowhere")


def test_more_weights_than_memory_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr("cmjax.io.memory._free_memory", lambda: 1_000_000)
    with pytest.raises(MemoryError, match=r"take 0\.0 GB|GB are free"):
        text_to_image.load("emoji")
    text_to_image.load("emoji", abstract=True)
