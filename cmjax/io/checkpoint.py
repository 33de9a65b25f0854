"""Whole models in and out: diffusers' folder layout, from a folder, from the package itself, or from the hub.

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

from cmjax.io import hub
from cmjax.io.assembly import Checkpoint, assemble, check_dtype
from cmjax.io.atomic import atomic_folder
from cmjax.io.configs import read_config, read_json, write_config, write_json
from cmjax.io.pieces import WEIGHTS, read_weights, stem
from cmjax.io.safetensors_files import read_safetensors, write_safetensors
from cmjax.io.single_files.consistency_models import read_original
from cmjax.io.weights import Placement, cast, file_tensors
from cmjax.models import Network, UNet, UNetConfig
from cmjax.samplers.base import SamplerConfig

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = [
    "Checkpoint",
    "embedded_models",
    "label_names",
    "load",
    "load_unet",
    "refuse_other_files",
    "resolve",
    "save",
]

_PRETRAINED = Path(__file__).parent.parent / "pretrained"
_CONFIGS = ("unet/config.json", "scheduler/scheduler_config.json")
_PIPELINES = {
    "CMStochasticIterativeScheduler": "ConsistencyModelPipeline",
    "TCDScheduler": "DDPMPipeline",
    "LCMScheduler": "DDPMPipeline",
}


def embedded_models() -> tuple[str, ...]:
    """Name the models that come inside the package.

    Example:
      >>> "no such model" in embedded_models()
      False
    """
    return tuple(sorted(p.parent.name for p in _PRETRAINED.glob("*/model_index.json")))


def resolve(path_or_name: str | Path, *, revision: str | None = None, variant: str | None = None) -> Path:
    """Find a model: a folder or file of that name, then a model in the package, then a repository on the hub.

    Args:
      path_or_name: a path, a name of `embedded_models()`, or a hub id owner/name.
      revision: of the hub's repository.
      variant: of the weights to fetch from there.

    Returns:
      The folder, or the file.

    Raises:
      FileNotFoundError: there is no such folder or model.
      ModuleNotFoundError: it looks like a hub id, and huggingface_hub is not installed.
      TypeError: path_or_name is neither a text nor a path.
      ValueError: variant is not a word, or a single file is asked for a variant or a revision.
    """
    if not isinstance(path_or_name, str | Path):
        raise TypeError(f"path_or_name must be a path, a name or a hub id, got a {type(path_or_name).__name__}.")
    weights = stem(variant)
    try:
        path = Path(path_or_name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise FileNotFoundError(f"no model {path_or_name}: {error}") from error
    if path.is_file() and (variant is not None or revision is not None):
        raise ValueError(f"{path} is a single file, which has no variant and no revision.")
    if path.is_dir() or path.is_file():
        return path
    name = str(path_or_name)
    if name in embedded_models():
        return _PRETRAINED / name
    if hub.is_repo_id(name) and not path.parent.is_dir():
        return hub.download(name, weights=weights, revision=revision)
    raise FileNotFoundError(
        f"no model {name}: it is neither a folder here, nor one of the package's models "
        f"({', '.join(embedded_models()) or 'none'}), nor a hub id (owner/name)."
    )


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

    The files are mapped into memory, and each tensor goes from there straight to its dtype and its place: what is held
    in memory is the result and one tensor more.

    Args:
      path_or_name: a folder in diffusers layout, a model in the package (`"fashion-mnist-cm"`), a hub id, or a single
        .safetensors file: one in such a folder's unet/, or one with the names of the consistency models' own
        repository. (For its .pt files: `cmjax.io.load_original`, or `cmjax convert`.)
      dtype: what the network computes in.
      param_dtype: what its matrices are stored in: with bfloat16 the weights take half the memory. Vectors (biases,
        norms) stay float32.
      sharding: where the weights go: a `jax.sharding.Sharding` for all, or a function of a weight's name and shape.
        Each device is sent its own part only. None for JAX's default device, uncommitted.
      revision: a branch, tag or commit of the hub's repository.
      variant: which of the weights: "fp16" reads `diffusion_pytorch_model.fp16.safetensors`, half the size.
      abstract: check the files, but read no weights: each is a `jax.ShapeDtypeStruct`. What is compiled for such a
        model runs with the loaded one. XLA takes a GiB to compile a large network; compile first, then load, and that
        memory is free again before the weights need it.

    Returns:
      A `Checkpoint`: the model, a callable pytree `model(x, t, cond)`, and the frozen config.

    Raises:
      FileNotFoundError: there is no such model, or the folder lacks a file.
      TypeError: dtype or param_dtype is not a float dtype.
      ValueError: a file is damaged or of another kind, or weights do not fit the network.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    Example:
      >>> import cmjax
      >>> model, config = cmjax.load("fashion-mnist-cm")
      >>> model.module.config.num_class_embeds
      10

      Compiled before the weights are there:

      >>> import jax
      >>> abstract, _ = cmjax.load("fashion-mnist-cm", abstract=True)
      >>> network = jax.jit(lambda model, x: model(x, 80.0, jnp.array([7])))
      >>> program = network.lower(abstract, jnp.zeros((1, 28, 28, 1))).compile()
      >>> program(model, jnp.zeros((1, 28, 28, 1))).shape
      (1, 28, 28, 1)
    """
    path = resolve(path_or_name, revision=revision, variant=variant)
    if path.is_file():
        unet_config, tensors, config = _read_file(path)
    else:
        _check_layout(path)
        unet_config, config = _read_configs(path)
        tensors = read_weights(path / "unet", variant)
    model = assemble(unet_config, tensors, dtype=dtype, param_dtype=param_dtype, sharding=sharding, abstract=abstract)
    return Checkpoint(model, config)


