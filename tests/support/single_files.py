"""Tiny files in one piece, in the structure of published models: each width is a fraction of the published one."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from golden.unets import UNETS, unfolded
from shapes import shaped
from texts import LENGTH, tokenizer

from cmjax.io.parts import write_part
from cmjax.io.safetensors_files import write_safetensors
from cmjax.io.single_files import kinds
from cmjax.io.single_files.stable_diffusion import Part
from cmjax.io.weights import file_tensors
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.clip import TextConfig, TextEncoder
from cmjax.models.original_names import autoencoder_modules, openclip_tensors, unet_modules
from cmjax.models.unet2d_condition import UNetConditionConfig

__all__ = ["FAMILIES", "TINY", "Model", "model", "use_tiny_kinds"]

FAMILIES = ("stable-diffusion-v1-5", "stable-diffusion-inpainting", "instruct-pix2pix", "LCM_Dreamshaper_v7")
FAMILIES += ("stable-diffusion-2-1", "stable-diffusion-xl-base-1.0", "stable-diffusion-xl-1.0-inpainting-0.1")
FAMILIES += ("stable-diffusion-xl-refiner-1.0", "SSD-1B", "Segmind-Vega", "koala-700m", "koala-1b", "bk-sdm-base")
FAMILIES += ("bk-sdm-small", "bk-sdm-tiny")

GUIDANCE, SIZE, SMALL, LARGE = 8, 4, 12, 20  # widths: of the guidance, of each size, and of both text encoders
_WIDTHS = {
    768: (SMALL, None),
    1024: (16, None),
    2048: (SMALL + LARGE, LARGE + 6 * SIZE),
    1280: (LARGE, LARGE + 5 * SIZE),
}
_SHRUNK = {"head_width": 4, "groups": 4, "size_width": SIZE}
_PUBLISHED = kinds.KINDS
TINY = tuple(
    dataclasses.replace(
        kind,
        width=8,
        context=_WIDTHS[kind.context][0],
        label=_WIDTHS[kind.context][1],
        heads=2 if kind.heads else None,
        **_SHRUNK,
    )
    for kind in _PUBLISHED
)


def use_tiny_kinds(patch: pytest.MonkeyPatch) -> None:
    """Let files be known by tiny widths."""
    patch.setattr(kinds, "KINDS", TINY)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model: its parts by our names, and how a file in one piece has them."""

    name: str
    kind: kinds.Kind
    unet: Part
    autoencoder: Part
    texts: tuple[Part, ...]

    @property
    def encoders(self) -> tuple[str, ...]:
        """What a folder calls the text encoders."""
        names = ("text_encoder", "text_encoder_2")
        return names[1:] if self.kind.is_refiner else names[: len(self.texts)]

    def tensors(self, *parts: str) -> dict[str, np.ndarray]:
        """The tensors of a file in one piece with these parts, "unet", "vae" and "texts"; all by default."""
        found = {}
        if "unet" in parts or not parts:
            found |= _named(self.unet, unet_modules(self.unet.config), "model.diffusion_model.")
        if "vae" in parts or not parts:
            named = _named(self.autoencoder, autoencoder_modules(self.autoencoder.config), "first_stage_model.")
            pixels = {
                name: value[:, :, None, None] for name, value in named.items() if ".attn_1." in name and value.ndim == 2
            }
            found |= named | pixels
        for i in range(len(self.texts) if "texts" in parts or not parts else 0):
            prefix = "cond_stage_model." if self.kind.label is None else f"conditioner.embedders.{i}."
            found |= {prefix + name: value for name, value in self.text(i).items()}
        return found

    def text(self, i: int) -> dict[str, np.ndarray]:
        """A text encoder, without the prefix of its place."""
        config, tensors = self.texts[i]
        if self.kind.encoders[i] == "openai":
            return {f"transformer.{name}": value for name, value in tensors.items()}
        found = {"model.logit_scale": np.float32(3)[None]}
        for theirs, ours in openclip_tensors(config).items():
            value = np.concatenate([tensors[name] for name in ours])
            found[f"model.{theirs}"] = value.T if theirs == "text_projection" else value
        if self.kind.without_last:  # the last layer, which is not used, and a projection
            n = config.num_hidden_layers
            last = {k: v for k, v in found.items() if f".resblocks.{n - 1}." in k}
            found |= {k.replace(f".resblocks.{n - 1}.", f".resblocks.{n}."): v + 1 for k, v in last.items()}
            found["model.text_projection"] = np.ones((config.hidden_size, config.hidden_size), np.float32)
        return found

    def file(self, path: Path, *parts: str, **more: np.ndarray) -> Path:
        """Write the file in one piece."""
        write_safetensors(self.tensors(*parts) | more, path)
        return path

    def folder(self, path: Path) -> Path:
        """Write the networks of a folder in diffusers' layout, and tokenizers."""
        path.mkdir()
        write_part(*self.unet, path / "unet")
        write_part(*self.autoencoder, path / "vae")
        for name, text, maker in zip(self.encoders, self.texts, self.kind.encoders, strict=True):
            write_part(*text, path / name)
            tokenizer("!" if maker == "openclip" else "<|endoftext|>").write(
                path / name.replace("text_encoder", "tokenizer")
            )
        return path


