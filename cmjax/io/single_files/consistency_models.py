"""Read checkpoints of the consistency-models repository (Song et al. 2023) as `UNet` models.

Its network is the UNet of Dhariwal and Nichol 2021, which diffusers' `UNet2DModel` computes too: the weights are the
same numbers under other names. Theirs count the blocks of the way down and of the way up through all levels,
`input_blocks.5.1`, where ours say level and place, `down_blocks.1.attentions.0`. With L residual blocks a level:

| there | here |
|---|---|
| `time_embed.0`, `.2` | `time_embedding.linear_1`, `linear_2` |
| `label_emb` | `class_embedding` |
| `input_blocks.0.0` | `conv_in` |
| `input_blocks.{1 + i (L + 1) + j}.0`, `.1` | `down_blocks.{i}.resnets.{j}`, `attentions.{j}` |
| `input_blocks.{(i + 1) (L + 1)}.0` | `down_blocks.{i}.downsamplers.0`, but for the last level |
| `middle_block.0`, `.1`, `.2` | `mid_block.resnets.0`, `attentions.0`, `resnets.1` |
| `output_blocks.{i (L + 1) + j}.0`, `.1` | `up_blocks.{i}.resnets.{j}`, `attentions.{j}` |
| the last part of `output_blocks.{i (L + 1) + L}` | `up_blocks.{i}.upsamplers.0`, but for the last level |
| `out.0`, `out.2` | `conv_norm_out`, `conv_out` |

An attention's queries, keys and values are one convolution there, its rows in the order (q | k | v) x heads x channels.

The files have no config. Most of it is inferred from the shapes of the tensors. The shapes do not determine the number
of channels of a head (64 in all published files), the size of the pictures (inferred from the channel multipliers, by
that repository's table) and the sampler's N.

References:
  Song et al., Consistency Models, 2023; Dhariwal and Nichol, Diffusion Models Beat GANs, 2021, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from cmjax.io.assembly import Checkpoint, assemble, check_dtype
from cmjax.io.safetensors_files import read_safetensors
from cmjax.io.single_files.other_kinds import GUIDED_DIFFUSION, kind_of, remedy
from cmjax.io.single_files.published import published
from cmjax.io.torch_files.reader import check_path, read_pt
from cmjax.io.weights import Placement, some_of
from cmjax.models import UNetConfig
from cmjax.samplers.cm import CMConfig

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["load_original", "network_config", "read_original", "rename"]

# Multipliers of the channels, by the size of the pictures: the table of that repository.
_SIZES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}

# The largest of each number that a caller gives: beyond them a slip is likelier than such a model.
_MOST = {"num_train_timesteps": 10**6, "sample_size": 1 << 16, "head_dim": 1 << 16}
_LISTED = 30  # names of tensors in one message

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}


def load_original(
    path: str | Path,
    *,
    num_train_timesteps: int | None = None,
    sample_size: int | None = None,
    head_dim: int = 64,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    abstract: bool = False,
) -> Checkpoint:
    """Load a `.pt` file of the consistency-models repository.

    It reads the published models (`cd_imagenet64_l2.pt`, `ct_cat256.pt`, ...), the diffusion models that they were
    distilled from (`edm_imagenet64_ema.pt`, ...: the same network, but a denoiser; call it with `cmjax.denoiser_fn`),
    and those that a training run of that repository writes (`ema_0.9999_*.pt`, `model*.pt`, `target_model*.pt`).

    Args:
      path: the file; or a .safetensors file of the same names.
      num_train_timesteps: N, the size of the sampler's grid, up to 10^6; None for the published N of a file with a
        published name, else 40.
      sample_size: pixels per side of the pictures; None for the size that the repository's table has for these
        channels (256, 128 or 64), or 64.
      head_dim: channels of one attention head.
      dtype: the dtype that the network computes in, as for `cmjax.load`.
      param_dtype: the dtype of its matrices, as for `cmjax.load`.
      sharding: where the weights go, as for `cmjax.load`.
      abstract: check the file, but read no weights, as for `cmjax.load`.

    Returns:
      The model and a `CMConfig`.

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: path is not a path, a number is not a whole number, or dtype or param_dtype is not a float dtype.
      ValueError: the file is damaged or holds no such network, or an argument does not fit it.

    Example:
      >>> load_original("cd_imagenet64_l2.pt")
      Traceback (most recent call last):
      FileNotFoundError: there is no weights file cd_imagenet64_l2.pt.
    """
    check_dtype("dtype", dtype)
    check_dtype("param_dtype", param_dtype)
    network, tensors, config = read_original(
        path, num_train_timesteps=num_train_timesteps, sample_size=sample_size, head_dim=head_dim
    )
    try:
        model = assemble(network, tensors, dtype=dtype, param_dtype=param_dtype, sharding=sharding, abstract=abstract)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Checkpoint(model, config)


def read_original(
    path: str | Path,
    *,
    num_train_timesteps: int | None = None,
    sample_size: int | None = None,
    head_dim: int = 64,
) -> tuple[UNetConfig, dict[str, np.ndarray], CMConfig]:
    """Read the parts of a model: the network's config, tensors with diffusers' names, and the sampler's config."""
    check_path(path)
    entry = published(path)
    if num_train_timesteps is None:
        num_train_timesteps = entry.num_train_timesteps if entry else CMConfig.num_train_timesteps
    _check_whole("num_train_timesteps", num_train_timesteps)
    _check_whole("head_dim", head_dim)
    if sample_size is not None:
        _check_whole("sample_size", sample_size)
    config = CMConfig(num_train_timesteps=num_train_timesteps)
    tensors = read_safetensors(path) if Path(path).suffix == ".safetensors" else read_pt(path)
    try:
        network = network_config(tensors, sample_size=sample_size, head_dim=head_dim)
        return network, rename(tensors, network), config
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_whole(name: str, value: object) -> None:
    """Refuse what is not a whole number, or none that a model has."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r:.60}.")
    if not 1 <= value <= _MOST[name]:
        got = value if abs(value) < 1 << 64 else "one of more than 64 bits"
        raise ValueError(f"{name} must be a whole number from 1 to {_MOST[name]}, got {got}.")


def network_config(
    tensors: Mapping[str, np.ndarray], *, sample_size: int | None = None, head_dim: int = 64
) -> UNetConfig:
    """Read a network's config off the shapes of its tensors.

    Args:
      tensors: the tensors of an original file, by its names.
      sample_size: as for `load_original`.
      head_dim: as for `load_original`.

    Returns:
      The config of the same network here.

    Raises:
      ValueError: the tensors are not of such a network, or it has parts that are not supported.
    """
    _check_kind(tensors)
    blocks = {side: _parts(tensors, side) for side in ("input_blocks", "output_blocks")}
    total = len(blocks["output_blocks"])
    # Where the way up doubles the picture, a level's last block has a second residual block.
    doubling = [i for i, parts in enumerate(blocks["output_blocks"]) if _last_is_resnet(parts)]
    period = doubling[0] + 1 if doubling else total
    levels = len(doubling) + 1
    if total != levels * period or len(blocks["input_blocks"]) != total or period < 2:
        raise ValueError(
            f"the network has {len(blocks['input_blocks'])} input_blocks and {total} output_blocks, of which "
            f"{len(doubling)} double the picture, which is not a whole number of levels. Was resblock_updown on?"
        )
    firsts = [1 + level * period for level in range(levels)]
    channels = tuple(_shape(tensors, f"input_blocks.{first}.0.out_layers.3.weight", 4)[0] for first in firsts)
    attends = [f"input_blocks.{first}.1.qkv.weight" in tensors for first in firsts]
    emb_rows = _shape(tensors, f"input_blocks.{firsts[0]}.0.emb_layers.1.weight", 2)[0]
    conv_in, time_in = _shape(tensors, "input_blocks.0.0.weight", 4), _shape(tensors, "time_embed.0.weight", 2)
    if not conv_in[0] == time_in[1] == channels[0] or time_in[0] != 4 * time_in[1]:
        raise ValueError(
            f"the network begins with {conv_in[0]} channels, its first level has {channels[0]}, and it tells the time "
            f"in {time_in[1]} waves: the three must be equal here (the first of channel_mult must be 1)."
        )
    for channel, attend in zip(channels, [*attends[:-1], True], strict=True):  # the middle always attends
        if attend and channel % head_dim:
            raise ValueError(
                f"head_dim = {head_dim} does not divide the {channel} channels that attention has; give the "
                "num_head_channels that the network was trained with (head_dim of cmjax.io.load_original, --head-dim "
                "of cmjax convert)."
            )
    down = tuple("AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends)
    up = tuple("AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends))
    return UNetConfig(
        sample_size=_size(channels) if sample_size is None else sample_size,
        in_channels=conv_in[1],
        out_channels=_shape(tensors, "out.2.weight", 4)[0],
        block_out_channels=channels,
        layers_per_block=period - 1,
        down_block_types=down,
        up_block_types=up,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=head_dim,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift" if emb_rows == 2 * channels[0] else "default",
        num_class_embeds=_shape(tensors, "label_emb.weight", 2)[0] if "label_emb.weight" in tensors else None,
    )


def rename(tensors: Mapping[str, np.ndarray], config: UNetConfig) -> dict[str, np.ndarray]:
    """Give the tensors of an original file diffusers' names and layout.

    Args:
      tensors: the tensors by their names there.
      config: what `network_config` says of them.

    Returns:
      The tensors by their names here: views of those given.

    Raises:
      ValueError: there are tensors that have no place in the network, or none for a place in it: all are listed
        (of very many, the first).
    """
    left, renamed, missing = dict(tensors), {}, []
    for theirs, ours in _layers(config):
        for kind in ("weight", "bias"):
            if ours == "class_embedding" and kind == "bias":
                continue
            value = left.pop(f"{theirs}.{kind}", None)
            if value is not None:
                renamed |= _split(f"{theirs}.{kind}", ours, kind, value)
            elif not theirs.endswith("skip_connection"):  # which of these there are, the widths say
                missing.append(f"{theirs}.{kind}")
    faults = [f"it lacks {some_of(missing, _LISTED)}"] if missing else []
    faults += [f"it holds {some_of(list(left), _LISTED)}, which have no place in the network"] if left else []
    if faults:
        raise ValueError(f"the file does not fit the network that its tensors describe: {'; '.join(faults)}.")
    return renamed


def _layers(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Pair the names of all layers: theirs, and ours."""
    yield from {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}.items()
    if config.num_class_embeds is not None:
        yield "label_emb", "class_embedding"
    yield "input_blocks.0.0", "conv_in"
    for theirs, ours, layers in _blocks(config):
        for layer, name in layers.items():
            yield f"{theirs}.{layer}", f"{ours}.{name}"
    yield from {"out.0": "conv_norm_out", "out.2": "conv_out"}.items()


