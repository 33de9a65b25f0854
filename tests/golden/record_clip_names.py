"""Record the names and shapes of CLIP's published text encoders, as transformers has them, in clip_names.json.

    python tests/golden/record_clip_names.py

One entry a name; "{n}" stands for the number of each layer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "clip_names.json"
# What the config.json of each says of the network. The three special ids are wrong in all of them, and 2 has a meaning.
_COMMON = {
    "model_type": "clip_text_model",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float16",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "CLIP-L": {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "OpenCLIP-H": {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    },
    "OpenCLIP-bigG": {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
}


def tables() -> dict[str, Any]:
    """Build each encoder without memory, and fold the layers' names together."""
    import torch
    import transformers

    found = {}
    for name, said in CONFIGS.items():
        config = _COMMON | said
        make: Any = getattr(transformers, said["architectures"][0])
        with torch.device("meta"):
            network = make(transformers.CLIPTextConfig(**{k: v for k, v in config.items() if k != "architectures"}))
        tensors = {}
        for path, value in network.named_parameters():
            with_prefix = path if path.startswith("text_") else f"text_model.{path}"
            tensors[re.sub(r"\.layers\.\d+\.", ".layers.{n}.", with_prefix)] = list(value.shape)
        found[name] = {"config": config, "tensors": dict(sorted(tensors.items()))}
    return found


def written(found: dict[str, Any]) -> str:
    """One line a tensor."""
    return (
        re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", json.dumps(found, indent=1))
        + "\n"
    )


if __name__ == "__main__":
    FILE.write_text(written(tables()))
