"""Read checkpoints of Stable Diffusion in one file, as model sites publish them: what one is, its parts and configs.

Such a file has the names of the repository that the model was trained in, under one prefix for each part:

| prefix | part |
|---|---|
| `model.diffusion_model.` | the UNet |
| `model_ema.` | averages of its weights, in names without dots |
| `first_stage_model.` | the autoencoder |
| `cond_stage_model.transformer.`, `.model.` | the text encoder, as OpenAI or OpenCLIP names it |
| `conditioner.embedders.{0,1}.transformer.`, `.model.` | those of Stable Diffusion XL |

A file with one part alone has it without the prefix, or under ours. What the model is, and its configs, are told by
shapes (`shapes`, `kinds`); a file that is nothing known is refused, never taken for something similar.

What the network predicts is said by a marker among the tensors (`v_pred`, and `ztsnr` for noise without a rest of the
signal). Stable Diffusion 2 has no marker; that its network predicts v is seen by the biases of its last norm.

References:
  Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Podell et al., SDXL, 2023.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmjax.io.safetensors_files import read_safetensors
from cmjax.io.single_files import kinds as known_kinds
from cmjax.io.single_files.kinds import Kind, kind_by_shape, pipeline_class, said
from cmjax.io.single_files.other_kinds import kind_of, remedy
from cmjax.io.single_files.shapes import (
    UNetShape,
    autoencoder_config,
    is_original,
    text_config,
    text_layers,
    unet_shape,
)
from cmjax.io.torch_files.reader import check_path, read_pt
from cmjax.io.weights import some_of
from cmjax.models.clip import names as clip_names
from cmjax.models.original_names import autoencoder_modules, openclip_tensors, unet_modules

__all__ = [
    "AUTOENCODER_PREFIX",
    "UNET_PREFIX",
    "Original",
    "Part",
    "holds_unet",
    "original_of",
    "predicts_v",
    "read_autoencoder",
    "read_file",
    "read_stable_diffusion",
    "read_text_encoder",
    "unet_part",
]

Tensors = Mapping[str, np.ndarray]

UNET_PREFIX, AUTOENCODER_PREFIX = "model.diffusion_model.", "first_stage_model."
_TEXT_PREFIXES = (("cond_stage_model.",), ("conditioner.embedders.0.", "conditioner.embedders.1."))
_EMA_PREFIX = "model_ema."
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_LISTED = 30

# Numbers of training, and what can be computed again.
_IDLE = re.compile(
    r"^(model_ema\.|loss\.|optimizer|lr_schedulers?|callbacks|betas$|alphas_cumprod|(sqrt_|log_)|posterior_|logvar$|"
    r"lvlb_weights$|scale_factor$|global_step$|epoch$|denoiser\.|edm_|v_pred$|ztsnr$|logit_scale$|"
    r"embedding_manager\.|cond_stage_key|first_stage_model\.(loss\.|model_ema\.)|"
    r"(cond_stage_model|conditioner\.embedders\.\d+)\.(logit_scale|attn_mask|layer_idx)$)|"
    r"(^|\.)(position_ids|logit_scale|attn_mask)$|(^|\.)(visual|vision_model|visual_projection)\."
)
_V_LEAST = 0.09  # of the spread of those biases, where a network of Stable Diffusion 2 predicts v


class Part(NamedTuple):
    """A network of a model: its config, and its tensors by our names, views of the file."""

    config: Any
    tensors: Tensors


class Original(NamedTuple):
    """What a file holds.

    Attributes:
      kind: what the model is.
      said: the same in words, more exactly.
      pipeline: the class in diffusers' model_index.json.
      unet: the network.
      autoencoder: or None where the file has none.
      text_encoders: in order; None for each that the file does not have.
      prediction_type: what the network predicts; None where nothing in the file says that it is not "epsilon".
      zero_snr: whether a marker says that the last timestep is pure noise.
      has_ema: whether there are averages of the UNet's weights.
    """

    kind: Kind
    said: str
    pipeline: str
    unet: Part
    autoencoder: Part | None
    text_encoders: tuple[Part | None, ...]
    prediction_type: str | None
    zero_snr: bool
    has_ema: bool


def read_file(path: str | Path) -> dict[str, np.ndarray]:
    """Map the tensors of a file of one piece into memory: .safetensors, or .ckpt and .pt, of which nothing is executed.

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: path is no path.
      ValueError: it is damaged, or of another format.
    """
    check_path(path)
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"{path} must be a file of weights, whose name ends in {', '.join(_SUFFIXES)}.")
    return read_safetensors(path) if suffix == ".safetensors" else read_pt(path)


def holds_unet(path: str | Path) -> bool:
    """Tell whether a file holds a UNet of Stable Diffusion, by the names in it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or of another format.
    """
    groups = _groups(read_file(path))
    return is_original(_shapes(groups.unet)) is not None


def read_stable_diffusion(path: str | Path, *, ema: bool = False) -> Original:
    """Read what a file holds, without reading weights.

    Args:
      path: the file.
      ema: whether to take the averages of the UNet's weights in place of the weights.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, holds something else (its kind is named where it is known), or its tensors do not
        fit each other.
    """
    tensors = read_file(path)
    try:
        return original_of(tensors, ema=ema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_autoencoder(path: str | Path, *, scaling_factor: float | None, sample_size: int | None = None) -> Part:
    """Read an autoencoder from a file that holds it, alone or in a model.

    Args:
      path: the file.
      scaling_factor: by which latents are multiplied; None for what the model in the file says.
      sample_size: pixels a side that it is for.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or holds none, or it holds it alone and no scaling_factor was given.
    """
    tensors = read_file(path)
    try:
        groups = _groups(tensors)
        if not groups.autoencoder:
            _refuse(groups, "an autoencoder")
        has_unet = is_original(_shapes(groups.unet)) is not None
        kind = _kind(_shapes(groups.unet)) if has_unet else known_kinds.KINDS[0]
        if scaling_factor is None and not has_unet:
            raise ValueError(
                "an autoencoder alone does not say by how much latents are scaled: give scaling_factor, 0.18215 for "
                "Stable Diffusion 1 and 2, 0.13025 for XL. As a model's vae, it takes the model's."
            )
        factor = kind.scaling_factor if scaling_factor is None else scaling_factor
        return _autoencoder(groups.autoencoder, kind.groups, factor, sample_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_text_encoder(path: str | Path, kind: Kind, place: int) -> Part:
    """Read a text encoder from a file that holds it, alone or in a model.

    Args:
      path: the file.
      kind: of the model that it is for.
      place: of the encoder in the model, from 0.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or holds no such encoder.
    """
    tensors = read_file(path)
    try:
        groups = _groups(tensors)
        found = [group for group in groups.texts if group]
        group = (
            groups.texts[place] if place < len(groups.texts) and groups.texts[place] else (found or [groups.rest])[0]
        )
        if not found and kind_of(group) is not None:
            _refuse(groups, "a text encoder")
        return _text(group, kind, place)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# ---- parts -----------------------------------------------------------------------------------------------------------


class _Groups(NamedTuple):
    """The tensors of each part, by their names in it; and what is none of them."""

    unet: dict[str, np.ndarray]
    autoencoder: dict[str, np.ndarray]
    texts: tuple[dict[str, np.ndarray], ...]
    ema: dict[str, np.ndarray]
    markers: dict[str, np.ndarray]
    rest: dict[str, np.ndarray]


def _groups(tensors: Tensors) -> _Groups:
    """Divide the tensors of a file by their prefixes; a part that is alone has none."""
    groups = _Groups({}, {}, ({}, {}), {}, {}, {})
    into = {UNET_PREFIX: groups.unet, AUTOENCODER_PREFIX: groups.autoencoder, "vae.": groups.autoencoder}
    into |= {
        prefix: group for prefixes in _TEXT_PREFIXES for prefix, group in zip(prefixes, groups.texts, strict=False)
    }
    for name, value in tensors.items():
        if _IDLE.search(name):
            if name.startswith(_EMA_PREFIX):
                groups.ema[name] = value
            groups.markers[name] = value
            continue
        prefix = next((prefix for prefix in into if name.startswith(prefix)), None)
        if prefix is None:
            groups.rest[name] = value
        else:
            into[prefix][name.removeprefix(prefix)] = value
    if not groups.unet and is_original(_shapes(groups.rest)) is not None:
        return groups._replace(unet=groups.rest, rest={})
    if (
        not groups.unet
        and not groups.autoencoder
        and {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= set(groups.rest)
    ):
        return groups._replace(autoencoder=groups.rest, rest={})
    return groups


def original_of(tensors: Tensors, *, ema: bool = False) -> Original:
    """Tell what tensors are, by their names and shapes: see `read_stable_diffusion`.

    Raises:
      ValueError: they are nothing known, or do not fit each other.
    """
    groups = _groups(tensors)
    if kind_of(groups.unet) is not None or is_original(_shapes(groups.unet)) is None:
        _refuse(groups, "a UNet of Stable Diffusion")
    if groups.rest:
        also = kind_of(groups.rest)
        raise ValueError(
            f"it holds {some_of(sorted(groups.rest), _LISTED)}, which belong to no part of Stable Diffusion"
            + (f", but to {also}." if also else ".")
        )
    if any(name.startswith("edm_") for name in groups.markers):
        raise ValueError(
            "it is marked as trained in noise levels (edm_mean, edm_std: Playground 2.5), which is not supported."
        )
    shapes = _shapes(groups.unet)
    shape = unet_shape(shapes)
    kind = kind_by_shape(shape, known_kinds.KINDS)
    unet = unet_part(_averages(groups) if ema else groups.unet, kind, shape)
    is_v = "v_pred" in groups.markers or predicts_v(kind, shape, unet.tensors)
    if (kind.without_last and is_v) or (kind.label is None and shape.guidance is not None):
        larger = dataclasses.replace(unet.config, sample_size=kind.sample_size * 3 // 2)  # pictures of 768 pixels
        unet = unet._replace(config=larger)
    vae = groups.autoencoder
    return Original(
        kind=kind,
        said=said(kind, shape),
        pipeline=pipeline_class(kind, shape),
        unet=unet,
        autoencoder=_autoencoder(vae, kind.groups, kind.scaling_factor, 8 * kind.sample_size) if vae else None,
        text_encoders=tuple(
            _text(group, kind, place) if group else None
            for place, group in zip(range(len(kind.encoders)), groups.texts, strict=False)
        ),
        prediction_type="v_prediction" if is_v else None,
        zero_snr="ztsnr" in groups.markers,
        has_ema=bool(groups.ema),
    )


def _refuse(groups: _Groups, wanted: str) -> None:
    """Refuse a file that does not hold what is wanted, and say what it holds.

    Raises:
      ValueError: always.
    """
    names = [*groups.unet, *groups.autoencoder, *groups.texts[0], *groups.texts[1], *groups.rest]
    if (kind := kind_of(names)) is not None:
        raise ValueError(f"it holds no {wanted.split(' ', 1)[1]}, but {kind}.{remedy(kind)}")
    found = [
        f"{word} ({len(group)} tensors)"
        for word, group in (
            ("a UNet", groups.unet),
            ("an autoencoder", groups.autoencoder),
            ("a text encoder", groups.texts[0]),
            ("a second text encoder", groups.texts[1]),
            ("averages of a UNet", groups.ema),
        )
        if group
    ]
    has = ", ".join(found) or (
        f"{some_of(sorted(names))}, which is nothing that cmjax knows" if names else "no weights"
    )
    raise ValueError(f"it holds no {wanted.split(' ', 1)[1]}, but {has}.")


def _kind(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    return kind_by_shape(unet_shape(shapes), known_kinds.KINDS)


def unet_part(tensors: Tensors, kind: Kind, shape: UNetShape) -> Part:
    """Make the part that is the UNet: its config, and its tensors by our names.

    Raises:
      ValueError: its tensors do not fit each other.
    """
    config = shape.config(
        heads=kind.heads,
        head_width=kind.head_width,
        groups=kind.groups,
        size_width=kind.size_width,
        sample_size=kind.sample_size,
    )
    return Part(config, _renamed(tensors, unet_modules(config), "UNet"))


def _autoencoder(tensors: Tensors, groups: int, scaling_factor: float, sample_size: int | None) -> Part:
    config = autoencoder_config(_shapes(tensors), groups=groups, scaling_factor=scaling_factor, sample_size=sample_size)
    renamed = _renamed(tensors, autoencoder_modules(config), "autoencoder")
    return Part(config, {name: _as_linear(name, value) for name, value in renamed.items()})


def _as_linear(name: str, value: np.ndarray) -> np.ndarray:
    """Show the convolutions of one pixel that attention has there as what they are here."""
    is_pixel = ".attentions." in name and value.ndim == 4 and value.shape[2:] == (1, 1)
    return value[:, :, 0, 0] if is_pixel else value


def _renamed(tensors: Tensors, modules: Mapping[str, str], part: str) -> Tensors:
    """Give tensors our names, if they have those of their own files; every one must have a place, and none may lack.

    Raises:
      ValueError: it is not so; all that are amiss are listed (of very many, the first).
    """
    theirs_alone = {theirs for theirs, ours in modules.items() if theirs != ours}
    if not any(name.rpartition(".")[0] in theirs_alone for name in tensors):
        return tensors  # they have ours; a gap among them is found when they are loaded
    renamed, left = {}, []
    for name, value in tensors.items():
        theirs, _, word = name.rpartition(".")
        if theirs in modules and word in ("weight", "bias"):
            renamed[f"{modules[theirs]}.{word}"] = value
        else:
            left.append(name)
    missing = [f"{theirs}.weight" for theirs, ours in modules.items() if f"{ours}.weight" not in renamed]
    faults = [f"it lacks {some_of(missing, _LISTED)}"] if missing else []
    faults += [f"it holds {some_of(left, _LISTED)}, which have no place in it"] if left else []
    if faults:
        raise ValueError(f"its tensors are not those of the {part} that they describe: {'; '.join(faults)}.")
    return renamed


def _averages(groups: _Groups) -> Tensors:
    """Find the averages of the UNet's weights, whose names are those of the weights without dots.

    Raises:
      ValueError: there are none, or not of every weight.
    """
    found, missing = {}, []
    for name in groups.unet:
        key = _EMA_PREFIX + f"diffusion_model.{name}".replace(".", "")
        if key in groups.ema:
            found[name] = groups.ema[key]
        else:
            missing.append(name)
    if missing:
        raise ValueError(
            "it has no averages of its weights (model_ema.): leave ema out."
            if not found
            else f"it lacks the averages of {some_of(missing, _LISTED)}."
        )
    return found


def _text(tensors: Tensors, kind: Kind, place: int) -> Part:
    """Read the text encoder at a place of a kind of model, by OpenCLIP's names or by transformers'."""
    tensors = {name.removeprefix("transformer.text_model."): value for name, value in tensors.items()}
    openclip = any(name.removeprefix("model.") == "positional_embedding" for name in tensors)
    maker, last = kind.encoders[place], place == len(kind.encoders) - 1
    projection = kind.label is not None and last
    if openclip:
        named = {name.removeprefix("model."): value for name, value in tensors.items() if not _IDLE.search(name)}
    else:
        by_ours = ((clip_names.current(name.removeprefix("transformer.")), value) for name, value in tensors.items())
        named = {name: value for name, value in by_ours if name is not None}
    shapes = _shapes(named)
    layers = text_layers(shapes)
    if openclip and kind.without_last and "text_projection" in named:
        layers -= 1  # what is drawn from is what comes out of the last but one
    config = text_config(
        shapes, head_width=kind.head_width, quick=maker == "openai", projection=projection, layers=layers
    )
    if not projection:
        named = {name: value for name, value in named.items() if not name.startswith("text_projection")}
    if not openclip:
        return Part(config, named)
    unused = f"transformer.resblocks.{layers}."
    return Part(config, _from_openclip({n: v for n, v in named.items() if not n.startswith(unused)}, config))


def _from_openclip(tensors: Tensors, config: Any) -> Tensors:
    """Give a text encoder's tensors our names and layout: views.

    Raises:
      ValueError: there is a tensor that has no place in it, or one is missing or has another shape.
    """
    names = openclip_tensors(config)
    if (left := sorted(tensors.keys() - names.keys())) or (lacks := sorted(names.keys() - tensors.keys())):
        what = (
            f"holds {some_of(left, _LISTED)}, which have no place in it" if left else f"lacks {some_of(lacks, _LISTED)}"
        )
        raise ValueError(f"the text encoder {what}.")
    found = {}
    for theirs, ours in names.items():
        value = tensors[theirs]
        if len(ours) == 3:
            if not value.ndim or value.shape[0] != 3 * config.hidden_size:
                raise ValueError(f"tensor {theirs} is {value.shape}, but holds queries, keys and values in thirds.")
            found |= zip(ours, np.split(value, 3), strict=True)
        else:
            found[ours[0]] = value.T if theirs == "text_projection" else value
    return found


def predicts_v(kind: Kind, shape: UNetShape, tensors: Tensors) -> bool:
    """Tell whether a network of Stable Diffusion 2 predicts v, by the spread of the biases of its last first norm."""
    full = all(layers == 2 for layers in shape.layers) and shape.in_channels == 4
    if not kind.without_last or not full or not shape.up[-1][-1]:
        return False
    name = f"up_blocks.{len(shape.up) - 1}.attentions.{len(shape.up[-1]) - 1}.transformer_blocks.0.norm1.bias"
    bias = tensors.get(name)
    return bias is not None and bool(np.std(np.asarray(bias, np.float64)) > _V_LEAST)


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in tensors.items()}
