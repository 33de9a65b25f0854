"""A small file of the original repository: the names and shapes of its tensors as a list written by hand."""

import numpy as np

from cmjax.models import UNetConfig

# Two levels of 32 and 64 channels, one block each, attention on the second, scale and shift, 5 classes.
CONFIG = UNetConfig(
    sample_size=64,
    block_out_channels=(32, 64),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    layers_per_block=1,
    downsample_type="resnet",
    upsample_type="resnet",
    attention_head_dim=16,
    attn_norm_num_groups=32,
    resnet_time_scale_shift="scale_shift",
    num_class_embeds=5,
)

# Theirs, ours, and the shape of the weight; a residual block is (in, out), an attention (channels,).
LAYERS = {
    "time_embed.0": ("time_embedding.linear_1", (128, 32)),
    "time_embed.2": ("time_embedding.linear_2", (128, 128)),
    "input_blocks.0.0": ("conv_in", (32, 3, 3, 3)),
    "out.0": ("conv_norm_out", (32,)),
    "out.2": ("conv_out", (3, 32, 3, 3)),
}
BLOCKS = {
    "input_blocks.1.0": ("down_blocks.0.resnets.0", (32, 32)),
    "input_blocks.2.0": ("down_blocks.0.downsamplers.0", (32, 32)),
    "input_blocks.3.0": ("down_blocks.1.resnets.0", (32, 64)),
    "input_blocks.3.1": ("down_blocks.1.attentions.0", (64,)),
    "middle_block.0": ("mid_block.resnets.0", (64, 64)),
    "middle_block.1": ("mid_block.attentions.0", (64,)),
    "middle_block.2": ("mid_block.resnets.1", (64, 64)),
    "output_blocks.0.0": ("up_blocks.0.resnets.0", (128, 64)),
    "output_blocks.0.1": ("up_blocks.0.attentions.0", (64,)),
    "output_blocks.1.0": ("up_blocks.0.resnets.1", (96, 64)),
    "output_blocks.1.1": ("up_blocks.0.attentions.1", (64,)),
    "output_blocks.1.2": ("up_blocks.0.upsamplers.0", (64, 64)),
    "output_blocks.2.0": ("up_blocks.1.resnets.0", (96, 32)),
    "output_blocks.3.0": ("up_blocks.1.resnets.1", (64, 32)),
}


def residual(c_in, c_out):
    layers = {
        "in_layers.0": ("norm1", (c_in,)),
        "in_layers.2": ("conv1", (c_out, c_in, 3, 3)),
        "emb_layers.1": ("time_emb_proj", (2 * c_out, 128)),
        "out_layers.0": ("norm2", (c_out,)),
        "out_layers.3": ("conv2", (c_out, c_out, 3, 3)),
    }
    return layers | ({"skip_connection": ("conv_shortcut", (c_out, c_in, 1, 1))} if c_in != c_out else {})


def attention(c):
    return {"norm": ("group_norm", (c,)), "proj_out": ("to_out.0", (c, c, 1, 1)), "qkv": (None, (3 * c, c, 1, 1))}


def all_layers():
    layers = dict(LAYERS)
    for theirs, (ours, channels) in BLOCKS.items():
        inner = residual(*channels) if len(channels) == 2 else attention(*channels)
        for name, (our_name, shape) in inner.items():
            layers[f"{theirs}.{name}"] = (our_name and f"{ours}.{our_name}", shape)
    return layers


def tensors(seed=0):
    """An original file's tensors, made from the list above."""
    rng, made = np.random.default_rng(seed), {}
    for name, (_, shape) in all_layers().items():
        made[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        made[f"{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    return made | {"label_emb.weight": rng.normal(size=(5, 128)).astype(np.float32)}
