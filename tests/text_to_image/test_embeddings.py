"""New words: tokens, rows of the encoders' tables, folders, and what no model can be taught."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import WIDTH, text_model

import cmjax
from cmjax import text_to_image
from cmjax.io import write_safetensors
from cmjax.text_to_image import add_embedding, tokenize_windows

TABLE = "text_model.embeddings.token_embedding.embedding"
RNG = np.random.default_rng(0)
THREE = RNG.normal(size=(3, WIDTH)).astype(np.float32)
PAIR = {"clip_l": THREE, "clip_g": -THREE}


def taught(**options):
    return add_embedding(text_model(**options), PAIR if options else THREE, "<cat>")


@pytest.mark.parametrize("options", [{}, {"xl": True}])
def test_a_word_of_several_vectors_stands_for_all_of_them(options):
    before, pipe = text_model(**options), taught(**options)
    words = len(before.tokenizers[0])
    for tokens in pipe.tokenize(["red <Cat>fox"]):
        assert tokens[0, 2:5].tolist() == [words, words + 1, words + 2]
    for i, (old, new) in enumerate(zip(before.text_encoders, pipe.text_encoders, strict=True)):
        table = np.asarray(new.leaves()[TABLE])
        np.testing.assert_array_equal(table[:words], old.leaves()[TABLE])
        np.testing.assert_array_equal(table[words:], [THREE, -THREE][i])
        assert new.config.vocab_size == words + 3 and old.config.vocab_size == words
    assert len(before.tokenizers[0]) == words  # the model given stays as it is
    # other prompts stay what they were, and a word is its vectors in the places of its tokens
    for encoder, other, tokens in zip(before.text_encoders, pipe.text_encoders, pipe.tokenize(["fox"]), strict=True):
        np.testing.assert_array_equal(encoder.module(tokens).last, other.module(tokens).last)


def test_windows_and_weights():
    pipe = taught()
    word = len(text_model().tokenizers[0])
    tokens = tokenize_windows(pipe.tokenizers[0], ["a a a a a a (<cat>:1.5)"])
    assert tokens.ids[0, 0, 7:9].tolist() == [word, word + 1] and tokens.ids[0, 1, 1] == word + 2
    np.testing.assert_array_equal(tokens.weights[0, 0, 7:9], 1.5)
    assert tokens.weights[0, 1, 1] == 1.5
    with pytest.warns(UserWarning, match="has 10: its end is cut, '<cat>'"):
        assert pipe.tokenize(["a a a a <cat> <cat>"])[0][0, 6:9].tolist() == [word + 1, word + 2, word]


@pytest.mark.parametrize("options", [{}, {"xl": True}])
def test_a_folder_holds_the_words(options, tmp_path):
    text_to_image.save(taught(**options), tmp_path / "first")
    one = {name: array[0] for name, array in PAIR.items()} if options else THREE[0]
    pipe = add_embedding(text_to_image.load(tmp_path / "first"), one, "<x>")
    text_to_image.save(pipe, tmp_path / "m")
    again = text_to_image.load(tmp_path / "m")
    assert again.tokenizers == pipe.tokenizers
    assert jax.tree.structure(again) == jax.tree.structure(pipe)
    jax.tree.map(np.testing.assert_array_equal, again, pipe)
    assert len(again.tokenizers[0]) == len(text_model().tokenizers[0]) + 4


def test_a_file_in_one_piece_would_lose_the_words(tmp_path):
    assert text_model().tokenizers[0].words == ()
    assert taught().tokenizers[0].words == ("<cat>", "<cat>_1", "<cat>_2")
    with pytest.raises(ValueError, match="no place for the words that a model was taught, such as '<cat>'"):
        text_to_image.save(taught(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_abstract_models_and_other_dtypes_and_spare_rows(tmp_path):
    text_to_image.save(text_model(), tmp_path / "m")
    write_safetensors({"<cat>": THREE}, tmp_path / "cat.safetensors")
    shapes = add_embedding(text_to_image.load(tmp_path / "m", abstract=True), tmp_path / "cat.safetensors")
    real = add_embedding(text_to_image.load(tmp_path / "m", param_dtype="bfloat16"), tmp_path / "cat.safetensors")
    assert shapes.text_encoders[0].leaves()[TABLE].shape == real.text_encoders[0].leaves()[TABLE].shape
    assert real.text_encoders[0].leaves()[TABLE].dtype == jnp.bfloat16
    words = len(text_model().tokenizers[0])
    np.testing.assert_array_equal(real.text_encoders[0].leaves()[TABLE][words:], THREE.astype(jnp.bfloat16))
    # a table of more rows than the tokenizer has tokens: the first spare ones are taken
    spare = text_model().replace(text_encoders=taught().text_encoders)
    filled = add_embedding(spare, 2 * THREE[:2], "<two>").text_encoders[0].leaves()[TABLE]
    np.testing.assert_array_equal(filled[words:], [*(2 * THREE[:2]), THREE[2]])
    half = text_to_image.load(tmp_path / "m", param_dtype="float16")
    with pytest.raises(ValueError, match="infinite in float16"), np.errstate(over="ignore"):
        add_embedding(half, 1e6 * THREE, "<cat>")


def test_an_encoder_keeps_its_lora():
    """Words and a LoRA, in either order: one model, of which the factors alone are trained."""
    before = text_model()
    tuned = before.replace(text_encoders=jax.tree.map(lambda leaf: 1.1 * leaf, before.text_encoders))
    lora = cmjax.lora.extract(before.text_encoders[0], tuned.text_encoders[0], rank=2)
    first, last = add_embedding(before, THREE, "<cat>"), cmjax.lora.attach(before, lora, 0.5)
    one, other = cmjax.lora.attach(first, lora, 0.5), add_embedding(last, THREE, "<cat>")
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert 0 < sum(other.text_encoders[0].is_trained) == sum(last.text_encoders[0].is_trained)
    tokens = one.tokenize(["red <cat>"])
    assert np.abs(one.encode(tokens).context - first.encode(tokens).context).max() > 1e-3


@pytest.mark.parametrize(
    ("embedding", "token", "says"),
    [
        (np.zeros((2, 768)), "<cat>", r"width 768, but .* read 8\. It looks like one for Stable Diffusion 1\.$"),
        (np.zeros(1024), "<cat>", "It looks like one for Stable Diffusion 2"),
        ({"clip_l": np.zeros(768), "clip_g": np.zeros(1280)}, "<cat>", "768 and 1280, .* one for Stable Diffusion XL"),
        (np.zeros(7), "<cat>", r"width 7, but the text encoders of this model read 8\.$"),
        (PAIR, "<cat>", "width 8 and 8, but the text encoders of this model read 8"),
        (np.zeros((9, WIDTH)), "<cat>", "has 9 vectors, but a prompt of this model has room for 8 tokens"),
        (THREE, "red</w>", r"the model has 'red</w>' already: give another, such as '<red</w-2>'"),
        (THREE, "Red", "the model has 'Red' already: give another, such as '<Red-2>'"),
        (THREE, "<|ENDOFTEXT|>", "already"),
        (THREE, "<OLD>", "the model has '<OLD>' already"),
        (THREE, "<old>_1", "the model has '<old>_1' already"),
        (THREE, "<old>_2", "'<old>_2' would be read as a further vector of '<old>'"),
        (THREE, "<one>_1", "'<one>_1' would be read as a further vector of '<one>'"),
        (THREE, "<far>", "the model has '<far>_3' already"),
    ],
)
def test_what_it_cannot_be_taught(embedding, token, says):
    pipe = add_embedding(text_model(), THREE[:2], "<old>")
    pipe = add_embedding(add_embedding(pipe, THREE[0], "<one>"), THREE[0], "<far>_3")
    with pytest.raises(ValueError, match=says):
        add_embedding(pipe, embedding, token)


def test_one_encoders_embedding_for_two():
    with pytest.raises(ValueError, match="width 8, but the text encoders of this model read 8 and 8"):
        add_embedding(text_model(xl=True), THREE, "<cat>")
