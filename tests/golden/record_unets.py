"""Record what tensors published text-to-image UNets have: `python tests/golden/record_unets.py` writes `unets.json`.

Needs torch and diffusers (the extra `parity`): the reference builds each network on the meta device, from the options
that its config.json holds, and says the names and shapes of its state. `golden.unets` reads the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a program: `golden` is the folder this file lies in
    sys.path.insert(0, str(Path(__file__).parents[1]))

from golden.unets import FILE, folded

__all__ = ["CONFIGS", "main"]

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

# Stable Diffusion 1.5's file, key for key.
SD: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS, CROSS, CROSS, PLAIN],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": [PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP],
}
# What later files add: options at the values that switch them off.
LATER: dict[str, Any] = {
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "use_linear_projection": False,
}
XL: dict[str, Any] = {
    **SD,
    **LATER,
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": [PLAIN, CROSS, CROSS],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, PLAIN_UP],
    "upcast_attention": None,
    "use_linear_projection": True,
}
THIN = {"layers_per_block": 1, "mid_block_type": None}
# Left in the file by an average of weights over training.
AVERAGED = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000, "power": 0.6667}
AVERAGED |= {"update_after_step": 0, "use_ema_warmup": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "stable-diffusion-v1-5": SD,
    "stable-diffusion-inpainting": SD | {"in_channels": 9},
    "instruct-pix2pix": SD | {"in_channels": 8},
    "LCM_Dreamshaper_v7": SD | LATER | {"sample_size": 96, "time_cond_proj_dim": 256},
    "stable-diffusion-2-1": SD
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "stable-diffusion-xl-base-1.0": XL,
    "stable-diffusion-xl-1.0-inpainting-0.1": XL | AVERAGED | {"in_channels": 9},
    "stable-diffusion-xl-refiner-1.0": XL
    | {
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": [PLAIN, CROSS, CROSS, PLAIN],
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
        "up_block_types": [PLAIN_UP, CROSS_UP, CROSS_UP, PLAIN_UP],
    },
    "SSD-1B": XL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "Segmind-Vega": XL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    },
    "koala-700m": XL | THIN | {"transformer_layers_per_block": [1, 2, 5]},
    "koala-1b": XL | {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
    "bk-sdm-base": SD | {"layers_per_block": 1},
    "bk-sdm-small": SD | THIN,
    "bk-sdm-tiny": SD
    | THIN
    | {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": [CROSS, CROSS, CROSS],
        "up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP],
    },
}


def record(config: dict[str, Any]) -> dict[str, Any]:
    """Build the reference's network without weights, and say what it has."""
    import diffusers
    import torch

    with torch.device("meta"):
        network = getattr(diffusers, config["_class_name"]).from_config(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return {
        "config": config,
        "parameters": sum(value.numel() for value in network.parameters()),
        "tensors": folded(shapes),
    }


def main() -> None:
    lines = [
        f"{json.dumps(name)}: {json.dumps(record(config), separators=(',', ':'))}" for name, config in CONFIGS.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
