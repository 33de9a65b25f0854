"""Load and save an autoencoder alone, such as one to put in place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.assembly import assemble, check_dtype
from cmjax.io.atomic import atomic_folder
from cmjax.io.locate import resolve
from cmjax.io.parts import AUTOENCODER, family_of_part, read_part_config, save_part
from cmjax.io.pieces import read_weights
from cmjax.io.single_files.stable_diffusion import read_autoencoder
from cmjax.io.weights import Placement
from cmjax.models.autoencoder_kl import AutoencoderConfig
from cmjax.models.autoencoder_tiny import AutoencoderTinyConfig
from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["load_autoencoder", "save_autoencoder"]


def load_autoencoder(
    path_or_name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    revision: str | None = None,
    variant: str | None = None,
    abstract: bool = False,
    scaling_factor: float | None = None,
) -> LatentCoder:
    """Load an autoencoder, such as one to put in place of a text-to-image model's own.

    After one or two steps of sampling, Stable Diffusion's autoencoder takes longer than the sampling did. A tiny one
    (TAESD) decodes with 18 times fewer operations, and a little less detail:
    `pipe.replace(autoencoder=load_autoencoder("madebyollin/taesd"))`.

    Args:
      path_or_name: a folder or hub id whose config.json is for `AutoencoderKL` or `AutoencoderTiny`; or the folder of a
        text-to-image model, for the one in it; or a file that holds an `AutoencoderKL`, alone or in a checkpoint of
        Stable Diffusion.
      dtype: the dtype that it computes in, by `compute_dtype`.
      param_dtype: the dtype that its kernels are stored in; vectors (biases, norms) stay float32.
      sharding: where the weights go: a `jax.sharding.Sharding` for all, or a function of a weight's name and shape.
      revision: a branch, tag or commit of the hub's repository.
      variant: which weights to read: "fp16" reads a file that is half the size.
      abstract: check the files, but read no weights: each is a `jax.ShapeDtypeStruct`.
      scaling_factor: for a file that holds an autoencoder alone, which does not say it: 0.18215 for Stable Diffusion 1
        and 2, 0.13025 for XL.

    Returns:
      The coder. Its `network` is the autoencoder.

    Raises:
      FileNotFoundError: there is no such folder, or a file is missing.
      TypeError: dtype or param_dtype is not a float dtype.
      ValueError: a file is damaged or of another kind, or weights do not fit the network.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    Example:
      >>> load_autoencoder("emoji").downsampling
      4
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        check_dtype(name, value)
    path = resolve(path_or_name, revision=revision, variant=variant)
    if path.is_file():
        config, tensors = read_autoencoder(path, scaling_factor=scaling_factor)
    elif scaling_factor is not None:
        raise ValueError(f"scaling_factor is for a file, but {path} is a folder, whose config.json says it.")
    else:
        config, tensors = _read_folder(path, variant)
    network = assemble(
        config,
        tensors,
        dtype=compute_dtype(config, dtype),
        param_dtype=param_dtype,
        sharding=sharding,
        abstract=abstract,
    )
    return LatentCoder(network)


def _read_folder(path: Path, variant: str | None) -> tuple[Any, Mapping[str, np.ndarray]]:
    folder = path / AUTOENCODER if (path / AUTOENCODER / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{path} has no config.json, and no {AUTOENCODER}/config.json.")
    family, config = family_of_part(folder), read_part_config(folder)
    if not isinstance(config, AutoencoderConfig | AutoencoderTinyConfig):
        raise ValueError(
            f"{folder} must hold an AutoencoderKL or AutoencoderTiny, but its config.json is for {family.class_name}."
        )
    return config, read_weights(folder, variant, stem=family.stem)


def save_autoencoder(coder: LatentCoder, path: str | Path, *, dtype: DTypeLike | None = None) -> None:
    """Save an autoencoder alone, as a folder that `load_autoencoder`, and diffusers' class of it, read.

    The folder holds what a text-to-image model's has in vae/. It is written completely or not at all.

    Args:
      coder: the autoencoder.
      path: the folder. The folder above it must exist.
      dtype: the dtype to store the weights in; None keeps theirs.

    Raises:
      TypeError: the weights are abstract, or dtype is not a float dtype.
      ValueError: a weight is infinite in dtype.
      FileExistsError: the folder holds something else.
      OSError: it cannot be written.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "autoencoder"
      >>> save_autoencoder(load_autoencoder("emoji"), folder)
      >>> sorted(file.name for file in folder.iterdir())
      ['config.json', 'diffusion_pytorch_model.safetensors']
    """
    if dtype is not None:
        check_dtype("dtype", dtype)
    coder.network.refuse_abstract()
    path = Path(path).expanduser()
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
        raise FileExistsError(f"{path} holds other files than an autoencoder's; choose a new or empty folder.")
    with atomic_folder(path) as folder:
        save_part(coder.network, folder, dtype=dtype)