def refuse_other_files(path: Path) -> None:
    """Refuse a folder that holds something other than a model.

    Raises:
      FileExistsError: It does.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / "model_index.json").exists():
        raise FileExistsError(f"{path} holds other files than a model's; choose a new or empty folder.")


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
    """Load a network alone, whatever sampler it was made for: a DDPM or a score-based model as a teacher, for one.

    Args:
      path_or_name: a folder or hub id whose config.json is for `UNet2DModel`, or that has such a folder unet/.
      dtype: as for `load`, as are the others.
      param_dtype: as for `load`.
      sharding: as for `load`.
      revision: as for `load`.
      variant: as for `load`.
      abstract: as for `load`.

    Returns:
      The model, a callable pytree `model(x, t, cond)`. What t means and what the output is, its training says: of its
      scheduler_config.json, `cmjax.io.read_config(folder, as_=cmjax.tcd.TCDConfig)` reads what there is.

    Raises:
      FileNotFoundError: there is no such folder, or it lacks a file.
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
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    config = UNetConfig.from_dict(read_json(folder / "config.json"))
    tensors = read_weights(folder, variant)
    return assemble(config, tensors, dtype=dtype, param_dtype=param_dtype, sharding=sharding, abstract=abstract)


def save(
    checkpoint: tuple[Any, SamplerConfig],
    path: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Save a model and its config as a folder that `load`, and diffusers, read.

    The folder appears whole or not at all, and an old one is replaced in one step; files of it that are not the
    model's (a README) stay. Into a folder that holds something other than a model nothing is written.

    Args:
      checkpoint: a `Checkpoint`, or any pair of a `UNet` (as made by `from_nnx`, or the module itself) and a config.
      path: the folder. The folder above it must exist.
      label_names: the names of the classes, in order; None keeps those that the folder has.
      dtype: what the weights are stored in; None for what they are. float16 halves the file, at a relative error of
        5e-4 a weight; `load` makes float32 of it again.

    Raises:
      TypeError: the model is not a `UNet` (another network has no place in diffusers' layout), or is abstract, the
        config is no sampler's, or dtype is not a float dtype.
      ValueError: the names (given, or kept from the folder) are not one text for each class, or a weight is infinite in
        dtype.
      FileExistsError: the folder holds something else.
      OSError: it cannot be written.
    """
    model, config = checkpoint
    unet = getattr(model, "module", model)
    if not isinstance(unet, UNet):
        raise TypeError(f"model must be a cmjax.models.UNet or from_nnx of one, got {type(unet).__name__}.")
    if isinstance(model, Network):
        model.refuse_abstract()
    path = Path(path).expanduser()
    if label_names is not None:
        _check_label_names(label_names, unet.config.num_class_embeds)
    elif (path / "labels.json").exists():
        _check_label_names(read_json(path / "labels.json"), unet.config.num_class_embeds)
    if not isinstance(config, SamplerConfig):
        raise TypeError(f"config must be a CMConfig, TCDConfig or LCMConfig, got a {type(config).__name__}.")
    refuse_other_files(path)
    tensors = file_tensors(unet)
    if dtype is not None:
        check_dtype("dtype", dtype)
        tensors = {name: cast(name, value, jnp.dtype(dtype)) for name, value in tensors.items()}
    with atomic_folder(path) as folder:
        (folder / "unet").mkdir()
        (folder / "scheduler").mkdir()
        write_json(_model_index(config), folder / "model_index.json")
        write_json(unet.config.to_dict(), folder / "unet" / "config.json")
        write_safetensors(tensors, folder / "unet" / f"{WEIGHTS}.safetensors")
        write_config(config, folder / "scheduler")
        if label_names is not None:
            write_json(list(label_names), folder / "labels.json")


def label_names(
    path_or_name: str | Path, *, revision: str | None = None, variant: str | None = None
) -> tuple[str, ...] | None:
    """Read the names of a model's classes, in order, or None where they have no names.

    Args:
      path_or_name: as for `load`.
      revision: as for `load`.
      variant: as for `load`: a hub's repository is fetched once for both.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: labels.json is not a list of texts.

    Example:
      >>> import cmjax.io
      >>> cmjax.io.label_names("fashion-mnist-cm")[0]
      'T-shirt/top'
    """
    found = resolve(path_or_name, revision=revision, variant=variant)
    folder = _folder_of(found) if found.is_file() else found
    if folder is None or not (folder / "labels.json").exists():
        return None
    path = folder / "labels.json"
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must be a list of texts, one a class.")
    return tuple(names)


def _model_index(config: SamplerConfig) -> dict[str, Any]:
    scheduler = type(config).scheduler
    return {
        "_class_name": _PIPELINES[scheduler],
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler],
    }


def _read_configs(folder: Path) -> tuple[UNetConfig, Any]:
    """Read what a model's folder says of its network and of its sampler."""
    unet_config = UNetConfig.from_dict(read_json(folder / "unet" / "config.json"))
    try:
        return unet_config, read_config(folder / "scheduler")
    except ValueError as error:
        raise ValueError(f"{error} The network alone: cmjax.io.load_unet.") from error


def _read_file(path: Path) -> tuple[UNetConfig, Mapping[str, np.ndarray], Any]:
    """Read one file of weights: of a model's folder, or of the consistency models' own repository."""
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file: a model is a folder with unet/ and scheduler/."
            + (f" Convert it first: cmjax convert {path.name} FOLDER." if path.suffix in (".pt", ".pth") else "")
        )
    folder = _folder_of(path)
    if folder is None:
        return read_original(path)
    unet_config, config = _read_configs(folder)
    return unet_config, read_safetensors(path), config


def _folder_of(file: Path) -> Path | None:
    """The model's folder that has a file in its unet/; None where there is none."""
    folder = file.parent.parent
    return folder if file.parent.name == "unet" and all((folder / part).is_file() for part in _CONFIGS) else None


def _check_layout(folder: Path) -> None:
    """Name the first file that a model's folder lacks, and what kind of folder it is if that can be told."""
    for part in _CONFIGS:
        if not (folder / part).is_file():
            raise FileNotFoundError(
                f"{folder} has no {part}: a model's folder holds unet/ and scheduler/, as diffusers writes it."
                f"{_kind_of(folder)}"
            )


def _kind_of(folder: Path) -> str:
    """What a folder of another kind says of itself."""
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            said = read_json(folder / name)
            kind = said.get("_class_name") if isinstance(said, dict) else None
            return f" Its {name} is for {kind}." if isinstance(kind, str) else ""
    return ""


def _check_label_names(names: Any, classes: int | None) -> None:
    is_list = (
        isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names)
    )
    if not is_list or len(names) != (classes or 0):
        got = len(names) if is_list else f"{names!r:.60}"
        raise ValueError(f"label_names must be {classes or 0} texts, one for each class of the network, got {got}.")
