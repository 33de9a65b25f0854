"""Write a model of Stable Diffusion as one file, in the names of the repository that it was trained in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.safetensors_files import write_safetensors
from cmjax.io.single_files import kinds as known_kinds
from cmjax.io.single_files.kinds import Kind, kind_by_shape
from cmjax.io.single_files.shapes import unet_shape
from cmjax.io.single_files.stable_diffusion import AUTOENCODER_PREFIX, UNET_PREFIX, Part, predicts_v, unet_part
from cmjax.io.weights import cast
from cmjax.models.families import family_of
from cmjax.models.original_names import autoencoder_modules, openclip_tensors, unet_modules

__all__ = ["check_sampler", "current_part", "write_stable_diffusion"]

_OPENAI = "transformer."
_OPENCLIP = "model."
# What a file without configs means; other noise levels it cannot say.
_LEVELS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
}


def check_sampler(config: Any) -> None:
    """Refuse a sampler whose noise levels are not those that such a file means.

    Raises:
      ValueError: they are others.
    """
    for name, value in _LEVELS.items():
        if (got := getattr(config, name, None)) != value:
            raise ValueError(
                f"a file in one piece means {name} = {value}, but the model has {got}: save it as a folder, which has "
                "its configs."
            )
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"a file in one piece cannot say that the network predicts {config.prediction_type!r}: save a folder."
        )


def write_stable_diffusion(
    path: str | Path,
    *,
    unet: Part,
    autoencoder: Part,
    text_encoders: Sequence[Part],
    sampler: Any,
    dtype: Any = None,
) -> Kind:
    """Write one file that `read_stable_diffusion` reads as the same model.

    Of Stable Diffusion 2's text encoder, the last layer and the projection, which nothing is drawn from, are in no
    folder, and so not in the file.

    Args:
      path: the file; it is replaced in one step.
      unet: its config and its tensors, by our names.
      autoencoder: the same of the autoencoder.
      text_encoders: the same of the text encoders, in order.
      sampler: its config, which has noise levels and what the network predicts.
      dtype: of the stored tensors; None keeps theirs.

    Returns:
      What kind of model it is.

    Raises:
      ValueError: a file without configs cannot say what the model is: it is no kind of Stable Diffusion that is known
        by its shapes, or has other heads, norms or noise levels than those; or a tensor is infinite in dtype.
      OSError: it cannot be written.
    """
    parts = [current_part(part) for part in (unet, autoencoder, *text_encoders)]
    unet, autoencoder, *texts = parts
    kind = _kind(unet, autoencoder, texts)
    check_sampler(sampler)
    tensors = {f"{UNET_PREFIX}{name}": value for name, value in _back(unet, unet_modules(unet.config)).items()}
    for name, value in _back(autoencoder, autoencoder_modules(autoencoder.config)).items():
        is_pixel = ".attn_" in name and value.ndim == 2
        tensors[f"{AUTOENCODER_PREFIX}{name}"] = value[:, :, None, None] if is_pixel else value
    for place, (maker, part) in enumerate(zip(kind.encoders, texts, strict=True)):
        prefix = "cond_stage_model." if kind.label is None else f"conditioner.embedders.{place}."
        named = _openclip(part) if maker == "openclip" else part.tensors
        inner = _OPENCLIP if maker == "openclip" else _OPENAI
        tensors |= {f"{prefix}{inner}{name}": value for name, value in named.items()}
    if dtype is not None:
        tensors = {name: cast(name, value, jnp.dtype(dtype)) for name, value in tensors.items()}
    write_safetensors(tensors | _markers(kind, unet, sampler), path)
    return kind


def current_part(part: Part) -> Part:
    """Give a part's tensors the names that they have today."""
    family = family_of(part.config)
    named = ((family.current(name), value) for name, value in part.tensors.items())
    return Part(part.config, {name: value for name, value in named if name is not None})


