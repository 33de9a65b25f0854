"""Load and save models in diffusers' folder layout: from a folder, the package or the hub.

- `model_index.json` names the pipeline, so that diffusers loads the folder too;
- `unet/config.json` and `unet/diffusion_pytorch_model.safetensors` are the network and its weights;
- `scheduler/scheduler_config.json` is the sampler's config;
- `labels.json` lists the names of the classes, if they have names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.assembly import Checkpoint, assemble, check_dtype
from cmjax.io.atomic import atomic_folder
from cmjax.io.class_names import LABELS, check_label_names
from cmjax.io.configs import read_json, write_config, write_json
from cmjax.io.folder import (
    INDEX,
    check_layout,
    folder_of,
    network_folder,
    network_part,
    read_configs,
    refuse_other_files,
)
from cmjax.io.locate import resolve
from cmjax.io.pieces import read_weights
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.single_files.consistency_models import read_original
from cmjax.io.weights import Placement, cast, file_tensors
from cmjax.models import Network
from cmjax.models.families import Family, family_of, read_network_config
from cmjax.samplers.base import SamplerConfig

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["load", "load_unet", "model_index", "save"]

# Of a scheduler's class; a DDPMPipeline for all others.
_PIPELINES = {"CMStochasticIterativeScheduler": "ConsistencyModelPipeline"}


def load(
    path_or_name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    revision: str | None = None,
    variant: str | None = None,
    abstract: bool = False,
) -> Checkpoint:
    """Load a model and the config of its sampler.

    Files are memory-mapped, and each tensor goes directly to its dtype and device: memory holds the result and one
    more tensor.

    Args:
      path_or_name: a folder in diffusers layout, a model in the package (`"fashion-mnist-cm"`), a hub id, or a single
        .safetensors file: one in such a folder's unet/, or one with the tensor names of the consistency-models
        repository. (For its .pt files: `cmjax.io.load_original`, or `cmjax convert`.)
      dtype: the dtype that the network computes in.
      param_dtype: the dtype that its matrices are stored in; with bfloat16, weights take half the memory. Vectors
        (biases, norms) stay float32.
      sharding: where the weights go: a `jax.sharding.Sharding` for all, or a function of a weight's name and shape.
        Each device receives only its part. None for JAX's default device, uncommitted.
      revision: a branch, tag or commit of the hub's repository.
      variant: which weights to read: "fp16" reads `diffusion_pytorch_model.fp16.safetensors`, which is half the size.
      abstract: check the files, but read no weights: each is a `jax.ShapeDtypeStruct`. A program compiled for such a
        model runs with the loaded one. XLA takes a GiB to compile a large network; compile first, then call
        `cmjax.io.memory.return_freed_memory` and load, and that memory is free before the weights need it.

    Returns:
      A `Checkpoint`: the model, a callable pytree `model(x, t, cond)`, and the frozen config.

    Raises:
      FileNotFoundError: there is no such model, or a file is missing.
      TypeError: dtype or param_dtype is not a float dtype.
      ValueError: a file is damaged or of another kind, or weights do not fit the network.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    Example:
      >>> import cmjax
      >>> model, config = cmjax.load("fashion-mnist-cm")
      >>> model.config.num_class_embeds
      10

      Compile before the weights are loaded:

      >>> import jax
      >>> abstract, _ = cmjax.load("fashion-mnist-cm", abstract=True)
      >>> network = jax.jit(lambda model, x: model(x, 80.0, jnp.array([7])))
      >>> program = network.lower(abstract, jnp.zeros((1, 28, 28, 1))).compile()
      >>> program(model, jnp.zeros((1, 28, 28, 1))).shape
      (1, 28, 28, 1)
    """
    path = resolve(path_or_name, revision=revision, variant=variant)
    if path.is_file():
        network, tensors, config = _read_file(path)
    else:
        check_layout(path)
        network, config = read_configs(path)
        tensors = read_weights(network_part(path), variant, stem=family_of(network).stem)
    model = assemble(network, tensors, dtype=dtype, param_dtype=param_dtype, sharding=sharding, abstract=abstract)
    return Checkpoint(model, config)


def load_unet(
    path_or_name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    revision: str | None = None,
    variant: str | None = None,
    abstract: bool = False,
) -> Network:
    """Load a network alone, whatever sampler it was made for, such as a DDPM or a score-based model as a teacher.

    Args:
      path_or_name: a folder or hub id whose config.json is for `UNet2DModel`, or that has such a folder unet/;
        or of any other family in `cmjax.models.families`.
      dtype: as for `load`, as are the others.
      param_dtype: as for `load`.
      sharding: as for `load`.
      revision: as for `load`.
      variant: as for `load`.
      abstract: as for `load`.

    Returns:
      The model, a callable pytree `model(x, t, cond)`. The meaning of t and of the output depends on its
      training: `cmjax.io.read_config(folder, as_=cmjax.tcd.TCDConfig)` reads what its scheduler_config.json says.

    Raises:
      FileNotFoundError: there is no such folder, or a file is missing.
      TypeError: dtype or param_dtype is not a float dtype.
      ValueError: a file is damaged or of another kind, or weights do not fit the network.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    Example:
      >>> load_unet("fashion-mnist-cm")
      Network(UNet, 1,618,897 parameters)
    """
    path = resolve(path_or_name, revision=revision, variant=variant)
    if path.is_file():
        raise ValueError(f"{path} is a file; load_unet reads a folder with a config.json, alone or in unet/.")
    folder = network_folder(path)
    config = read_network_config(read_json(folder / "config.json"))
    tensors = read_weights(folder, variant, stem=family_of(config).stem)
    return assemble(config, tensors, dtype=dtype, param_dtype=param_dtype, sharding=sharding, abstract=abstract)


def save(
    checkpoint: tuple[Any, SamplerConfig],
    path: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Save a model and its config as a folder that `load`, and diffusers, read.

    The folder is written completely or not at all, and an old model is replaced in one step. Other files in it (a
    README) stay. Nothing is written into a folder that holds something other than a model.

    Args:
      checkpoint: a `Checkpoint`, or any pair of a network of a known family (as made by `from_nnx`, or the module
        itself), such as `UNet`, and a config.
      path: the folder. The folder above it must exist.
      label_names: the names of the classes, in order; None keeps those in the folder.
      dtype: the dtype to store the weights in; None keeps theirs. float16 halves the file, at a relative error of 5e-4
        per weight; `load` converts it back to float32.

    Raises:
      TypeError: the model is of no family that diffusers' layout has a place for, or is abstract, config is not a
        sampler's config, or dtype is not a float dtype.
      ValueError: there is not one name (given, or kept from the folder) for each class, or a weight is infinite in
        dtype.
      FileExistsError: the folder holds something else.
      OSError: it cannot be written.
    """
    model, config = checkpoint
    network = getattr(model, "module", model)
    family = family_of(network)
    if isinstance(model, Network):
        model.refuse_abstract()
    path = Path(path).expanduser()
    classes, names = getattr(network.config, "num_class_embeds", None), label_names
    if names is None and classes is not None and (path / LABELS).exists():  # without classes it is another tool's
        names = read_json(path / LABELS)
    if names is not None:
        check_label_names(names, classes)
    if not isinstance(config, SamplerConfig):
        raise TypeError(
            f"config must be a sampler's, such as a CMConfig or a TCDConfig, got a {type(config).__name__}."
        )
    refuse_other_files(path)
    tensors = file_tensors(network)
    if dtype is not None:
        check_dtype("dtype", dtype)
        tensors = {name: cast(name, value, jnp.dtype(dtype)) for name, value in tensors.items()}
    with atomic_folder(path) as folder:
        part = folder / family.folder
        part.mkdir()
        (folder / "scheduler").mkdir()
        write_json(model_index(family, type(config).scheduler), folder / INDEX)
        write_json(network.config.to_dict(), part / "config.json")
        write_safetensors(tensors, part / f"{family.stem}.safetensors")
        write_config(config, folder / "scheduler")
        if label_names is not None:
            write_json(list(label_names), folder / LABELS)


def model_index(family: Family, scheduler: str) -> dict[str, Any]:
    """Make the content of model_index.json for a network and the class of its scheduler."""
    return {
        "_class_name": _PIPELINES.get(scheduler, "DDPMPipeline"),
        family.folder: [family.library, family.class_name],
        "scheduler": ["diffusers", scheduler],
    }


def _read_file(path: Path) -> tuple[Any, Mapping[str, np.ndarray], Any]:
    """Read one file of weights: from a model's folder, or from the consistency-models repository."""
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is not a .safetensors file: a model is a folder with unet/ and scheduler/."
            + (f" Convert it first: cmjax convert {path.name} FOLDER." if path.suffix in (".pt", ".pth") else "")
        )
    folder = folder_of(path)
    if folder is None:
        return read_original(path)
    network, config = read_configs(folder)
    return network, read_safetensors(path), config
