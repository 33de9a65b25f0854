"""What dry runs measure in place of everything else: a network that compiles in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cmjax.models import UNetConfig

__all__ = ["folder", "register"]

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(16,),
    layers_per_block=1,
    down_block_types=("AttnDownBlock2D",),
    mid_block_type=None,
    up_block_types=("AttnUpBlock2D",),
    attention_head_dim=16,
    norm_num_groups=4,
    num_class_embeds=10,
)
PARAMETERS = 33123


def register() -> str:
    """Let `full_size` know the network by its name, which is returned."""
    import full_size

    full_size.NETWORKS["tiny"] = full_size.FullSize(CONFIG, PARAMETERS, 0, "cd_imagenet64_l2")
    return "tiny"


def folder() -> Path:
    """The network with random weights, in a folder of its own that `cmjax.load` reads."""
    from full_size import write_folder

    return write_folder(Path(tempfile.mkdtemp()) / "tiny", register())