def _kind(unet: Part, autoencoder: Part, texts: Sequence[Part]) -> Kind:
    """Tell the kind by shapes, and hold the configs to what a reader of the file will make of it."""
    if family_of(autoencoder.config).class_name != "AutoencoderKL":
        raise ValueError("a file in one piece holds an AutoencoderKL; save a model with another one as a folder.")
    shape = unet_shape({name: value.shape for name, value in unet.tensors.items()})
    kind = kind_by_shape(shape, known_kinds.KINDS)
    read = unet_part(unet.tensors, kind, shape).config
    told = ("norm_num_groups", "norm_eps", "act_fn", "flip_sin_to_cos", "freq_shift", "center_input_sample")
    told += ("downsample_padding", "mid_block_scale_factor", "only_cross_attention", "addition_time_embed_dim")
    for name in told:
        if getattr(read, name) != getattr(unet.config, name):
            _cannot(kind, name, getattr(unet.config, name), getattr(read, name))
    levels = range(len(read.block_out_channels))
    if (ours := [*map(unet.config.heads, levels)]) != (theirs := [*map(read.heads, levels)]):
        _cannot(kind, "heads of its levels", ours, theirs)
    for name, value in (("scaling_factor", kind.scaling_factor), ("norm_num_groups", kind.groups)):
        if (got := getattr(autoencoder.config, name)) != value:
            _cannot(kind, f"{name} of its autoencoder", got, value)
    if autoencoder.config.latents_mean is not None or autoencoder.config.shift_factor:
        _cannot(kind, "means of its latents", "some", "none")
    if len(texts) != len(kind.encoders):
        _cannot(kind, "number of its text encoders", len(texts), len(kind.encoders))
    for maker, text in zip(kind.encoders, texts, strict=True):
        act = "quick_gelu" if maker == "openai" else "gelu"
        if text.config.hidden_act != act:
            _cannot(kind, "activation of its text encoder", text.config.hidden_act, act)
        if text.config.num_attention_heads != (heads := max(1, text.config.hidden_size // kind.head_width)):
            _cannot(kind, "heads of its text encoder", text.config.num_attention_heads, heads)
    return kind


def _cannot(kind: Kind, what: str, got: Any, read: Any) -> None:
    raise ValueError(
        f"a file in one piece has no configs, so that it is read as {kind.name} with {what} = {read}, but this model "
        f"has {got}: save it as a folder."
    )


def _back(part: Part, modules: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Give tensors the names of their own files."""
    theirs = {ours: name for name, ours in modules.items()}
    renamed = {}
    for name, value in part.tensors.items():
        module, _, word = name.rpartition(".")
        if module not in theirs:
            raise ValueError(f"tensor {name} has no place in a file in one piece: save the model as a folder.")
        renamed[f"{theirs[module]}.{word}"] = value
    return renamed


def _openclip(part: Part) -> dict[str, np.ndarray]:
    """Give a text encoder's tensors OpenCLIP's names and layout; of queries, keys and values, one copy."""
    found = {}
    for theirs, ours in openclip_tensors(part.config).items():
        values = [part.tensors[name] for name in ours]
        value = values[0] if len(values) == 1 else np.concatenate(values)
        found[theirs] = value.T if theirs == "text_projection" else value
    return found


def _markers(kind: Kind, unet: Part, sampler: Any) -> dict[str, np.ndarray]:
    """Say what the network predicts, where a reader would take it for something else."""
    empty, markers = np.zeros(0, np.float32), {}
    is_v = sampler.prediction_type == "v_prediction"
    told = predicts_v(kind, unet_shape({name: value.shape for name, value in unet.tensors.items()}), unet.tensors)
    if told and not is_v:
        raise ValueError(
            "the network predicts epsilon, but would be taken for one that predicts v, by its biases: save a folder."
        )
    if is_v and not told:
        markers["v_pred"] = empty
    if sampler.rescale_betas_zero_snr:
        markers["ztsnr"] = empty
    return markers
