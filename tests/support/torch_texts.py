"""Tiny text-to-image pipelines of diffusers, and how they are made to draw what cmjax draws.

A pipeline of the reference draws noise in three places: at the start, between steps, and of an autoencoder's posterior.
`Drawn` hands it the noise that cmjax draws of a key, and gives the posterior's mean for a sample.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from texts import LENGTH, tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

__all__ = ["CLASSES", "Drawn", "draws", "raw", "save", "scheduler"]

WIDTH, FACTOR, SAMPLE = 8, 8, 4
COMMON = {
    "sample_size": SAMPLE,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": (8, 8),
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
XL = {
    "cross_attention_dim": 2 * WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
}
CLASSES = {False: diffusers.StableDiffusionPipeline, True: diffusers.StableDiffusionXLPipeline}
_DRAWING = (
    "schedulers.scheduling_tcd",
    "schedulers.scheduling_lcm",
    "schedulers.scheduling_ddim",
    "schedulers.scheduling_euler_discrete",
    "schedulers.scheduling_euler_ancestral_discrete",
    "schedulers.scheduling_dpmsolver_multistep",
    "pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
    "pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint",
    "pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img",
    "pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint",
    "pipelines.latent_consistency_models.pipeline_latent_consistency_img2img",
)


def _shaken(network: Any, seed: int, size: float = 0.1) -> Any:
    """Move every weight, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def _encoder(seed: int, *, projection: bool) -> Any:
    words = len(tokenizer())
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        hidden_act="gelu" if projection else "quick_gelu",
        projection_dim=WIDTH,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return _shaken(kind(config), seed, 0.3)


def scheduler(name: str, **options: Any) -> Any:
    """Make a scheduler as the published folders have it: "TCDScheduler" or "LCMScheduler"."""
    return getattr(diffusers, name)(**{"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False} | options)


def save(folder: Path, *, xl: bool, kind: Any = None, refiner: bool = False, **unet: Any) -> Path:
    """Write a pipeline of the reference with random weights.

    Args:
        folder: where.
        xl: like Stable Diffusion XL, else like Stable Diffusion 1.
        kind: the class of the pipeline; None for text to image.
        refiner: with the second text encoder alone, five sizes, and no zeros for no text.
        **unet: options of the network.
    """
    torch.manual_seed(0)
    options = COMMON | (XL if xl else {})
    if refiner:
        options |= {"cross_attention_dim": WIDTH, "projection_class_embeddings_input_dim": WIDTH + 5 * 4}
    levels = 4
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SAMPLE * FACTOR,
        scaling_factor=0.13025 if xl else 0.18215,
    )
    for i, one in enumerate([tokenizer(), tokenizer("!")]):
        (folder.parent / f"words{i}").mkdir(exist_ok=True)
        one.write(folder.parent / f"words{i}")
    words = [transformers.CLIPTokenizer.from_pretrained(folder.parent / f"words{i}") for i in range(2)]
    parts = {
        "unet": _shaken(diffusers.UNet2DConditionModel(**options | unet), 1),
        "vae": _shaken(vae, 2),
        "scheduler": scheduler("TCDScheduler"),
        "text_encoder": None if refiner else _encoder(3, projection=False),
        "tokenizer": None if refiner else words[0],
    }
    if xl:
        parts |= {"text_encoder_2": _encoder(4, projection=True), "tokenizer_2": words[1]}
        parts |= {"force_zeros_for_empty_prompt": not refiner}
        parts |= {"requires_aesthetics_score": True} if refiner else {}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    (kind or CLASSES[xl])(**parts).save_pretrained(folder)
    return folder


def raw(pipe: Any) -> Any:
    """Let a pipeline return pictures as its decoder makes them, neither cut to [0, 1] nor rounded."""
    pipe.set_progress_bar_config(disable=True)
    pipe.image_processor.postprocess = lambda image, **_: image
    return pipe


def draws(key: jax.Array, num_steps: int, shape: tuple[int, ...]) -> list[Any]:
    """What `draw` and `redraw` draw of a key: the noise of the start, and that of each step, as f[B, C, h, w]."""
    start, steps = jax.random.split(key)
    keys = [start, *jax.random.split(steps, num_steps)]
    noise = [np.asarray(jax.random.normal(key, shape)) for key in keys]
    return [torch.from_numpy(np.ascontiguousarray(z.transpose(0, 3, 1, 2))) for z in noise]


class Drawn:
    """Injects noise into the reference: every draw of a generator is the next of `left`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.left: list[Any] = []
        for name in _DRAWING:
            module = importlib.import_module(f"diffusers.{name}")
            monkeypatch.setattr(module, "randn_tensor", self._next)
        posterior = importlib.import_module("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution
        monkeypatch.setattr(posterior, "sample", lambda distribution, *_: distribution.mode())

    def _next(self, shape: Any, *_: Any, **__: Any) -> Any:
        drawn = self.left.pop(0)
        assert tuple(shape) == tuple(drawn.shape)
        return drawn.clone()