def _blocks(config: UNetConfig) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Pair the names of all residual blocks and attentions: theirs, ours, and those of the layers inside."""
    per_level, last = config.layers_per_block + 1, len(config.block_out_channels) - 1
    attention = {**_ATTENTION, "qkv": "to_qkv"}
    for i, kind in enumerate(config.down_block_types):
        for j in range(config.layers_per_block):
            theirs = f"input_blocks.{1 + i * per_level + j}"
            yield f"{theirs}.0", f"down_blocks.{i}.resnets.{j}", _RESNET
            if kind == "AttnDownBlock2D":
                yield f"{theirs}.1", f"down_blocks.{i}.attentions.{j}", attention
        if i < last:
            yield f"input_blocks.{(i + 1) * per_level}.0", f"down_blocks.{i}.downsamplers.0", _RESNET
    yield "middle_block.0", "mid_block.resnets.0", _RESNET
    yield "middle_block.1", "mid_block.attentions.0", attention
    yield "middle_block.2", "mid_block.resnets.1", _RESNET
    for i, kind in enumerate(config.up_block_types):
        for j in range(per_level):
            theirs = f"output_blocks.{i * per_level + j}"
            yield f"{theirs}.0", f"up_blocks.{i}.resnets.{j}", _RESNET
            if kind == "AttnUpBlock2D":
                yield f"{theirs}.1", f"up_blocks.{i}.attentions.{j}", attention
        if i < last:
            part = 2 if kind == "AttnUpBlock2D" else 1
            yield (
                f"output_blocks.{i * per_level + config.layers_per_block}.{part}",
                f"up_blocks.{i}.upsamplers.0",
                _RESNET,
            )


def _split(theirs: str, ours: str, kind: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Turn a 1x1 convolution of an attention into a linear layer, or into three."""
    if ".attentions." not in ours or "group_norm" in ours:
        return {f"{ours}.{kind}": value}
    if kind == "weight":
        if value.ndim != 4 or value.shape[2:] != (1, 1):
            raise ValueError(f"tensor {theirs} is {value.shape}, not a 1x1 convolution's (out, in, 1, 1).")
        value = value[:, :, 0, 0]
    if not ours.endswith("to_qkv"):
        return {f"{ours}.{kind}": value}
    if value.ndim == 0 or len(value) % 3:
        raise ValueError(f"tensor {theirs} is {value.shape}, but queries, keys and values are three equal parts.")
    names = (f"{ours.removesuffix('to_qkv')}to_{part}.{kind}" for part in "qkv")
    return dict(zip(names, np.split(value, 3), strict=True))


