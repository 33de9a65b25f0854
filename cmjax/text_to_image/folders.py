"""Text-to-image models as folders in diffusers' layout: `load` and `save`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
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
    write_part,
)
from cmjax.io.pieces import read_weights
from cmjax.io.single_files.stable_diffusion import Part, holds_unet
from cmjax.io.single_files.stable_diffusion_writing import write_stable_diffusion
from cmjax.io.weights import Placement, file_tensors
from cmjax.models.families import family_of
from cmjax.samplers.base import SamplerConfig
from cmjax.samplers.tcd import TCDConfig
from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype
from cmjax.text_to_image.fit import check_fit
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.text_to_image.sources import Source, of_file
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
    base: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoders: str | Path | Sequence[str | Path | None] = (),
    tokenizer: str | Path | None = None,
    ema: bool = False,
) -> TextToImage:
    """Load a text-to-image model: Stable Diffusion 1, 2 or XL, or one of that kind.

    All configs are checked, and whether the parts fit each other, before any weight is read. Files are memory-mapped:
    memory holds the weights and one more tensor.

    A file in one piece, as model sites publish them, is known by the shapes of its tensors; one of another kind is
    refused. It has no tokenizer: that comes from `tokenizer`, `base`, or an installed package that carries CLIP's
    vocabulary (`pip install --no-deps clip-anytorch`).

    Args:
      path_or_name: a folder in diffusers layout, a model in the package (`"emoji"`), or a hub id, of which only the
        files that are needed are downloaded; or a file in one piece: .safetensors, or .ckpt and .pt, of which nothing
        is executed.
      dtype: the dtype that the networks compute in. An autoencoder that overflows float16 (`force_upcast`) computes in
        float32 in its place; bfloat16 never overflows.
      param_dtype: the dtype that matrices are stored in; vectors (biases, norms) stay float32.
      sharding: where the weights go: a `jax.sharding.Sharding` for all, or a function of a weight's name and shape.
      revision: a branch, tag or commit of the hub's repository.
      variant: which weights to read: "fp16" reads files that are half the size.
      abstract: check the files, but read no weights: each is a `jax.ShapeDtypeStruct`.
      base: for a file that holds less than a model, such as a UNet alone: the folder, hub id or file of the model that
        gives the rest, its tokenizers and its noise levels too.
      vae: another autoencoder: a folder, hub id or file. A file's latents are scaled as the model's are.
      text_encoders: other text encoders, in order, each a folder or a file; None keeps the model's.
      tokenizer: for files in one piece: a tokenizer's folder, the folder or hub id of a model with tokenizers, or the
        file `bpe_simple_vocab_16e6.txt.gz`. Which token fills a text is known by the kind of model.
      ema: for files in one piece: take the averages of the network's weights that training kept.

    Returns:
      The model. Its `config` is the folder's own where cmjax has that sampler; else it is read as a `TCDConfig`, which
      has the noise levels and what the network predicts. A file in one piece says the latter by markers; for one that
      has none but needs one: `pipe.replace(config=dataclasses.replace(pipe.config, prediction_type="v_prediction"))`.

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
    source = open_source(
        path_or_name,
        revision=revision,
        variant=variant,
        base=base,
        vae=vae,
        text_encoders=text_encoders,
        ema=ema,
    )
    source.refuse_missing()
    source = source.with_tokenizers(tokenizer)
    source.check_fit()
    if not abstract and sharding is None:
        refuse_too_much(str(path_or_name), sum(_bytes(part.tensors, param_dtype) for part in source.parts.values()))
    return assemble_source(source, dtype=dtype, param_dtype=param_dtype, sharding=sharding, abstract=abstract)


def assemble_source(
    source: Source,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    abstract: bool = False,
) -> TextToImage:
    """Make the model of parts: see `load`. It lacks the tokenizers that the parts lack."""

    def part(name: str) -> Any:
        config, tensors = source.parts[name]
        try:
            return assemble(
                config,
                tensors,
                dtype=compute_dtype(config, dtype) if name == AUTOENCODER else dtype,
                param_dtype=param_dtype,
                sharding=sharding,
                abstract=abstract,
            )
        except ValueError as error:
            raise ValueError(f"{source.where / name if source.where.is_dir() else source.where}: {error}") from error

    return TextToImage(
        unet=part(UNET),
        text_encoders=tuple(part(name) for name in source.encoders),
        autoencoder=LatentCoder(part(AUTOENCODER)),
        tokenizers=tuple(source.tokenizers[name] for name in TOKENIZERS if name in source.tokenizers),
        config=source.sampler_config,
        pipeline=source.pipeline,
        zeros_for_empty=source.zeros_for_empty,
    )


