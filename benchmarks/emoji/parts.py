"""The small text-to-image model: its configs, and its files in diffusers' layout."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from captions import LENGTH, Tokenizer
from flax import nnx
from safetensors.numpy import save as safetensors_bytes

import cmjax
from cmjax.io.weights import file_tensors
from cmjax.models.autoencoder_kl import Autoencoder, AutoencoderConfig
from cmjax.models.clip import TextConfig, TextEncoder
from cmjax.models.unet2d_condition import UNetCondition, UNetConditionConfig

__all__ = ["PARTS", "SCHEDULE", "configs", "definitions", "fresh", "save_pipeline"]

# Flat backgrounds need a last timestep that is noise alone: else its mean tells the network their colour in training.
SCHEDULE = cmjax.tcd.TCDConfig(
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1
)
PARTS = {"vae": Autoencoder, "text_encoder": TextEncoder, "unet": UNetCondition}


def configs(tokenizer: Tokenizer, *, tiny: bool = False, scaling_factor: float = 1.0) -> dict[str, Any]:
    """The config of each part; `tiny` ones serve to try the program."""
    width = 32 if tiny else 128
    return {
        "vae": AutoencoderConfig(
            block_out_channels=(8, 16, 16) if tiny else (32, 64, 80),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=64,
            scaling_factor=scaling_factor,
            force_upcast=False,
        ),
        "text_encoder": TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=1 if tiny else 4,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=width,
            bos_token_id=tokenizer.begin,
            eos_token_id=tokenizer.end,
            pad_token_id=tokenizer.end,
        ),
        "unet": UNetConditionConfig(
            sample_size=16,
            block_out_channels=(16, 32) if tiny else (80, 112),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=width,
            attention_head_dim=(2, 4),
        ),
    }


def fresh(given: dict[str, Any], seed: int) -> dict[str, nnx.State]:
    """New weights of each part, as the modules draw them, but on the host: a GPU would compile each draw."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, module in PARTS.items():
        shapes = nnx.state(nnx.eval_shape(lambda module=module, name=name: module(given[name], rngs=nnx.Rngs(0))))
        flat = [
            (path, v.replace(_weight(rng, name, path, v.get_value().shape))) for path, v in nnx.to_flat_state(shapes)
        ]
        found[name] = nnx.from_flat_state(flat)
    return found


def _weight(rng: np.random.Generator, part: str, path: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Zeros at the ends of branches, ones for norms, else variance 1 / fan_in."""
    words = tuple(map(str, path))
    ends = ("conv2", "proj_out") if part != "text_encoder" else ()
    last_of_all = part == "unet" and words[0] == "conv_out"
    rejoins = part == "vae" and "to_out" in words
    if words[-1] == "bias" or any(word in words for word in ends) or last_of_all or rejoins:
        return np.zeros(shape, np.float32)
    if words[-1] == "scale":
        return np.ones(shape, np.float32)
    fan_in = 1 if words[-1] == "embedding" else np.prod(shape[:-1])
    return rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(np.sqrt(3 / fan_in))


def definitions(given: dict[str, Any], dtype: Any) -> dict[str, nnx.GraphDef]:
    """What each part is apart from its weights, computing in a dtype."""
    found = {}
    for name, module in PARTS.items():
        abstract = nnx.eval_shape(lambda module=module, name=name: module(given[name], rngs=nnx.Rngs(0), dtype=dtype))
        found[name] = nnx.split(abstract)[0]
    return found


def save_pipeline(file: Path, given: dict[str, Any], params: dict[str, nnx.State], tokenizer: Tokenizer) -> None:
    """Write a tar of a folder, in float16, that `diffusers.StableDiffusionPipeline.from_pretrained` loads."""
    plain = definitions(given, jnp.float32)
    files: dict[str, bytes] = {}
    for name in PARTS:
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        tensors = file_tensors(nnx.merge(plain[name], params[name]))
        halves = {k: np.ascontiguousarray(v, np.float16) for k, v in tensors.items()}
        files[f"{name}/{stem}.safetensors"] = safetensors_bytes(halves, metadata={"format": "pt"})
        files[f"{name}/config.json"] = json.dumps(given[name].to_dict(), indent=2).encode()
    scheduler = {"_class_name": "TCDScheduler", **dataclasses.asdict(SCHEDULE)}
    files["scheduler/scheduler_config.json"] = json.dumps(scheduler, indent=2).encode()
    files["model_index.json"] = json.dumps(_INDEX, indent=2).encode()
    folder = file.with_suffix(".tokenizer")
    tokenizer.save(folder)
    for path in sorted(folder.iterdir()):
        files[f"tokenizer/{path.name}"] = path.read_bytes()
        path.unlink()
    folder.rmdir()
    draft = file.with_suffix(".draft")
    with tarfile.open(draft, "w") as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{file.stem}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    draft.replace(file)


_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "TCDScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
