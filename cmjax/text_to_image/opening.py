"""Open the parts of a text-to-image model: a folder in diffusers' layout or a file, and what replaces parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmjax.io.configs import read_config, read_json
from cmjax.io.folder import INDEX
from cmjax.io.locate import resolve
from cmjax.io.parts import (
    AUTOENCODER,
    TEXT_ENCODERS,
    TOKENIZERS,
    UNET,
    family_of_part,
    read_part_config,
)
from cmjax.io.pieces import read_weights
from cmjax.io.single_files.stable_diffusion import Part
from cmjax.models.families import family_of
from cmjax.samplers.base import SamplerConfig
from cmjax.samplers.tcd import TCDConfig
from cmjax.text_to_image.fit import check_fit
from cmjax.text_to_image.sources import Source, of_file
from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["Described", "describe", "of_folder", "open_source"]


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
