"""Files in one piece against diffusers: its converter gives every tensor the name and the numbers that it has here."""

import types

import numpy as np
import pytest
from single_files import FAMILIES, model, use_tiny_kinds

from cmjax import text_to_image
from cmjax.io.safetensors_files import read_safetensors
from cmjax.text_to_image.opening import open_source

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
utils = pytest.importorskip("diffusers.loaders.single_file_utils")


def same(theirs, ours):
    """Tensors of the reference, by name; a convolution of one pixel is the linear layer."""
    assert set(theirs) == set(ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name].numpy().reshape(value.shape), value, err_msg=name)


def unprefixed(tensors):
    return {name.removeprefix("text_model."): value for name, value in tensors.items()}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    use_tiny_kinds(monkeypatch)


FEW = ("stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0", "koala-700m")


@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES if one not in FEW)]
)
def test_the_reference_converts_a_file_to_the_same_tensors(name, tmp_path):
    made = model(name)
    source = open_source(made.file(tmp_path / "model.safetensors"))
    checkpoint = {key: torch.from_numpy(np.array(value)) for key, value in made.tensors().items()}
    config = {**made.unet.config.to_dict(), "num_class_embeds": None, "class_embed_type": None}
    theirs = utils.convert_ldm_unet_checkpoint(dict(checkpoint), config)
    guidance = "time_embedding.cond_proj.weight"  # which the converter does not know, so that it loses it
    ours = {key: value for key, value in source.parts["unet"].tensors.items() if key != guidance}
    assert (guidance in theirs) is False
    same(theirs, ours)
    vae = utils.convert_ldm_vae_checkpoint(dict(checkpoint), made.autoencoder.config.to_dict())
    same(vae, source.parts["vae"].tensors)
    for i, part in enumerate(source.encoders):
        config = source.parts[part].config
        prefix = "cond_stage_model." if made.kind.label is None else f"conditioner.embedders.{i}."
        if made.kind.encoders[i] == "openai":
            theirs = utils.convert_ldm_clip_checkpoint(dict(checkpoint), remove_prefix=f"{prefix}transformer.")
        else:
            encoder = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=config.hidden_size))
            theirs = utils.convert_open_clip_checkpoint(encoder, dict(checkpoint), prefix=f"{prefix}model.")
        # It leaves out the unused layer of Stable Diffusion 2 by its number, which a tiny one does not have.
        wanted = unprefixed(source.parts[part].tensors)
        unused = {key for key in unprefixed(theirs) if made.kind.without_last and key not in wanted}
        assert all(f".layers.{config.num_hidden_layers}." in key or "text_projection" in key for key in unused)
        same({key: value for key, value in unprefixed(theirs).items() if key not in unused}, wanted)


def test_the_reference_reads_the_folder_that_a_file_becomes(tmp_path):
    made = model("bk-sdm-tiny")
    words = made.folder(tmp_path / "words")
    text_to_image.convert(made.file(tmp_path / "model.safetensors"), tmp_path / "out", tokenizer=words)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    same(pipe.unet.state_dict(), made.unet.tensors)
    same(pipe.vae.state_dict(), made.autoencoder.tensors)
    same(unprefixed(pipe.text_encoder.state_dict()), unprefixed(made.texts[0].tensors))
    stored = read_safetensors(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(value.ndim == 2 for key, value in stored.items() if key.endswith("to_q.weight"))
