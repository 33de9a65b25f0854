"""Record the names and shapes of the tensors of published networks: `python tests/golden/record_names.py`.

Needs torch and diffusers (the extra `parity`), but no memory: the networks are made on the device "meta". One file a
network lies in `names/`, with its class and config.json. Names alone, such as `autoencoder_kl`, record those only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "names"

# By name of the file: the class in diffusers, and what its config.json says.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder_kl": (
        "AutoencoderKL",
        {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "sample_size": 512,
        },
    ),
    "autoencoder_tiny": ("AutoencoderTiny", {}),
}


def record(name: str) -> None:
    """Write what one network's file holds, one tensor a line: its name, and its shape as 64x3x3x3."""
    import diffusers
    import torch

    class_name, config = NETWORKS[name]
    with torch.device("meta"):
        tensors = getattr(diffusers, class_name)(**config).state_dict()
    shapes = {key: "x".join(map(str, value.shape)) for key, value in tensors.items()}
    content = {"config": json.dumps({"_class_name": class_name, **config}), "tensors": shapes}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or NETWORKS:
        record(name)
