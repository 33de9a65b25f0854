"""Text-to-image models as folders in diffusers' layout: `load` and `save`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cmjax.io.assembly import assemble, check_dtype
from cmjax.io.atomic import atomic_folder
from cmjax.io.configs import read_config, read_json, write_config, write_json
from cmjax.io.folder import INDEX, refuse_other_files
from cmjax.io.locate import resolve
from cmjax.io.memory import refuse_too_much
from cmjax.io.parts import (
    AUTOENCODER,
    TEXT_ENCODERS,
    TOKENIZERS,
    UNET,
    family_of_part,
    read_part_config,
    save_part,
)
from cmjax.io.pieces import read_weights
from cmjax.io.weights import Placement
from cmjax.models.families import family_of
from cmjax.samplers.base import SamplerConfig
from cmjax.samplers.tcd import TCDConfig
from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype
from cmjax.text_to_image.fit import check_fit
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.text_to_image.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["is_text_model", "load", "save"]


def load(
    path_or_name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    revision: str | None = None,
    variant: str | None = None,
    abstract: bool = False,
) -> TextToImage:
    """Load a text-to-image model: Stable Diffusion 1, 2 or XL, or one of that kind.

    All configs are checked, and whether the parts fit each other, before any weight is read.

    Args:
      path_or_name: a folder in diffusers layout, a model in the package (`"emoji"`), or a hub id, of which only the
        files that are needed are downloaded.
      dtype: the dtype that the networks compute in. An autoencoder that overflows float16 (`force_upcast`) computes in
        float32 in its place; bfloat16 never overflows.
      param_dtype: the dtype that matrices are stored in; vectors (biases, norms) stay float32.
      sharding: where the weights go: a `jax.sharding.Sharding` for all, or a function of a weight's name and shape.
      revision: a branch, tag or commit of the hub's repository.
      variant: which weights to read: "fp16" reads files that are half the size.
      abstract: check the files, but read no weights: each is a `jax.ShapeDtypeStruct`.

    Returns:
      The model. Its `config` is the folder's own where cmjax has that sampler; else it is read as a `TCDConfig`, which
      has the noise levels and what the network predicts.

    Raises:
      FileNotFoundError: there is no such model, or a part is missing.
      MemoryError: the weights take more memory than there is.
      TypeError: dtype or param_dtype is not a float dtype.
      ValueError: a file is damaged, a part is of another kind, or parts do not fit each other.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    Example:
      >>> import cmjax
      >>> pipe = cmjax.text_to_image.load("emoji")
      >>> pipe.native_size
      (64, 64)
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        check_dtype(name, value)
    path = resolve(path_or_name, revision=revision, variant=variant, whole=True)
    if path.is_file():
        raise ValueError(f"{path} is a file; a text-to-image model is a folder with unet/, vae/ and text_encoder/.")
    described = describe(path)
    tensors = {
        part: read_weights(path / part, variant, stem=family_of(config).stem)
        for part, config in described.parts.items()
    }
    configs = {part: family_of(config).adapted(config, tensors[part]) for part, config in described.parts.items()}
    if not abstract and sharding is None:
        refuse_too_much(str(path_or_name), sum(_bytes(part, param_dtype) for part in tensors.values()))
    dtypes: dict[str, Any] = dict.fromkeys(configs, dtype)
    dtypes[AUTOENCODER] = compute_dtype(configs[AUTOENCODER], dtype)

    def part(name: str) -> Any:
        try:
            return assemble(
                configs[name],
                tensors.pop(name),
                dtype=dtypes[name],
                param_dtype=param_dtype,
                sharding=sharding,
                abstract=abstract,
            )
        except ValueError as error:
            raise ValueError(f"{path / name}: {error}") from error

    return TextToImage(
        unet=part(UNET),
        text_encoders=tuple(part(name) for name in TEXT_ENCODERS if name in configs),
        autoencoder=LatentCoder(part(AUTOENCODER)),
        tokenizers=described.tokenizers,
        config=described.sampler,
        pipeline=described.pipeline,
        zeros_for_empty=described.zeros_for_empty,
    )


