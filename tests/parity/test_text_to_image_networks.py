"""The text-conditioned UNet against diffusers: the same weights give the same numbers."""

import jax
import numpy as np
import pytest
from parity.networks import close, nchw, ours, shaken

from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

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


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (UNetConditionConfig, "addition_embed_type", "text_time"),
        (UNetConditionConfig, "only_cross_attention", True),
        (UNetConditionConfig, "time_cond_proj_dim", 256),
        (UNetConditionConfig, "down_block_types", ["KDownBlock2D"] * 4),
        (UNetConditionConfig, "attention_head_dim", [8, 8]),
    ],
)
def test_what_networks_do_not_have_is_refused_by_name(config, option, value):
    with pytest.raises(ValueError, match=option):
        config.from_dict({option: value})
