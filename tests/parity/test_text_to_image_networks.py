"""The parts of text-to-image models against diffusers and transformers: the same weights give the same numbers."""

import jax
import numpy as np
import pytest
from flax import nnx

from cmjax.io.weights import file_tensors, load_weights
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.clip import TextConfig, TextEncoder
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

UNETS = {
    "heads by level, linear projections": {
        "block_out_channels": (8, 12, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 3, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "mid_block_scale_factor": 2**0.5,
    },
    "as the first": {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "layers_per_block": 2,
        "downsample_padding": 0,
        "center_input_sample": True,
        "in_channels": 9,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
    },
    "a thin middle": {
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "attention_head_dim": 1,
        "norm_eps": 1e-3,
        "act_fn": "gelu",
    },
    "no middle": {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "mid_block_type": None,
        "attention_head_dim": 3,  # does not divide the channels: heads are 2 wide
    },
}
COMMON = {"norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 10}

AUTOENCODERS = {
    "three levels": {"block_out_channels": (8, 16, 12), "layers_per_block": 1},
    "two layers": {"block_out_channels": (8, 8), "layers_per_block": 2, "latent_channels": 3},
    "without convolutions and attention": {
        "block_out_channels": (8, 16),
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    },
}

TEXTS = {
    "quick": {"hidden_act": "quick_gelu", "eos_token_id": 49},
    "the largest token ends": {"hidden_act": "gelu", "eos_token_id": 2, "num_hidden_layers": 3, "layer_norm_eps": 1e-3},
}


def shaken(network, seed):
    """Give every weight of a reference network some noise, biases and norms included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def ours(network, config, theirs):
    """Load the reference's weights, and check that they come back under the same names."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items() if not name.endswith("position_ids")}
    module = load_weights(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))), state)
    back = file_tensors(module)
    prefix = "text_model." if any(name.startswith("text_model.") for name in state) else ""
    assert {prefix + name for name in back} == set(state)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[prefix + name])
    return module


def close(a, b):
    b = b.detach().numpy()
    assert a.shape == b.shape
    assert np.abs(np.asarray(a) - b).max() <= 2e-5 * np.abs(b).max()


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("name", UNETS)
def test_unets(name):
    theirs = shaken(diffusers.UNet2DConditionModel(**COMMON | UNETS[name]), 0)
    config = UNetConditionConfig.from_dict(dict(theirs.config))
    module = ours(UNetCondition, config, theirs)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4 * config.downsampling, 2 * config.downsampling, config.in_channels)).astype(np.float32)
    t, context = np.array([999, 3]), rng.normal(size=(2, 5, 10)).astype(np.float32)
    expected = theirs(nchw(x), torch.from_numpy(t), encoder_hidden_states=torch.from_numpy(context)).sample
    close(jax.jit(lambda module, *inputs: module(*inputs))(module, x, t, context), expected.permute(0, 2, 3, 1))
    again = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    assert UNetConditionConfig.from_dict(dict(again.config)) == config


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders(name):
    options = COMMON | AUTOENCODERS[name]
    del options["cross_attention_dim"]
    levels = len(options["block_out_channels"])
    options |= {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    theirs = shaken(diffusers.AutoencoderKL(**options), 0)
    config = AutoencoderConfig.from_dict(dict(theirs.config))
    module = ours(Autoencoder, config, theirs)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 8, 3)).astype(np.float32)
    z = rng.normal(size=(2, 4, 6, config.latent_channels)).astype(np.float32)
    mean, log_variance = jax.jit(lambda module, x: module.encode(x))(module, x)
    expected = theirs.encode(nchw(x)).latent_dist
    close(mean, expected.mean.permute(0, 2, 3, 1))
    close(log_variance, expected.logvar.permute(0, 2, 3, 1))
    close(jax.jit(lambda module, z: module.decode(z))(module, z), theirs.decode(nchw(z)).sample.permute(0, 2, 3, 1))


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders(name):
    options = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 9,
        "pad_token_id": 49,
        "bos_token_id": 48,
    }
    theirs = shaken(transformers.CLIPTextModel(transformers.CLIPTextConfig(**options | TEXTS[name])), 0)
    config = TextConfig.from_dict(theirs.config.to_dict())
    module = ours(TextEncoder, config, theirs)
    tokens = np.array([[48, 5, 7, 49, 49, 49, 49], [48, 3, 3, 20, 11, 47, 49], [48, 49, 49, 49, 49, 49, 49]])
    expected = theirs(torch.from_numpy(tokens), output_hidden_states=True)
    got = jax.jit(lambda module, tokens: module(tokens))(module, tokens)
    close(got.last, expected.last_hidden_state)
    close(got.pooled, expected.pooler_output)
    for a, b in zip(got.hidden, expected.hidden_states, strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (UNetConditionConfig, "addition_embed_type", "text_time"),
        (UNetConditionConfig, "only_cross_attention", True),
        (UNetConditionConfig, "time_cond_proj_dim", 256),
        (UNetConditionConfig, "down_block_types", ["KDownBlock2D"] * 4),
        (UNetConditionConfig, "attention_head_dim", [8, 8]),
        (AutoencoderConfig, "down_block_types", ["AttnDownEncoderBlock2D"]),
        (AutoencoderConfig, "latents_mean", [0.0]),
        (TextConfig, "hidden_act", "relu"),
        (TextConfig, "num_attention_heads", 7),
    ],
)
def test_what_networks_do_not_have_is_refused_by_name(config, option, value):
    with pytest.raises(ValueError, match=option):
        config.from_dict({option: value})