def is_text_model(path_or_name: str | Path, *, revision: str | None = None, variant: str | None = None) -> bool:
    """Tell whether a model draws from texts: whether `load` here is for it, and not `cmjax.load`.

    Args:
      path_or_name: as for `load`, as are the others.
      revision: of a hub's repository.
      variant: of the weights.

    Raises:
      FileNotFoundError: there is no such model.

    Example:
      >>> is_text_model("emoji"), is_text_model("fashion-mnist-cm")
      (True, False)
    """
    path = resolve(path_or_name, revision=revision, variant=variant)
    config = path / UNET / "config.json"
    return path.is_dir() and config.is_file() and not family_of_part(path / UNET).is_model


class Described(NamedTuple):
    """What the small files of a folder say.

    Attributes:
      pipeline: the class in model_index.json.
      parts: the config of each network, by its folder's name.
      tokenizers: in the order of the text encoders.
      sampler: its config.
      zeros_for_empty: whether no text is zeros.
    """

    pipeline: str
    parts: dict[str, Any]
    tokenizers: tuple[Tokenizer, ...]
    sampler: SamplerConfig
    zeros_for_empty: bool


def describe(folder: Path) -> Described:
    """Read everything but the weights, and check that the parts fit each other.

    Raises:
      FileNotFoundError: a part is missing.
      ValueError: as for `load`.
    """
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    if not isinstance(index, dict):
        raise ValueError(f"{folder / INDEX} must hold a JSON object, but it holds a {type(index).__name__}.")
    if (folder / UNET / "config.json").is_file() and family_of_part(folder / UNET).is_model:
        raise ValueError(f"{folder} is a model without text, which takes no prompt: load it with cmjax.load.")
    encoders = [part for part in TEXT_ENCODERS if _has(folder, index, part)] or [TEXT_ENCODERS[0]]
    pairs = dict(zip(TEXT_ENCODERS, TOKENIZERS, strict=True))
    _refuse_missing(folder, index, [UNET, AUTOENCODER, *encoders])
    _refuse_kinds(folder, encoders)
    parts = {part: read_part_config(folder / part) for part in (UNET, AUTOENCODER, *encoders)}
    tokenizers = tuple(_tokenizer(folder, pairs[part]) for part in encoders)
    check_fit(
        parts[UNET],
        parts[AUTOENCODER],
        {part: parts[part] for part in encoders},
        {pairs[part]: tokenizer for part, tokenizer in zip(encoders, tokenizers, strict=True)},
    )
    return Described(
        pipeline=index.get(
            "_class_name", "StableDiffusionXLPipeline" if len(encoders) == 2 else "StableDiffusionPipeline"
        ),
        parts=parts,
        tokenizers=tokenizers,
        sampler=_sampler(folder),
        zeros_for_empty=index.get("force_zeros_for_empty_prompt") is True,
    )


def save(pipe: TextToImage, path: str | Path, *, dtype: DTypeLike | None = None) -> None:
    """Save a text-to-image model as a folder that `load`, and diffusers, read.

    The folder is written completely or not at all; an old model is replaced in one step, and other files in it stay.

    Args:
      pipe: the model.
      path: the folder. The folder above it must exist.
      dtype: the dtype to store the weights in; None keeps theirs.

    Raises:
      TypeError: the weights are abstract, or dtype is not a float dtype.
      ValueError: a weight is infinite in dtype.
      FileExistsError: the folder holds something else.
      OSError: it cannot be written.
    """
    if not isinstance(pipe, TextToImage):
        raise TypeError(
            f"pipe must be a TextToImage, as cmjax.text_to_image.load returns it, got {type(pipe).__name__}."
        )
    if dtype is not None:
        check_dtype("dtype", dtype)
    parts = {UNET: pipe.unet, AUTOENCODER: pipe.autoencoder.network} | _numbered(
        pipe, TEXT_ENCODERS, pipe.text_encoders
    )
    for network in parts.values():
        network.refuse_abstract()
    path = Path(path).expanduser()
    refuse_other_files(path)
    with atomic_folder(path) as folder:
        for name, network in parts.items():
            save_part(network, folder / name, dtype=dtype)
        for name, tokenizer in _numbered(pipe, TOKENIZERS, pipe.tokenizers).items():
            (folder / name).mkdir()
            tokenizer.write(folder / name)
        (folder / "scheduler").mkdir()
        write_config(pipe.config, folder / "scheduler")
        write_json(_index(pipe, parts), folder / INDEX)