def open_source(
    path_or_name: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoders: str | Path | Sequence[str | Path | None] = (),
    ema: bool = False,
) -> Source:
    """Find the parts of a model, and read everything but weights and missing tokenizers: see `load`."""
    is_file = _is_file(path_or_name)
    path = resolve(path_or_name, revision=revision, variant=None if base and is_file else variant, whole=True)
    if path.is_file():
        source = of_file(path, ema=ema)
        if base is not None:
            source = source.filled(_base(base, variant))
    else:
        for name, given in (("base", base is not None), ("ema", ema)):
            if given:
                raise ValueError(f"{name} is for files in one piece, but {path} is a folder.")
        source = of_folder(path, variant)
    if vae is not None:
        source = source.with_autoencoder(_autoencoder(vae, source, variant))
    several = [text_encoders] if isinstance(text_encoders, str | Path) else list(text_encoders)
    if len(several) > len(source.encoders):
        raise ValueError(f"text_encoders must be at most {len(source.encoders)}, as the model has, got {len(several)}.")
    for place, one in enumerate(several):
        if one is not None:
            source = source.with_text_encoder(place, _text_encoder(one, source, place, variant))
    return source


def of_folder(folder: Path, variant: str | None) -> Source:
    """Read everything in a folder but weights."""
    described = describe(folder)
    parts = {}
    for name, config in described.parts.items():
        family = family_of(config)
        tensors = read_weights(folder / name, variant, stem=family.stem)
        parts[name] = Part(family.adapted(config, tensors), tensors)
    encoders = tuple(name for name in TEXT_ENCODERS if name in parts)
    pairs = dict(zip(TEXT_ENCODERS, TOKENIZERS, strict=True))
    return Source(
        where=folder,
        pipeline=described.pipeline,
        parts=parts,
        encoders=encoders,
        tokenizers=dict(zip(map(pairs.__getitem__, encoders), described.tokenizers, strict=True)),
        sampler=described.sampler,
        zeros_for_empty=described.zeros_for_empty,
    )


def _is_file(path_or_name: Any) -> bool:
    try:
        return Path(path_or_name).expanduser().is_file()
    except (RuntimeError, TypeError, OSError, ValueError):
        return False


def _base(base: str | Path, variant: str | None) -> Source:
    """Read the model that a file's missing parts come from, without its network where it can be left out."""
    wanted = (AUTOENCODER, *TEXT_ENCODERS, *TOKENIZERS)
    path = resolve(base, variant=None if _is_file(base) else variant, whole=True, parts=wanted)
    return of_file(path) if path.is_file() else of_folder(path, variant)


def _autoencoder(vae: str | Path, source: Source, variant: str | None) -> Part:
    if _is_file(vae):
        return source.autoencoder_of(Path(vae).expanduser())
    folder = resolve(vae, variant=variant, whole=True, parts=(AUTOENCODER,))
    folder = folder / AUTOENCODER if (folder / AUTOENCODER / "config.json").is_file() else folder
    return _part(folder, variant, ("AutoencoderKL", "AutoencoderTiny"))


def _text_encoder(path: str | Path, source: Source, place: int, variant: str | None) -> Part:
    if _is_file(path):
        return source.text_encoder_of(place, Path(path).expanduser())
    folder = resolve(path, variant=variant, whole=True, parts=(source.encoders[place],))
    inner = folder / source.encoders[place]
    return _part(inner if (inner / "config.json").is_file() else folder, variant, ("CLIPTextModel",))


