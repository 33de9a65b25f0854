"""A whole CLIP in one folder: what it computes, and what it is not."""

import jax
import numpy as np
import pytest
import torchfiles
from clips import clip_folder

from cmjax.evaluation import ClipFeatures, clip_score, feature_shapes
from cmjax.io import read_safetensors, write_safetensors
from cmjax.io.configs import read_json, write_json
from cmjax.text_to_image import load_clip

PICTURES = np.random.default_rng(0).uniform(-1, 1, size=(3, 12, 9, 3)).astype(np.float32)


@jax.jit
def embedded(clip, tokens):
    projected = clip.pictures.module(clip.preprocessing(PICTURES)).projected
    return clip.embed_texts(tokens), clip.embed_images(PICTURES), projected


def test_vectors_have_length_one_and_the_score_is_their_cosine(tmp_path):
    clip = load_clip(clip_folder(tmp_path / "clip"))
    prompts = ["red fox", "blue", "a"]
    texts, pictures, projected = embedded(clip, clip.tokenize(prompts))
    for vectors in (texts, pictures):
        assert vectors.shape == (3, clip.features)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(pictures, projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-6)
    cosines = np.maximum((np.asarray(texts) * np.asarray(pictures)).sum(1), 0)
    np.testing.assert_allclose(clip_score(PICTURES, prompts, clip), cosines, atol=1e-5)
    assert feature_shapes(ClipFeatures(clip), (12, 9, 3)) == (6, None)


def test_old_weights_and_no_file_of_the_preprocessing(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    clip = load_clip(folder)
    tensors = {name: np.array(value) for name, value in read_safetensors(folder / "model.safetensors").items()}
    torchfiles.write(folder / "pytorch_model.bin", tensors)
    (folder / "model.safetensors").unlink()
    (folder / "preprocessor_config.json").unlink()
    again = load_clip(folder)
    assert again.preprocessing == clip.preprocessing
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(clip), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_folders_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cmjax.text_to_image.clip.installed_vocabulary", lambda: None)
    folder = clip_folder(tmp_path / "clip")
    said = read_json(folder / "config.json")

    def refused(error, match):
        with pytest.raises(error, match=match):
            load_clip(folder, abstract=True)

    write_json({**said["text_config"]}, folder / "config.json")
    refused(ValueError, "is for CLIPTextModelWithProjection, half a CLIP or none: give the folder or hub id of a whole")
    write_json({"architectures": ["BertModel"]}, folder / "config.json")
    refused(ValueError, "is for BertModel, half a CLIP or none")
    write_json(said | {"vision_config": {**said["vision_config"], "image_size": 12}}, folder / "config.json")
    refused(ValueError, "cuts pictures to 8 pixels, but the encoder sees 12: one of the two files is of another model")
    write_json(said | {"text_config": {**said["text_config"], "vocab_size": 20}}, folder / "config.json")
    refused(ValueError, "tokens, but the encoder of texts only 20")
    write_json(said, folder / "config.json")
    tensors = read_safetensors(folder / "model.safetensors")
    texts = {name: np.array(value) for name, value in tensors.items() if name.startswith("text_")}
    write_safetensors(texts, folder / "model.safetensors")
    refused(ValueError, "has no weights of an encoder of pictures: give the folder or hub id of a whole CLIP")
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.json").unlink()
    refused(FileNotFoundError, r"vocab\.json")
    (folder / "config.json").unlink()
    refused(FileNotFoundError, "has no config.json: give the folder")
