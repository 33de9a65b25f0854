"""Autoencoders against diffusers: the same weights give the same latents and pictures."""

import jax
import numpy as np
import pytest
from flax import nnx
from parity.networks import close, nchw, ours, shaken
from shapes import shaped

from cmjax.io.weights import file_tensors, load_weights
from cmjax.models import from_nnx
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from cmjax.text_to_image import LatentCoder

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SMALL = {"norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8, 16)}
KL = {
    "three levels": {"block_out_channels": (8, 16, 12)},
    "two layers": {"block_out_channels": (8, 8), "layers_per_block": 2, "latent_channels": 3},
    "as Stable Diffusion": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 2, "norm_num_groups": 8},
    "one level": {"block_out_channels": (8,)},
    "without convolutions and attention": {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    },
    "without the first convolution": {"use_quant_conv": False},
    "without the second convolution": {"use_post_quant_conv": False},
    "without attention": {"mid_block_add_attention": False},
    "16 latents": {"latent_channels": 16, "shift_factor": 0.1159, "scaling_factor": 0.3611, "use_quant_conv": False},
    "grey in, four channels out": {"in_channels": 1, "out_channels": 4},
    "one group": {"norm_num_groups": 1, "act_fn": "relu"},
    "as many groups as channels": {"block_out_channels": (8, 8), "norm_num_groups": 8, "act_fn": "gelu"},
    "mish": {"act_fn": "mish", "sample_size": (64, 32)},
    "means": {"latents_mean": (-1.6, 1.9, -1.4, 2.5), "latents_std": (8.5, 5.9, 6.5, 5.2), "scaling_factor": 0.5},
}
TINY = {
    "three levels": {"num_encoder_blocks": (1, 2, 1), "num_decoder_blocks": (2, 0, 1)},
    "wide latents": {"num_encoder_blocks": (0, 3), "num_decoder_blocks": (3, 1), "latent_channels": 16},
    "gelu": {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,), "act_fn": "gelu", "in_channels": 1},
    "another magnitude": {
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_magnitude": 2,
        "latent_shift": 0.25,
        "scaling_factor": 0.5,
    },
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def reference(kind, options):
    if kind == "AutoencoderKL":
        options = SMALL | options
        for side in ("down_block_types", "up_block_types"):
            block = "DownEncoderBlock2D" if side.startswith("down") else "UpDecoderBlock2D"
            options[side] = (block,) * len(options["block_out_channels"])
    else:
        for side in ("encoder", "decoder"):
            options = {f"{side}_block_out_channels": (8,) * len(options["num_encoder_blocks"]), **options}
    return getattr(diffusers, kind)(**options)


def inputs(config, height=5, width=3):
    """Pictures of odd numbers of latents a side, and latents."""
    rng = np.random.default_rng(0)
    f = config.downsampling
    x = rng.uniform(-1, 1, size=(2, height * f, width * f, config.in_channels)).astype(np.float32)
    return x, 2 * rng.normal(size=(2, height, width, config.latent_channels)).astype(np.float32)


@jax.jit
def run(module, x, z):
    return module.encode(x), module.decode(z)


def nhwc(y):
    return y.permute(0, 2, 3, 1)


def held(module, theirs):
    x, z = inputs(module.config)
    (mean, log_variance), pictures = run(module, x, z)
    encoded = theirs.encode(nchw(x))
    if log_variance is None:
        close(mean, nhwc(encoded.latents))
    else:
        close(mean, nhwc(encoded.latent_dist.mean))
        close(log_variance, nhwc(encoded.latent_dist.logvar))
    close(pictures, nhwc(theirs.decode(nchw(z)).sample))


@pytest.mark.parametrize("name", KL)
def test_autoencoders(name):
    theirs = shaken(reference("AutoencoderKL", KL[name]), 0)
    config = AutoencoderConfig.from_dict(dict(theirs.config))
    held(ours(Autoencoder, config, theirs), theirs)
    again = diffusers.AutoencoderKL.from_config(config.to_dict())
    assert AutoencoderConfig.from_dict(dict(again.config)) == config


