"""What `cmjax evaluate --prompts` reads: models, pictures, a CLIP and an extractor, before anything is compiled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import cmjax
from cmjax._struct import Struct
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.evaluate.inputs import check_file, open_extractor
from cmjax.cli.options import EvaluateOptions, PartsOptions, PathOptions
from cmjax.cli.prompts import OpenedText, four_steps, of_texts, open_text_model
from cmjax.cli.published import published_settings
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler
from cmjax.evaluation import PICTOGRAMS, ClipFeatures, Features, Gaussian, read_statistics
from cmjax.io import read_captions, read_images
from cmjax.io.locate import resolve
from cmjax.types import Array

__all__ = ["CLIP", "LATENTS", "Entry", "LatentFeatures", "Pictures", "TextInputs", "read_inputs"]

CLIP, LATENTS = "clip", "latents"
_PICTOGRAMS_OF = "emoji"  # the model whose pictures the package's judge knows
_CELLS = 4  # a side, into which latents are averaged


class Entry(NamedTuple):
    """A model that draws: its name in the table, what it was asked for, and how it is sampled."""

    name: str
    options: EvaluateOptions
    text: OpenedText
    setup: SamplerSetup


class Pictures(NamedTuple):
    """Real pictures u8[N, H, W, C], and a caption of each, or None."""

    images: np.ndarray
    captions: tuple[str, ...] | None


class LatentFeatures(Struct):
    """The latents of an autoencoder as an extractor, averaged into 4 x 4 cells."""

    coder: Any

    def __call__(self, images: Array) -> Features:
        """Encode images f32[B, H, W, 3] in [-1, 1]."""
        latents = self.coder.encode(images)
        b, h, w, c = latents.shape
        rows, columns = min(h, _CELLS), min(w, _CELLS)
        cells = latents[:, : h - h % rows, : w - w % columns].reshape(b, rows, h // rows, columns, w // columns, c)
        return Features(cells.mean(axis=(2, 4)).reshape(b, -1).astype(np.float32))


class TextInputs(NamedTuple):
    """Everything that an evaluation of texts needs.

    Attributes:
      entries: the model, and those that it is compared with.
      shape: (H, W, 3) of the pictures.
      features: the name of the extractor.
      extractor: None for latents, which need the model's weights.
      width: the number of features.
      clip: the CLIP of the CLIP score, or None.
      real: real pictures, or None.
      reference: statistics to measure the distance from, or None.
    """

    entries: tuple[Entry, ...]
    shape: tuple[int, int, int]
    features: str
    extractor: Any
    width: int
    clip: Any
    real: Pictures | None
    reference: Gaussian | None


def read_inputs(options: EvaluateOptions) -> TextInputs:
    """Look everything up that was asked for.

    Raises:
      UsageError: something is not there, or is damaged, or does not fit the rest.
    """
    check_file(options.json, "--json", ".json")
    check_file(options.out, "--out", ".png")
    for name in ("num", "classes", "save_statistics"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for models of classes: leave it out with --prompts.")
    for name in ("steps", "guidance", "sampler"):
        if options.against is None and getattr(options, f"against_{name}") is not None:
            raise UsageError(f"--against-{name} is for the models of --against, which is missing.")
    entries = [_entry(options.model, options)]
    for model, lora in options.against or ():
        name, taken = _title(model, lora), [entry.name for entry in entries]
        copies = sum(other == name or other.startswith(f"{name} (") for other in taken)
        entries.append(_entry(f"{name} ({copies + 1})" if copies else name, _of_other(options, model, lora)))
    shape = entries[0].text.model.shape
    for entry in entries[1:]:
        if entry.text.model.shape != shape:
            raise UsageError(
                f"--against: {entry.name} draws pictures of {_size(entry.text.model.shape)} pixels, but "
                f"{entries[0].name} of {_size(shape)}: give both one --size."
            )
    with bad_input("--reference"):
        reference = None if options.reference is None else read_statistics(options.reference)
    real = None if options.data is None else _read_pictures(options, shape)
    clip = None
    if options.clip is not None:
        with bad_input("--clip"):
            clip = cmjax.text_to_image.load_clip(options.clip)
    features, extractor, width = _extractor(options, entries[0], clip)
    if reference is not None and len(reference.mean) != width:
        raise UsageError(
            f"--reference: the statistics are of {len(reference.mean)} features, but {features} has {width}."
        )
    return TextInputs(tuple(entries), shape, features, extractor, width, clip, real, reference)


def _entry(name: str, options: EvaluateOptions) -> Entry:
    """Open one model, with the settings that it was published with where nothing else is asked for."""
    options, note = published_settings(options)
    if not of_texts(options.model, options.variant):
        with bad_input():  # one that is not there says so
            resolve(options.model, whole=True)
        raise UsageError(f"{options.model} draws no texts: leave --prompts out, or give a text-to-image model.")
    text = open_text_model(options)
    setup = choose_sampler(text.model.checkpoint, options.model, options, four_steps)
    return Entry(name, options, text, setup._replace(note=note or setup.note))


def _of_other(options: EvaluateOptions, model: str, lora: str | None) -> EvaluateOptions:
    """What a model of --against is asked for: the same prompts and size, and settings of its own."""
    kinds = (PathOptions, PartsOptions)
    usual = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    own = {name: getattr(options, f"against_{name}") for name in ("steps", "guidance", "sampler")}
    guided = own["guidance"] not in (None, 1)
    return dataclasses.replace(
        options,
        **usual | own,
        model=model,
        lora=None if lora is None else ((lora, None),),
        embedding=None,
        variant=None,
        negative=options.negative if guided else None,
    )


def _title(model: str, lora: str | None) -> str:
    return model if lora is None else f"{model}:{lora}"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _read_pictures(options: EvaluateOptions, shape: tuple[int, int, int]) -> Pictures:
    """Read --data, with captions where its folder has them."""
    folder = Path(str(options.data)).expanduser()
    with bad_input("--data"):
        if folder.is_dir() and ((folder / "metadata.jsonl").exists() or next(folder.rglob("*.txt"), None)):
            found = read_captions(folder)
            pictures = Pictures(found.images, tuple(captions[0] for captions in found.captions))
        else:
            pictures = Pictures(read_images(folder, options.split, classes=False).images, None)
    if pictures.images.shape[1:] != shape:
        raise UsageError(
            f"--data: the pictures are {pictures.images.shape[1:]}, but the model draws {shape}: convert them to its "
            "height, width and channels first (and report how, with the figures)."
        )
    if len(pictures.images) < 4:
        raise UsageError(f"--data: both halves need at least 2 pictures, got {len(pictures.images)} in all.")
    return pictures


def _extractor(options: EvaluateOptions, entry: Entry, clip: Any) -> tuple[str, Any, int]:
    """Choose the extractor; its name, itself, and the number of its features."""
    usual = PICTOGRAMS if options.model == _PICTOGRAMS_OF else CLIP if clip is not None else LATENTS
    name, shape = options.features or usual, entry.text.model.shape
    if name == CLIP:
        if clip is None:
            raise UsageError("--features clip: give a CLIP too, --clip FOLDER.")
        return name, ClipFeatures(clip), clip.features
    if name == LATENTS:
        coder = entry.text.model.checkpoint.model.autoencoder  # pyright: ignore[reportAttributeAccessIssue]
        images = jax.ShapeDtypeStruct((1, *shape), np.float32)
        seen = jax.eval_shape(lambda coder, images: LatentFeatures(coder)(images), coder, images)
        return name, None, seen.features.shape[1]
    found = open_extractor(name, shape)
    return name, found.extractor, found.features