def _check_kind(tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse, by name, networks that are near relations."""
    for name in tensors:
        if name == "conv_in.weight" or name.startswith("down_blocks."):
            raise ValueError(
                f"tensor {name} has diffusers' name: which network this is, a config.json beside the file says; give "
                "its folder."
            )
        if re.search(r"_blocks\.\d+\.\d+\.(op|conv)\.", name):
            raise ValueError(
                f"tensor {name} resamples by a convolution: networks with resblock_updown=False are not supported."
            )
        if name.endswith(".qkv.weight") and tensors[name].ndim == 3:
            raise ValueError(
                f"tensor {name} has three axes, as in guided-diffusion, where attention has another order; only those "
                "of the consistency models' repository are supported."
            )
    if any(name.startswith("model.diffusion_model.input_blocks.") for name in tensors):
        raise ValueError(
            "it holds Stable Diffusion, which draws what a text says: load it with cmjax.text_to_image.load, or draw "
            "with cmjax sample --prompt TEXT."
        )
    if {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= {
        name.removeprefix("first_stage_model.") for name in tensors
    }:
        raise ValueError("it holds an autoencoder alone: load it with cmjax.text_to_image.load_autoencoder.")
    if "input_blocks.0.0.weight" not in tensors:
        if (kind := kind_of(tensors)) not in (None, GUIDED_DIFFUSION):
            raise ValueError(f"it holds no UNetModel, but {kind}.{remedy(kind)}")
        some = ", ".join(list(tensors)[:3])
        raise ValueError(f"it has no input_blocks.0.0.weight, so it is not a UNetModel; it holds {some} ...")


def _parts(tensors: Mapping[str, np.ndarray], side: str) -> list[dict[int, bool]]:
    """For each block of a side, in order, its parts by number, and whether each is a residual block."""
    blocks: dict[int, dict[int, bool]] = {}
    for name in tensors:
        if found := re.match(rf"{side}\.(\d{{1,4}})\.(\d{{1,2}})\.(in_layers)?", name):
            parts = blocks.setdefault(int(found[1]), {})
            parts[int(found[2])] = parts.get(int(found[2]), False) or found[3] is not None
    return [blocks[i] for i in sorted(blocks)]


def _last_is_resnet(parts: dict[int, bool]) -> bool:
    last = max(parts)
    return last > 0 and parts[last]


def _size(channels: tuple[int, ...]) -> int:
    """Pixels a side of the pictures that such channels are for."""
    return next((size for times, size in _SIZES.items() if channels == tuple(m * channels[0] for m in times)), 64)


def _shape(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"it has no tensor {name}, so it is not a UNetModel.")
    shape = tensors[name].shape
    if len(shape) != axes:
        raise ValueError(f"tensor {name} is {shape}; a UNetModel's has {axes} axes.")
    return shape
