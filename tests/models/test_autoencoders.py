"""What autoencoders refuse, and what published config.json files say."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from shapes import shaped

from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from cmjax.models.families import family_of

# As files have them: the first Stable Diffusion, Stable Diffusion XL, and TAESD from before `upsample_fn`.
PUBLISHED = {
    "1.5": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "XL": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.20.0.dev0",
        "_name_or_path": "../sdxl-vae/",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "force_upcast": True,
        "layers_per_block": 2,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "latents_mean": None,
        "latents_std": None,
    },
    "tiny": {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.20.0.dev0",
        "act_fn": "relu",
        "block_out_channels": [64, 64, 64, 64],
        "decoder_block_out_channels": [64, 64, 64, 64],
        "encoder_block_out_channels": [64, 64, 64, 64],
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": 4,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2,
    },
}


@pytest.mark.parametrize(("name", "factor"), [("1.5", 0.18215), ("XL", 0.13025), ("tiny", 1.0)])
def test_published_configs_are_read(name, factor):
    kind = AutoencoderTinyConfig if name == "tiny" else AutoencoderConfig
    config = kind.from_dict(PUBLISHED[name])
    assert (config.downsampling, config.latent_channels, config.scaling_factor) == (8, 4, factor)
    assert config.force_upcast is (name != "tiny")
    assert kind.from_dict(config.to_dict()) == config and hash(config) == hash(kind.from_dict(config.to_dict()))
    assert family_of(config).class_name == PUBLISHED[name]["_class_name"]


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (AutoencoderConfig, {"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types"),
        (AutoencoderConfig, {"latents_mean": [0.0], "latents_std": [1.0]}, "latents_mean must have 4 numbers"),
        (AutoencoderConfig, {"latents_mean": [0.0] * 4}, "latents_std must be given beside latents_mean"),
        (AutoencoderConfig, {"latents_std": [1.0] * 4}, "latents_mean must be given beside latents_std"),
        (AutoencoderConfig, {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, r"latents_std\[2\]"),
        (
            AutoencoderConfig,
            {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1},
            "shift_factor must be null",
        ),
        (AutoencoderConfig, {"scaling_factor": 0.0}, "scaling_factor"),
        (AutoencoderTinyConfig, {"upsample_fn": "bilinear"}, "upsample_fn"),
        (AutoencoderTinyConfig, {"upsampling_scaling_factor": 4}, "upsampling_scaling_factor"),
        (AutoencoderTinyConfig, {"num_decoder_blocks": [1, 1]}, "num_decoder_blocks must have one entry for each"),
        (AutoencoderTinyConfig, {"encoder_block_out_channels": [8, 8, 8, 16]}, "must be the same number"),
        (AutoencoderTinyConfig, {"num_encoder_blocks": []}, "1 to 16 levels"),
        (AutoencoderTinyConfig, {"_class_name": "AutoencoderKL"}, "is for AutoencoderKL"),
        (AutoencoderTinyConfig, {"block_channels": [8]}, "unknown options: block_channels"),
    ],
)
def test_what_autoencoders_do_not_have_is_refused_by_name(config, options, says):
    with pytest.raises(ValueError, match=says):
        config.from_dict(options)


@pytest.mark.parametrize("network", [Autoencoder, AutoencoderTiny])
def test_pictures_of_another_shape_are_refused(network):
    config = AutoencoderConfig() if network is Autoencoder else AutoencoderTinyConfig()
    module = shaped(lambda rngs: network(config, rngs=rngs))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, height, width, 3\)"):
        module.encode(jnp.ones((1, 8, 8, 4)))
    with pytest.raises(ValueError, match=r"z must have shape \(batch, height, width, 4\)"):
        module.decode(jnp.ones((8, 8, 4)))
    if config.downsampling > 1:
        with pytest.raises(ValueError, match="multiples of 8, got 12 x 8"):
            module.encode(jnp.ones((1, 12, 8, 3)))


def test_latents_are_float32_in_any_dtype():
    options = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    config = AutoencoderTinyConfig(**options, **channels)

    def both(x):
        module = AutoencoderTiny(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        return module.encode(x)[0], module(x)

    latents, pictures = jax.eval_shape(both, jnp.ones((1, 8, 8, 3), jnp.bfloat16))
    assert latents.dtype == jnp.float32 and pictures.dtype == jnp.float32