def _part(folder: Path, variant: str | None, classes: tuple[str, ...]) -> Part:
    """Read a part that is a folder by itself."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json.")
    family, config = family_of_part(folder), read_part_config(folder)
    if family.class_name not in classes:
        raise ValueError(f"{folder} must hold {' or '.join(classes)}, but its config.json is for {family.class_name}.")
    tensors = read_weights(folder, variant, stem=family.stem)
    return Part(family.adapted(config, tensors), tensors)


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
    if path.is_file():
        return _holds_unet(path)
    config = path / UNET / "config.json"
    return path.is_dir() and config.is_file() and not family_of_part(path / UNET).is_model


def _holds_unet(path: Path) -> bool:
    """Whether a file holds a UNet of Stable Diffusion; one that cannot be read is reported by what loads it."""
    with contextlib.suppress(ValueError):
        return path.suffix in (".safetensors", ".ckpt") and holds_unet(path)
    return False


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
    """Save a text-to-image model as a folder that `load`, and diffusers, read; or as one file.

    The folder is written completely or not at all; an old model is replaced in one step, and other files in it stay.

    A file in one piece has the names that user interfaces read. It has no configs, no tokenizers and no sampler: it
    takes a model of one of the kinds that `load` knows by shapes, with the usual noise levels.

    Args:
      pipe: the model.
      path: the folder, or a file whose name ends in .safetensors. The folder above it must exist.
      dtype: the dtype to store the weights in; None keeps theirs.

    Raises:
      TypeError: the weights are abstract, or dtype is not a float dtype.
      ValueError: a weight is infinite in dtype, or a file in one piece cannot say what the model is.
      FileExistsError: the folder holds something else.
      OSError: it cannot be written.
    """
    if not isinstance(pipe, TextToImage):
        raise TypeError(
            f"pipe must be a TextToImage, as cmjax.text_to_image.load returns it, got {type(pipe).__name__}."
        )
    if dtype is not None:
        check_dtype("dtype", dtype)
    networks = {UNET: pipe.unet, AUTOENCODER: pipe.autoencoder.network}
    networks |= (encoders := _numbered(pipe, TEXT_ENCODERS, pipe.text_encoders))
    for network in networks.values():
        network.refuse_abstract()
    path = Path(path).expanduser()
    source = Source(
        where=path,
        pipeline=pipe.pipeline,
        parts={name: Part(network.config, file_tensors(network.module)) for name, network in networks.items()},
        encoders=tuple(encoders),
        tokenizers=_numbered(pipe, TOKENIZERS, pipe.tokenizers),
        sampler=pipe.config,
        zeros_for_empty=pipe.zeros_for_empty,
    )
    write_source(source, path, dtype=dtype)


def write_source(source: Source, path: Path, *, dtype: DTypeLike | None = None) -> None:
    """Write the parts of a model, as `save` does; each tensor as it is where dtype is None."""
    if path.suffix == ".safetensors":
        if words := [word for tokenizer in source.tokenizers.values() for word in tokenizer.words]:
            raise ValueError(
                f"a file in one piece has no place for the words that a model was taught, such as {words[0]!r:.60}: "
                "save a folder, or the model without its embeddings."
            )
        write_stable_diffusion(
            path,
            unet=source.parts[UNET],
            autoencoder=source.parts[AUTOENCODER],
            text_encoders=[source.parts[name] for name in source.encoders],
            sampler=source.sampler_config,
            dtype=dtype,
        )
        return
    refuse_other_files(path)
    with atomic_folder(path) as folder:
        for name, (config, tensors) in source.parts.items():
            write_part(config, tensors, folder / name, dtype=dtype)
        for name, tokenizer in source.tokenizers.items():
            (folder / name).mkdir()
            tokenizer.write(folder / name)
        (folder / "scheduler").mkdir()
        write_config(source.sampler_config, folder / "scheduler")
        write_json(_index(source), folder / INDEX)


def _index(source: Source) -> dict[str, Any]:
    """Make the content of model_index.json."""
    is_xl = "XL" in source.pipeline
    optional = ("feature_extractor", "image_encoder", *(() if is_xl else ("safety_checker",)))
    absent = [*optional, *(TEXT_ENCODERS + TOKENIZERS if is_xl else ())]
    configs = {name: part.config for name, part in source.parts.items()}
    unet = configs[UNET]
    pooled = configs[source.encoders[-1]].projection_dim
    told = unet.projection_class_embeddings_input_dim if unet.addition_embed_type == "text_time" else None
    is_refiner = told is not None and (told - pooled) // unet.addition_time_embed_dim == 5
    return {
        "_class_name": source.pipeline,
        "_diffusers_version": "0.30.0",
        **{name: [None, None] for name in absent},
        **({"force_zeros_for_empty_prompt": source.zeros_for_empty} if is_xl else {"requires_safety_checker": False}),
        **{name: [family_of(one).library, family_of(one).class_of(one)] for name, one in configs.items()},
        **{name: ["transformers", "CLIPTokenizer"] for name in source.tokenizers},
        **({"requires_aesthetics_score": True} if is_refiner else {}),
        "scheduler": ["diffusers", type(source.sampler_config).scheduler],
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