def _index(pipe: TextToImage, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Make the content of model_index.json."""
    is_xl = "XL" in pipe.pipeline
    optional = ("feature_extractor", "image_encoder", *(() if is_xl else ("safety_checker",)))
    absent = [*optional, *(TEXT_ENCODERS + TOKENIZERS if is_xl else ())]
    configs = {name: network.config for name, network in parts.items()}
    tokenizers = {key: ["transformers", "CLIPTokenizer"] for key in _numbered(pipe, TOKENIZERS, pipe.tokenizers)}
    return {
        "_class_name": pipe.pipeline,
        "_diffusers_version": "0.30.0",
        **{name: [None, None] for name in absent},
        **({"force_zeros_for_empty_prompt": pipe.zeros_for_empty} if is_xl else {"requires_safety_checker": False}),
        **{name: [family_of(one).library, family_of(one).class_of(one)] for name, one in configs.items()},
        **tokenizers,
        **({"requires_aesthetics_score": True} if pipe.is_refiner else {}),
        "scheduler": ["diffusers", type(pipe.config).scheduler],
    }


def _numbered(pipe: TextToImage, names: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, Any]:
    """Give the parts that belong to text encoders their names: a refiner's only one is the second."""
    is_refiner = "XL" in pipe.pipeline and len(pipe.text_encoders) == 1
    return dict(zip(names[1:] if is_refiner else names, values, strict=False))


def _has(folder: Path, index: Mapping[str, Any], part: str) -> bool:
    """Whether a model has a part: by its model_index.json, else by its folders."""
    entry = index.get(part)
    return entry != [None, None] and (entry is not None or (not index and (folder / part).is_dir()))


def _refuse_missing(folder: Path, index: Mapping[str, Any], parts: list[str]) -> None:
    for part in parts:
        if not (folder / part / "config.json").is_file():
            others = [name for name in ("transformer", "prior") if (folder / name).is_dir() or name in index]
            kind = index.get("_class_name")
            said = f" Its {INDEX} is for {kind}." if isinstance(kind, str) else ""
            said += f" Models with a {others[0]}/ are not supported." if others else ""
            raise FileNotFoundError(
                f"{folder} has no {part}/config.json: a text-to-image model's folder holds unet/, vae/, text_encoder/, "
                f"tokenizer/ and scheduler/, as diffusers writes it.{said}"
            )


def _refuse_kinds(folder: Path, encoders: list[str]) -> None:
    """Refuse a part that is a network, but of another kind."""
    wanted = {UNET: ("UNet2DConditionModel",), AUTOENCODER: ("AutoencoderKL", "AutoencoderTiny")}
    wanted |= dict.fromkeys(encoders, ("CLIPTextModel",))
    for part, names in wanted.items():
        if (got := family_of_part(folder / part).class_name) not in names:
            raise ValueError(f"{folder / part} must hold a {' or '.join(names)}, but its config.json is for {got}.")


def _tokenizer(folder: Path, part: str) -> Tokenizer:
    if not (folder / part).is_dir():
        raise FileNotFoundError(f"{folder} has no {part}/: texts cannot become tokens without it.")
    return Tokenizer.read(folder / part)


def _sampler(folder: Path) -> SamplerConfig:
    """Read the sampler's config; another scheduler's as TCD's, since it has the same noise levels."""
    try:
        return read_config(folder / "scheduler")
    except ValueError:
        return read_config(folder / "scheduler", as_=TCDConfig)


def _bytes(tensors: Mapping[str, np.ndarray], param_dtype: DTypeLike) -> int:
    size = jnp.dtype(param_dtype).itemsize
    return sum(tensor.size * (size if tensor.ndim > 1 else 4) for tensor in tensors.values())
