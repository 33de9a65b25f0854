"""The parts of text-to-image models against diffusers and transformers: the same weights give the same numbers."""

import jax
import numpy as np
import pytest
from parity.networks import close, nchw, ours, shaken

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

TEXTS = {
    "quick": {"hidden_act": "quick_gelu", "eos_token_id": 49},
    "the largest token ends": {"hidden_act": "gelu", "eos_token_id": 2, "num_hidden_layers": 3, "layer_norm_eps": 1e-3},
}


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
        (TextConfig, "hidden_act", "relu"),
        (TextConfig, "num_attention_heads", 7),
    ],
)
def test_what_networks_do_not_have_is_refused_by_name(config, option, value):
    with pytest.raises(ValueError, match=option):
        config.from_dict({option: value})
