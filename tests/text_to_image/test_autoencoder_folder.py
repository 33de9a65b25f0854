"""Autoencoders alone, and in place of a model's own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from texts import text_model

from cmjax import text_to_image
from cmjax.io.parts import save_part
from cmjax.models import from_nnx
from cmjax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from cmjax.text_to_image import LatentCoder, load_autoencoder

TINY = AutoencoderTinyConfig(
    num_encoder_blocks=(0, 1),
    num_decoder_blocks=(1, 0),
    encoder_block_out_channels=(4, 4),
    decoder_block_out_channels=(4, 4),
)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    assert a.config == b.config


def test_a_tiny_autoencoder_takes_the_place_of_another(tmp_path):
    tiny = LatentCoder(from_nnx(AutoencoderTiny(TINY, rngs=nnx.Rngs(0))))
    save_part(tiny.network, tmp_path / "alone")
    equal(load_autoencoder(tmp_path / "alone"), tiny)
    model = text_model().replace(autoencoder=load_autoencoder(tmp_path / "alone"))
    text_to_image.save(model, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderTiny"]
    equal(text_to_image.load(tmp_path / "model").autoencoder, tiny)
    equal(load_autoencoder(tmp_path / "model"), tiny)


def test_an_autoencoder_that_overflows_float16_computes_in_float32(tmp_path):
    model = text_model()
    text_to_image.save(model, tmp_path / "model", dtype="float16")
    for load in (load_autoencoder, lambda path, **dtypes: text_to_image.load(path, **dtypes).autoencoder):
        coder = load(tmp_path / "model", dtype="float16", param_dtype="float16", abstract=True)
        assert coder.config.force_upcast and coder.network.module.dtype == jnp.float32
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(coder)} == {"float16", "float32"}
        coder = load(tmp_path / "model", dtype="bfloat16", abstract=True)
        assert coder.network.module.dtype == jnp.bfloat16


def test_what_is_no_autoencoder_is_refused(tmp_path):
    save_part(text_model().unet, tmp_path / "unet")
    with pytest.raises(ValueError, match=r"AutoencoderKL or AutoencoderTiny, but .* is for UNet2DCondition"):
        load_autoencoder(tmp_path / "unet")
    with pytest.raises(FileNotFoundError, match=r"has no config.json, and no vae/config.json"):
        load_autoencoder(tmp_path)
    with pytest.raises(ValueError, match="must be a file of weights"):
        load_autoencoder(tmp_path / "unet" / "config.json")
    with pytest.raises(TypeError, match="dtype must be a float dtype"):
        load_autoencoder(tmp_path, dtype="int8")
