"""A LoRA's file as `cmjax train` writes it: diffusers loads all of it, and draws the pictures that cmjax draws."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import cmjax
from cmjax.cli import main, train_text, training_run
from cmjax.io.images import write_png
from cmjax.models import combine, partition

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
tiny = pytest.importorskip("torch_texts")

KEY, PROMPTS = jax.random.key(3), ["red fox", "blue fox blue"]


def moved(model: Any, *_: Any, on_checkpoint: Any, **__: Any) -> None:
    """What stands for training: every trained number is moved, and the checkpoint is written."""
    rng = np.random.default_rng(0)
    trained, frozen = partition(model)
    trained = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), trained)
    on_checkpoint(SimpleNamespace(step=7, ema=combine(trained, frozen)))


@pytest.mark.slow
def test_diffusers_draws_with_a_file_of_cmjax_train_what_cmjax_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.save(tmp_path / "base", xl=False)
    (tmp_path / "data").mkdir()
    for i in range(2):
        write_png(np.full((32, 32, 3), 90 * i, np.uint8), tmp_path / f"data/{i}.png")
        (tmp_path / f"data/{i}.txt").write_text("red fox\n")
    monkeypatch.setattr(training_run.training, "train", moved)
    monkeypatch.setattr(train_text, "draw_curves", lambda out: None)
    monkeypatch.setattr(train_text.cmjax.text_to_image, "draw", lambda *_, **__: np.zeros((4, 32, 32, 3), np.float32))
    argv = ["tcd-lora", "--model", base, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    assert main(["train", *map(str, argv), "--rank", "2", "--batch", "2", "--no-compile-cache"]) == 0
    monkeypatch.undo()

    drawn = tiny.Drawn(monkeypatch)
    theirs = tiny.raw(diffusers.StableDiffusionPipeline.from_pretrained(base, low_cpu_mem_usage=False))
    theirs.load_lora_weights(tmp_path / "run" / "model")
    theirs.scheduler = diffusers.TCDScheduler.from_config(theirs.scheduler.config)
    theirs.to(torch.float32)
    lora = cmjax.lora.read(tmp_path / "run" / "model")
    assert sum("lora_A" in name for name, _ in theirs.unet.named_parameters()) == len(lora.factors) > 20
    pipe = cmjax.text_to_image.load(base)

    def ours(pipe: Any) -> np.ndarray:
        cond = pipe.encode(pipe.tokenize(PROMPTS))
        return np.asarray(cmjax.text_to_image.draw(pipe, cmjax.tcd.init(pipe.config, 4, eta=0.3), KEY, cond))

    noise = tiny.draws(KEY, 4, pipe.latent_shape(2))
    drawn.left = noise[1:]
    options = {"num_inference_steps": 4, "guidance_scale": 0, "eta": 0.3, "output_type": "pt"}
    images = theirs(PROMPTS, latents=noise[0].clone(), **options).images.permute(0, 2, 3, 1).numpy()
    with_lora = ours(cmjax.lora.attach(pipe, lora))
    assert np.abs(with_lora - images).max() < 1e-3
    assert np.abs(with_lora - ours(pipe)).max() > 0.05
