"""Where the parts of a text-to-image model come from: configs and tensors, before any weight is read.

A folder holds all parts. A file in one piece may lack some, and never has a tokenizer: those come from another model,
from files of their own, or from a package that carries CLIP's vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cmjax.io.locate import resolve
from cmjax.io.parts import AUTOENCODER, TEXT_ENCODERS, TOKENIZERS, UNET
from cmjax.io.single_files import kinds as known_kinds
from cmjax.io.single_files.kinds import Kind
from cmjax.io.single_files.stable_diffusion import (
    Original,
    Part,
    read_autoencoder,
    read_stable_diffusion,
    read_text_encoder,
)
from cmjax.published import LEVELS, Published, find
from cmjax.samplers.base import SamplerConfig
from cmjax.samplers.ddim import DDIMConfig
from cmjax.samplers.euler import EulerConfig
from cmjax.samplers.lcm import LCMConfig
from cmjax.text_to_image.clip_vocabulary import REMEDY, installed_vocabulary, read_vocabulary
from cmjax.text_to_image.fit import check_fit
from cmjax.text_to_image.tokenizer import Tokenizer

__all__ = ["Source", "of_file"]

_PAIRS = dict(zip(TEXT_ENCODERS, TOKENIZERS, strict=True))


class Source(NamedTuple):
    """The parts of a model.

    Attributes:
      where: the folder or the file, for messages.
      pipeline: the class in model_index.json.
      parts: of the networks, by their names in a folder, as far as they are there.
      encoders: the names of the text encoders that the model must have.
      tokenizers: by name.
      sampler: its config; None where the file says nothing of it.
      zeros_for_empty: whether no text is zeros.
      original: what the file in one piece is; None for a folder.
      published: its row in the table of few-step models, for a file in one piece that has one.
    """

    where: Path
    pipeline: str
    parts: Mapping[str, Part]
    encoders: tuple[str, ...]
    tokenizers: Mapping[str, Tokenizer]
    sampler: SamplerConfig | None
    zeros_for_empty: bool
    original: Original | None = None
    published: Published | None = None

    # ---- from elsewhere ----------------------------------------------------------------------------------------------

    def filled(self, base: Source) -> Source:
        """Take what is not here from another model: parts, tokenizers and the sampler."""
        parts = {name: base.parts[name] for name in (AUTOENCODER, *self.encoders) if name in base.parts}
        pairs = {_PAIRS[name]: name for name in self.encoders}
        tokenizers = {name: self._padded(one, pairs[name]) for name, one in base.tokenizers.items() if name in pairs}
        alone = self.original is not None and len(self.parts) == 1
        sampler = self.sampler
        if alone and base.sampler is not None:
            sampler = base.sampler if sampler is None else self._told(sampler, base.sampler)
        return self._replace(
            parts={**parts, **self.parts},
            tokenizers={**tokenizers, **self.tokenizers},
            sampler=sampler,
            zeros_for_empty=base.zeros_for_empty if alone else self.zeros_for_empty,
        )

    def _told(self, own: SamplerConfig, base: SamplerConfig) -> SamplerConfig:
        """The noise levels of another model, with what this one's file says of the network."""
        names = [field.name for field in dataclasses.fields(own)]
        values = {name: getattr(base, name) for name in names if hasattr(base, name)}
        said = self.original
        if said is not None and said.prediction_type is not None:
            values |= {"prediction_type": said.prediction_type, "rescale_betas_zero_snr": said.zero_snr}
        told = dataclasses.replace(own, **values)
        return told if self.published is None else self.published.configured(told)

    def with_autoencoder(self, part: Part) -> Source:
        """Take another autoencoder."""
        return self._replace(parts={**self.parts, AUTOENCODER: part})

    def autoencoder_of(self, path: Path) -> Part:
        """Read an autoencoder from a file that holds one; its latents are scaled as this model's are.

        Raises:
          ValueError: the file is damaged, or holds none.
        """
        own = self.parts[AUTOENCODER].config.scaling_factor if AUTOENCODER in self.parts else None
        factor = self.original.kind.scaling_factor if own is None and self.original is not None else own
        size = self.parts[UNET].config.sample_size
        return read_autoencoder(path, scaling_factor=factor, sample_size=8 * size if isinstance(size, int) else None)

    def with_text_encoder(self, place: int, part: Part) -> Source:
        """Take another text encoder at a place, from 0."""
        return self._replace(parts={**self.parts, self.encoders[place]: part})

    def text_encoder_of(self, place: int, path: Path) -> Part:
        """Read a text encoder for a place from a file that holds one.

        Raises:
          ValueError: the file is damaged, or holds none, or this model is of no kind that is known by its widths.
        """
        return read_text_encoder(path, self._kind(), place)

    def _kind(self) -> Kind:
        """What the model is, by its network."""
        if self.original is not None:
            return self.original.kind
        unet = self.parts[UNET].config
        found = (unet.block_out_channels[0], unet.cross_attention_dim, unet.projection_class_embeddings_input_dim)
        for kind in known_kinds.KINDS:
            if kind.widths == found:
                return kind
        raise ValueError(
            f"{self.where} is no kind of Stable Diffusion that cmjax knows, so that a text encoder for it must be a "
            "folder, with its config.json."
        )

    # ---- whole -------------------------------------------------------------------------------------------------------

    def with_tokenizers(self, tokenizer: str | Path | None) -> Source:
        """Find a tokenizer for every text encoder that has none: in what is named, else in an installed package.

        Args:
          tokenizer: a tokenizer's folder, the folder or hub id of a model with tokenizers, OpenAI's file of the
            vocabulary, or None.

        Raises:
          ValueError: there is none, or it is damaged.
          FileNotFoundError: there is no such folder.
        """
        wanted = [name for name in self.encoders if tokenizer is not None or _PAIRS[name] not in self.tokenizers]
        if not wanted:
            return self
        given = _tokenizers(tokenizer, self.where)
        found = dict(self.tokenizers)
        for name in wanted:
            one = given.get(_PAIRS[name], next(iter(given.values())))
            found[_PAIRS[name]] = self._padded(one, name)
        return self._replace(tokenizers=found)

    def _padded(self, tokenizer: Tokenizer, encoder: str) -> Tokenizer:
        """Fill texts as an encoder was trained: OpenCLIP's with token 0, "!"; OpenAI's with the one that ends a text.

        A folder's tokenizers say it themselves.
        """
        if self.original is None:
            return tokenizer
        maker = self.original.kind.encoders[self.encoders.index(encoder)]
        pad = tokenizer.vocab[0] if maker == "openclip" else tokenizer.eos_token
        return dataclasses.replace(tokenizer, pad_token=pad)

    def refuse_missing(self) -> None:
        """Refuse a model that lacks a part.

        Raises:
          ValueError: it does.
        """
        words = {AUTOENCODER: "autoencoder", TEXT_ENCODERS[0]: "text encoder", TEXT_ENCODERS[1]: "second text encoder"}
        missing = [words[name] for name in (AUTOENCODER, *self.encoders) if name not in self.parts]
        if missing:
            raise ValueError(
                f"{self.where} has no {' and no '.join(missing)}: give the folder, hub id or file of the model that it "
                "belongs to (base=, on the command line --base), from which the rest is taken."
            )

    def check_fit(self) -> None:
        """Refuse a model whose parts do not fit each other.

        Raises:
          ValueError: they do not.
        """
        pairs = [_PAIRS[name] for name in self.encoders]
        check_fit(
            self.parts[UNET].config,
            self.parts[AUTOENCODER].config,
            {name: self.parts[name].config for name in self.encoders},
            {name: self.tokenizers[name] for name in pairs} if set(pairs) <= set(self.tokenizers) else {},
        )

    @property
    def sampler_config(self) -> SamplerConfig:
        """The sampler's config; that of the kind's folders where nothing says."""
        if self.sampler is not None:
            return self.sampler
        assert self.original is not None  # a folder says it
        return _sampler(self.original, self.published)


