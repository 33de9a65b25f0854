"""Text-to-image models as folders in diffusers' layout: `load` and `save`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.assembly import assemble, check_dtype
from cmjax.io.atomic import atomic_folder
from cmjax.io.configs import write_config, write_json
from cmjax.io.folder import INDEX, refuse_other_files
from cmjax.io.locate import resolve
from cmjax.io.memory import refuse_too_much
from cmjax.io.parts import (
    AUTOENCODER,
    TEXT_ENCODERS,
    TOKENIZERS,
    UNET,
    family_of_part,
    write_part,
)
from cmjax.io.single_files.stable_diffusion import Part, holds_unet
from cmjax.io.single_files.stable_diffusion_writing import current_part, write_stable_diffusion
from cmjax.io.weights import Placement, file_tensors
from cmjax.models.families import family_of
from cmjax.text_to_image.autoencoder import LatentCoder, compute_dtype
from cmjax.text_to_image.fit import is_told_score
from cmjax.text_to_image.opening import open_source
from cmjax.text_to_image.pipeline import TextToImage
from cmjax.text_to_image.sources import Source

if TYPE_CHECKING:
    from jax.typing import DTypeLike

__all__ = ["assemble_source", "convert", "is_text_model", "load", "save", "write_source"]


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
        files that are needed are downloaded; or a file in one piece: .safetensors, or .ckpt, .pt and .bin, of which
        nothing is executed.
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
      has the noise levels and what the network predicts. A file in one piece has the sampler that one of its
      name was published with (`cmjax.published`), or else its kind's ordinary one; markers in it say what its network
      predicts, or its name does. For one that needs one but has none:
      `pipe.replace(config=dataclasses.replace(pipe.config, prediction_type="v_prediction"))`.

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
        return path.suffix in (".safetensors", ".ckpt", ".bin") and holds_unet(path)
    return False


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
    unet, *encoders = pipe.networks
    networks = {unet: pipe.unet, AUTOENCODER: pipe.autoencoder.network} | pipe.networks
    tokenizers = [dict(zip(TEXT_ENCODERS, TOKENIZERS, strict=True))[name] for name in encoders]
    for network in networks.values():
        network.refuse_abstract()
    path = Path(path).expanduser()
    source = Source(
        where=path,
        pipeline=pipe.pipeline,
        parts={name: Part(network.config, file_tensors(network.module)) for name, network in networks.items()},
        encoders=tuple(encoders),
        tokenizers=dict(zip(tokenizers, pipe.tokenizers, strict=False)),
        sampler=pipe.config,
        zeros_for_empty=pipe.zeros_for_empty,
    )
    write_source(source, path, dtype=dtype)


def convert(
    path_or_name: str | Path,
    out: str | Path,
    *,
    dtype: DTypeLike | None = None,
    revision: str | None = None,
    variant: str | None = None,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoders: str | Path | Sequence[str | Path | None] = (),
    tokenizer: str | Path | None = None,
    ema: bool = False,
) -> Source:
    """Write a model as a folder, or as one file: from file to file, tensor by tensor, and each number as it is.

    Args:
      path_or_name: as for `load`, as are those after `dtype`.
      out: a folder, or a file whose name ends in .safetensors, as for `save`.
      dtype: the dtype to store the weights in; None keeps theirs.
      revision: of a hub's repository.
      variant: which weights to read.
      base: gives what a file lacks.
      vae: another autoencoder.
      text_encoders: others.
      tokenizer: for a file that becomes a folder.
      ema: take the averages of a file's weights.

    Returns:
      The parts that were written.

    Raises:
      FileNotFoundError: there is no such model, or a part is missing.
      TypeError: dtype is not a float dtype.
      ValueError: as for `load` and `save`.
      OSError: it cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp()) / "half"
      >>> source = convert("emoji", folder, dtype="float16")
      >>> load(folder, abstract=True).native_size
      (64, 64)
    """
    if dtype is not None:
        check_dtype("dtype", dtype)
    out = Path(out).expanduser()
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
    if out.suffix != ".safetensors":
        source = source.with_tokenizers(tokenizer)
    source.check_fit()
    assemble_source(source, abstract=True)  # whether every tensor is there, and of its shape
    write_source(source, out, dtype=dtype)
    return source


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
        for name, part in source.parts.items():
            write_part(*current_part(part), folder / name, dtype=dtype)
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
    is_refiner = is_told_score(configs[UNET], configs[source.encoders[-1]])
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


def _bytes(tensors: Mapping[str, np.ndarray], param_dtype: DTypeLike) -> int:
    size = jnp.dtype(param_dtype).itemsize
    return sum(tensor.size * (size if tensor.ndim > 1 else 4) for tensor in tensors.values())
