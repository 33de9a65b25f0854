"""Weights: safetensors files and a network's parameters, in diffusers' names and layout, both ways.

Names map by rule. The parameter `down_blocks.0.conv1.kernel` is the tensor `down_blocks.0.conv1.weight`: the last word
becomes `weight` (a `bias` stays), and the axes of a kernel are turned round.

| layer | here | file |
|---|---|---|
| convolution | `kernel` (H, W, in, out) | `weight` (out, in, H, W) |
| linear | `kernel` (in, out) | `weight` (out, in) |
| norm | `scale` | `weight` |
| embedding | `embedding` (rows, width) | `weight` (rows, width) |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

__all__ = ["load_unet_weights", "read_safetensors", "unet_tensors", "write_safetensors"]

# Axis orders from our layout to the file's, by the number of axes of a kernel; and back.
_TO_FILE = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_FILE = {4: (2, 3, 1, 0), 2: (1, 0)}

# The names that attention layers had before diffusers 0.15; many published files still carry them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file.

    Args:
      path: The file.

    Returns:
      The tensors by name, in the file's dtypes (bfloat16 through ml_dtypes).

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not a safetensors file, or its end is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); it may be truncated: fetch or write it again."
        ) from error


def write_safetensors(tensors: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write tensors to a safetensors file.

    Args:
      tensors: The tensors by name.
      path: The file; it is replaced.
    """
    # The metadata is what diffusers looks for to know that the layout is PyTorch's. (`save_file` makes files that only
    # their owner may read, whatever the umask; written by Python they are like any other.)
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    Path(path).write_bytes(save(tensors, metadata={"format": "pt"}))


def unet_tensors(module: nnx.Module) -> dict[str, np.ndarray]:
    """Give a module's parameters with diffusers' names and layout.

    Args:
      module: A `UNet`.

    Returns:
      The tensors by name: convolutions (out, in, H, W), linear layers (out, in).

    Example:
      >>> sorted(unet_tensors(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).items())[1][1].shape
      (2, 3)
    """
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value = np.asarray(variable[...])
        if path[-1] == "kernel":
            value = np.ascontiguousarray(value.transpose(_TO_FILE[value.ndim]))  # safetensors writes memory as it lies
        tensors[_file_name(path)] = value
    return tensors


def load_unet_weights(module: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """Put tensors in diffusers' names and layout into a copy of a module.

    Args:
      module: A `UNet`, or its abstract form from `nnx.eval_shape`, so that no weights are made only to be replaced.
      tensors: What `unet_tensors` gives or `read_safetensors` has read; any float dtype.

    Returns:
      The module with the weights, in the dtypes of its parameters.

    Raises:
      ValueError: Parameters without weights, weights without a parameter, or weights of another shape; all of them
        are listed in one message. Also weights that are not floats.
    """
    tensors = {_modern_name(name): value for name, value in tensors.items()}
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    flat = list(nnx.to_flat_state(params))
    found, missing, misshapen = [], [], []
    for path, variable in flat:
        name, wanted = _file_name(path), variable.get_value()
        if name not in tensors:
            missing.append(name)
            continue
        value, is_kernel = np.asarray(tensors.pop(name)), path[-1] == "kernel"
        shape = tuple(wanted.shape[axis] for axis in _TO_FILE[wanted.ndim]) if is_kernel else wanted.shape
        if value.shape != shape:
            misshapen.append(f"{name} is {value.shape}, not {shape}")
            continue
        if not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            raise ValueError(f"tensor {name} of the file holds {value.dtype}, but weights are floats.")
        value = value.transpose(_FROM_FILE[value.ndim]) if is_kernel else value
        found.append((path, variable.replace(jax.numpy.asarray(value, wanted.dtype))))
    _refuse(missing, sorted(tensors), misshapen)
    return nnx.merge(graphdef, nnx.from_flat_state(found), rest)


def _refuse(missing: list[str], left_over: list[str], misshapen: list[str]) -> None:
    faults = []
    if missing:
        faults.append(f"unet has {_count(missing, 'parameter')} with no weights: {_some(missing)}")
    if left_over:
        verb = "belong" if len(left_over) > 1 else "belongs"
        faults.append(f"{_count(left_over, 'tensor')} of the file {verb} to no parameter: {_some(left_over)}")
    if misshapen:
        verb = "have" if len(misshapen) > 1 else "has"
        faults.append(f"{_count(misshapen, 'tensor')} of the file {verb} the wrong shape: {_some(misshapen)}")
    if faults:
        raise ValueError(". ".join(faults) + ". Is this a UNet2DModel checkpoint?")


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _some(names: list[str], most: int = 5) -> str:
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _file_name(path: tuple[Any, ...]) -> str:
    *head, last = (str(p) for p in path)
    return ".".join([*head, "bias" if last == "bias" else "weight"])


def _modern_name(name: str) -> str:
    """Rename the attention layers of old files, and the frequencies, which the first had under two names."""
    if name == "time_proj.W":
        return "time_proj.weight"
    words = name.split(".")
    if len(words) >= 3 and words[-3].isdigit() and words[-2] in _OLD_ATTENTION and "attentions" in words:
        words[-2] = _OLD_ATTENTION[words[-2]]
    return ".".join(words)
