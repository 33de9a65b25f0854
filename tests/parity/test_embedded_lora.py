"""The LoRA inside the package: diffusers draws the same pictures with the same two folders."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import cmjax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
tiny = pytest.importorskip("torch_texts")

PRETRAINED = Path(cmjax.__file__).parent / "pretrained"
KEY, PROMPTS = jax.random.key(3), ["a fox on a green background", "two owls"]


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_diffusers_draws_the_same_pictures(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = tiny.Drawn(monkeypatch)
    theirs = tiny.raw(diffusers.DiffusionPipeline.from_pretrained(PRETRAINED / "emoji", low_cpu_mem_usage=False))
    theirs.load_lora_weights(PRETRAINED / "emoji-ink")
    theirs.to(torch.float32)
    theirs.set_adapters(theirs.get_active_adapters(), [scale])
    pipe = cmjax.lora.attach(cmjax.text_to_image.load("emoji"), cmjax.lora.read("emoji-ink"), scale)
    state, cond = cmjax.tcd.init(pipe.config, 4, eta=0.3), pipe.encode(pipe.tokenize(PROMPTS))
    ours = cmjax.text_to_image.draw(pipe, state, KEY, cond)
    noise = tiny.draws(KEY, 4, pipe.latent_shape(2))
    drawn.left = noise[1:]
    options = {"num_inference_steps": 4, "guidance_scale": 0.0, "eta": 0.3, "output_type": "pt"}
    images = theirs(PROMPTS, latents=noise[0].clone(), **options).images.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.asarray(ours) - images).max() < 1e-3
    colour = np.abs(np.asarray(ours) - np.asarray(ours).mean(-1, keepdims=True)).mean()
    assert (colour < 0.06) if scale else (colour > 0.15)