@pytest.mark.parametrize("name", TINY)
def test_tiny_autoencoders(name):
    theirs = shaken(reference("AutoencoderTiny", TINY[name]), 0)
    config = AutoencoderTinyConfig.from_dict(dict(theirs.config))
    held(ours(AutoencoderTiny, config, theirs), theirs)
    again = diffusers.AutoencoderTiny.from_config(config.to_dict())
    assert AutoencoderTinyConfig.from_dict(dict(again.config)) == config


@pytest.mark.parametrize(("kind", "name"), [("AutoencoderKL", "two layers"), ("AutoencoderTiny", "three levels")])
def test_our_weights_give_the_same_there(kind, name):
    theirs = reference(kind, KL[name] if kind == "AutoencoderKL" else TINY[name]).eval()
    config, network = (
        (AutoencoderConfig, Autoencoder) if kind == "AutoencoderKL" else (AutoencoderTinyConfig, AutoencoderTiny)
    )
    module = network(config.from_dict(dict(theirs.config)), rngs=nnx.Rngs(3))
    theirs.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in file_tensors(module).items()})
    held(module, theirs)


@pytest.mark.parametrize("ones", [0, 2])
def test_files_of_2022(ones):
    theirs = shaken(reference("AutoencoderKL", KL["three levels"]), 0)
    config = AutoencoderConfig.from_dict(dict(theirs.config))
    old = {}
    for name, value in theirs.state_dict().items():
        value = value.numpy()
        for now, then in OLD_ATTENTION.items():
            if f".{now}." in name:
                name = name.replace(f".{now}.", f".{then}.")
                value = value.reshape(*value.shape, *(1,) * ones) if value.ndim == 2 else value
        old[name] = value
    module = load_weights(shaped(lambda rngs: Autoencoder(config, rngs=rngs)), old)
    held(module, theirs)
    assert set(file_tensors(module)) == set(theirs.state_dict())


MEANS = {"latents_mean": (-1.6, 1.9, -1.4, 2.5), "latents_std": (8.5, 5.9, 6.5, 5.2)}


def test_the_scale_is_that_of_the_reference_pipelines():
    theirs = shaken(reference("AutoencoderKL", {**MEANS, "scaling_factor": 0.5}), 0)
    config = AutoencoderConfig.from_dict(dict(theirs.config))
    coder = LatentCoder(from_nnx(ours(Autoencoder, config, theirs)))
    x, latents = inputs(config)
    mean, std = (torch.tensor(MEANS[name]).view(1, 4, 1, 1) for name in MEANS)
    encoded = theirs.encode(nchw(x)).latent_dist.mean
    close(coder.encode(x), nhwc((encoded - mean) * 0.5 / std))
    close(coder.decode(latents), nhwc(theirs.decode(nchw(latents) * std / 0.5 + mean).sample))


@pytest.mark.parametrize("size", [(32, 32), (19, 14), (17, 10)])
def test_tiles(size):
    """Equal, but where the reference has one more tile that holds nothing new (here the last two columns)."""
    theirs = shaken(reference("AutoencoderKL", {"sample_size": 32, "norm_num_groups": 2}), 0)
    theirs.enable_tiling()
    assert theirs.tile_latent_min_size == 16
    config = AutoencoderConfig.from_dict(dict(theirs.config))
    coder = LatentCoder(from_nnx(ours(Autoencoder, config, theirs)), tile=16)
    x, latents = inputs(config, *size)
    common = 12 if size[1] == 14 else size[1]
    encoded, decoded = theirs.encode(nchw(x)).latent_dist.mean * 0.18215, theirs.decode(nchw(latents / 0.18215)).sample
    close(coder.encode(x)[:, :, :common], nhwc(encoded)[:, :, :common], 1e-4)
    close(coder.decode(latents)[:, :, : 2 * common], nhwc(decoded)[:, :, : 2 * common], 1e-4)