def of_file(path: Path, *, ema: bool = False) -> Source:
    """Read what a file in one piece holds.

    Args:
      path: the file.
      ema: whether to take the averages of the network's weights.

    Raises:
      ValueError: it is damaged, or holds something else.
    """
    original = read_stable_diffusion(path, ema=ema)
    kind = original.kind
    encoders = TEXT_ENCODERS[1:] if kind.is_refiner else TEXT_ENCODERS[: len(kind.encoders)]
    found = {UNET: original.unet, AUTOENCODER: original.autoencoder}
    found |= dict(zip(encoders, original.text_encoders, strict=True))
    parts = {name: part for name, part in found.items() if part is not None}
    is_lcm = original.unet.config.time_cond_proj_dim is not None
    row = find(path, kinds=("unet", "model"))
    row = None if row is None or not row.is_drawn else row
    says = original.prediction_type is not None or original.zero_snr or is_lcm or row is not None or len(parts) > 1
    return Source(
        where=path,
        pipeline=original.pipeline,
        parts=parts,
        encoders=encoders,
        tokenizers={},
        sampler=_sampler(original, row) if says else None,
        zeros_for_empty=kind.label is not None and not kind.is_refiner,
        original=original,
        published=row,
    )


def _sampler(original: Original, row: Published | None) -> SamplerConfig:
    """The sampler of a file without configs: as it was published, or else as folders of its kind have it.

    Those of Stable Diffusion 1 and 2 have PNDM's or DDIM's, those of XL Euler's; a network that is told the guidance
    scale is a latent consistency model. With pure noise at the last timestep, steps begin there (Lin et al. 2023).
    """
    values = {**LEVELS, "prediction_type": original.prediction_type or "epsilon"}
    if original.zero_snr:
        values |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if row is not None:
        return row.configured(row.module.Config.of(values))
    is_lcm, is_xl = original.unet.config.time_cond_proj_dim is not None, original.kind.label is not None
    return (LCMConfig if is_lcm else EulerConfig if is_xl else DDIMConfig).of(values)


def _tokenizers(tokenizer: str | Path | None, where: Path) -> dict[str, Tokenizer]:
    """Read what holds tokenizers: one, under the first name, or those of a model."""
    if tokenizer is None:
        if (file := installed_vocabulary()) is None:
            raise ValueError(f"{where} is a file in one piece, which has no tokenizer: {REMEDY}")
        return {TOKENIZERS[0]: read_vocabulary(file)}
    path = resolve(tokenizer, whole=True, parts=TOKENIZERS)
    if path.is_file():
        return {TOKENIZERS[0]: read_vocabulary(path)}
    found = {name: Tokenizer.read(path / name) for name in TOKENIZERS if (path / name).is_dir()}
    return found or {TOKENIZERS[0]: Tokenizer.read(path)}