def _named(part: Part, modules: dict[str, str], prefix: str) -> dict[str, np.ndarray]:
    theirs = {ours: name for name, ours in modules.items()}
    split = {name: name.rpartition(".") for name in part.tensors}
    return {f"{prefix}{theirs[split[name][0]]}.{split[name][2]}": value for name, value in part.tensors.items()}


def _drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (0.05 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def _module(kind: Any, config: Any, seed: int) -> Part:
    module = shaped(lambda rngs: kind(config, rngs=rngs))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), module)
    return Part(config, _drawn({name: value.shape for name, value in file_tensors(blank).items()}, seed))


@functools.cache
def _text(maker: str, width: int, projection: bool) -> Part:
    words = len(tokenizer())
    config = TextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu" if maker == "openai" else "gelu",
        bos_token_id=0,
        eos_token_id=2,
        projection_dim=width,
        projection=projection,
    )
    return _module(TextEncoder, config, width)


@functools.cache
def _autoencoder(scaling_factor: float, sample_size: int) -> Part:
    config = AutoencoderConfig(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
    )
    return _module(Autoencoder, config, 1)


@functools.cache
def model(name: str) -> Model:
    """Make a tiny model in the structure of a published one, with random weights."""
    said = UNETS[name]["config"]
    large = UNetConditionConfig.from_dict(said)
    place = next(i for i, kind in enumerate(_PUBLISHED) if kind.context == large.cross_attention_dim)
    kind, by = TINY[place], large.block_out_channels[0] // 8
    shapes = {}
    for path, shape in unfolded(UNETS[name]["tensors"]).items():
        small = [n if n < 10 else n // by for n in shape]
        if ".attn2.to_k." in path or ".attn2.to_v." in path:
            small[1] = kind.context
        if path == "add_embedding.linear_1.weight":
            small[1] = kind.label or 0
        if path == "time_embedding.cond_proj.weight":
            small[1] = GUIDANCE
        shapes[path] = tuple(small)
    widths = tuple(width // by for width in large.block_out_channels)
    config = dataclasses.replace(
        large,
        block_out_channels=widths,
        cross_attention_dim=kind.context,
        norm_num_groups=kind.groups,
        attention_head_dim=kind.heads or tuple(width // kind.head_width for width in widths),
        time_cond_proj_dim=large.time_cond_proj_dim and GUIDANCE,
        addition_time_embed_dim=large.addition_time_embed_dim and SIZE,
        projection_class_embeddings_input_dim=kind.label,
    )
    if kind.label is None:
        texts: tuple[Part, ...] = (_text(kind.encoders[0], kind.context, False),)
    elif kind.is_refiner:
        texts = (_text("openclip", LARGE, True),)
    else:
        texts = (_text("openai", SMALL, False), _text("openclip", LARGE, True))
    return Model(
        name, kind, Part(config, _drawn(shapes, 0)), _autoencoder(kind.scaling_factor, 8 * kind.sample_size), texts
    )
