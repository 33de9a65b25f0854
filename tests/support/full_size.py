"""The published networks in full size, with random weights: for benchmarks and for checks that need no download.

`python tests/full_size.py FOLDER` writes a folder that `cmjax.load` and diffusers read; with `--original`, a .pt file
in the original repository's names and format.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import torchfiles
from flax import nnx

import cmjax
from cmjax.io.single_files.consistency_models import _layers
from cmjax.io.single_files.published import Published, published
from cmjax.io.weights import file_tensors
from cmjax.models import UNet, UNetConfig, from_nnx

__all__ = ["IMAGENET_64", "NETWORKS", "FullSize", "checkpoint", "original_tensors", "write_folder", "write_original"]

# The config.json of ImageNet 64: every key of the file.
IMAGENET_64 = """{
  "_class_name": "UNet2DModel", "_diffusers_version": "0.18.0.dev0", "act_fn": "silu", "add_attention": true,
  "attention_head_dim": 64, "attn_norm_num_groups": 32, "block_out_channels": [192, 384, 576, 768],
  "center_input_sample": false, "class_embed_type": null,
  "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
  "downsample_padding": 1, "downsample_type": "resnet", "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 3,
  "layers_per_block": 3, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
  "num_class_embeds": 1000, "out_channels": 3, "resnet_time_scale_shift": "scale_shift", "sample_size": 64,
  "time_embedding_type": "positional",
  "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
  "upsample_type": "resnet"
}"""


class FullSize(NamedTuple):
    """A published network: its config, its numbers of parameters and of tensors, and a checkpoint that has it."""

    config: UNetConfig
    parameters: int
    tensors: int
    name: str

    @property
    def published(self) -> Published:
        """The grid and the two-step path of that checkpoint."""
        entry = published(self.name)
        assert entry is not None
        return entry


NETWORKS = {
    "imagenet64": FullSize(UNetConfig.from_dict(json.loads(IMAGENET_64)), 295_899_267, 629, "cd_imagenet64_l2"),
    "lsun256": FullSize(
        UNetConfig(
            sample_size=256,
            block_out_channels=(256, 256, 512, 512, 1024, 1024),
            layers_per_block=2,
            down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
            up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=64,
            attn_norm_num_groups=32,
        ),
        526_304_771,
        630,
        "cd_bedroom256_l2",
    ),
}


def checkpoint(
    network: str = "imagenet64", *, num_train_timesteps: int | None = None, dtype: Any = np.float32, seed: int = 0
) -> cmjax.Checkpoint:
    """Make a published network with random weights that keep its pictures at about their size, from layer to layer.

    Args:
      network: a name of `NETWORKS`.
      num_train_timesteps: N of the sampler's grid; None for the published one.
      dtype: what the network computes in; the weights are float32.
      seed: of the weights.

    Raises:
      AssertionError: the network has not the published number of parameters.
    """
    full = NETWORKS[network]
    no_keys = cast(nnx.Rngs, SimpleNamespace(params=lambda: None))  # only the shapes are made
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UNet(full.config, rngs=no_keys, dtype=dtype)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert parameters == full.parameters, f"{network} has {parameters:,} parameters, published are {full.parameters:,}"
    rng = np.random.default_rng(seed)
    flat = [(path, leaf.replace(_weight(rng, str(path[-1]), leaf.shape))) for path, leaf in nnx.to_flat_state(state)]
    config = cmjax.cm.CMConfig(num_train_timesteps=num_train_timesteps or full.published.num_train_timesteps)
    return cmjax.Checkpoint(from_nnx(nnx.merge(graphdef, nnx.from_flat_state(flat))), config)


def _weight(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> jax.Array:
    if kind == "scale":
        return jax.numpy.asarray(np.ones(shape, np.float32))
    value = rng.standard_normal(shape, np.float32)
    value *= {"kernel": 1 / math.sqrt(math.prod(shape[:-1])), "bias": 0.1, "embedding": 1.0}[kind]
    return jax.numpy.asarray(value)


def write_folder(folder: str | Path, network: str = "imagenet64", *, num_train_timesteps: int | None = None) -> Path:
    """Write a network of full size as a folder in the published layout; returns the folder."""
    cmjax.save(checkpoint(network, num_train_timesteps=num_train_timesteps), folder)
    return Path(folder)


def write_original(path: str | Path, network: str = "imagenet64") -> Path:
    """Write a network of full size as a file of torch.save, with the original repository's names; returns the path."""
    tensors = file_tensors(checkpoint(network).model.module)
    return torchfiles.write(Path(path), original_tensors(tensors, NETWORKS[network].config))


def original_tensors(tensors: dict[str, np.ndarray], config: UNetConfig) -> dict[str, np.ndarray]:
    """Give tensors in diffusers' names the original ones: the way back from `rename`."""
    left, renamed = dict(tensors), {}
    for theirs, ours in _layers(config):
        for kind in ("weight", "bias"):
            if ours.endswith("to_qkv"):
                parts = [left.pop(f"{ours.removesuffix('qkv')}{part}.{kind}") for part in "qkv"]
                value = np.concatenate(parts)
            elif (value := left.pop(f"{ours}.{kind}", None)) is None:  # shortcuts, and the bias of the classes
                continue
            in_attention = ours.endswith(("to_qkv", "to_out.0"))
            renamed[f"{theirs}.{kind}"] = value[:, :, None, None] if in_attention and kind == "weight" else value
    assert not left, f"no original name for {', '.join(left)}"
    return renamed


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("path", type=Path, metavar="FOLDER", help="what to write; with --original, a file")
    options.add_argument("--network", choices=NETWORKS, default="imagenet64")
    options.add_argument("--num-train-timesteps", type=int, help="N of the grid; default: the published one")
    options.add_argument("--original", action="store_true", help="write a .pt file with the original names")
    args = options.parse_args(arguments)
    if args.original:
        if args.num_train_timesteps is not None:
            options.error("--num-train-timesteps is for folders: the original files do not hold it")
        path = write_original(args.path, args.network)
    else:
        path = write_folder(args.path, args.network, num_train_timesteps=args.num_train_timesteps)
    print(f"{path}: {args.network}, {NETWORKS[args.network].parameters:,} parameters")


if __name__ == "__main__":
    main()
