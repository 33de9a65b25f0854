"""`--lora`, and `cmjax lora`, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import lora_files
import numpy as np
import pytest
from texts import text_model

import cmjax
from cmjax.cli import main
from cmjax.cli.parser import parse
from cmjax.cli.published import published_settings
from cmjax.io.safetensors_files import write_safetensors
from cmjax.text_to_image import Prompt


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two LoRAs, one of a published name."""
    home = tmp_path_factory.mktemp("loras")
    cmjax.text_to_image.save(text_model(), home / "model")
    for seed, name in enumerate(("style", "TCD-SD15-LoRA")):
        made = lora_files.make(text_model(), "kohya", seed=seed, alphas="all", one_in=3)
        write_safetensors(made.tensors, home / f"{name}.safetensors")
    return home


@pytest.mark.slow
def test_drawn_with_two_loras_in_published_settings(home: Path, tmp_path: Path, capsys) -> None:
    files = [home / "TCD-SD15-LoRA.safetensors", home / "style.safetensors"]
    argv = ["--lora", str(files[0]), "--lora", f"{files[1]}:0.6", "--prompt", "red fox", "--num", "1"]
    assert main(["sample", "--model", str(home / "model"), *argv, "--out", str(tmp_path / "a.npz")]) == 0
    assert "published settings of TCD-SD15-LoRA: tcd, 4 steps, eta 0.3" in " ".join(capsys.readouterr().out.split())
    pipe = cmjax.lora.merge(text_model(), [cmjax.lora.read(file) for file in files], [1.0, 0.6])
    keys = cmjax.image_keys(0, np.arange(1))
    state, prompt = cmjax.tcd.init(pipe.config, 4, eta=0.3), Prompt(pipe.tokenize(["red fox"]))
    by_hand = cmjax.text_to_image.draw_prompt(pipe, state, keys, pipe.latent_shape(1), prompt)
    drawn = np.load(tmp_path / "a.npz")["images"].astype(int)
    assert np.abs(drawn - cmjax.io.to_uint8(by_hand)).max() <= 1


def test_what_was_asked_for_goes_before_what_was_published() -> None:
    words = ["sample", "--prompt", "a", "--lora", "dmd2_sdxl_4step_lora_fp16.safetensors"]
    options, note = published_settings(parse(words))
    assert (options.sampler, options.timesteps, options.steps) == ("lcm", (999, 749, 499, 249), None)
    assert "published settings of DMD2 4 steps LoRA: lcm, 4 steps" in note
    options, _ = published_settings(parse([*words, "--steps", "3"]))
    assert (options.timesteps, options.sampler, options.steps) == (None, "lcm", 3)
    options, _ = published_settings(parse([*words, "--sampler", "ddim"]))
    assert (options.timesteps, options.sampler, options.eta, options.steps) == (None, "ddim", None, None)
    tcd = ["sample", "--prompt", "a", "--lora", "Hyper-SDXL-1step-lora.safetensors", "--eta", "0.5"]
    options, _ = published_settings(parse(tcd))
    assert (options.sampler, options.eta, options.steps) == ("tcd", 0.5, 1)
    options, note = published_settings(parse(["sample", "--prompt", "a", "--lora", "mine.safetensors"]))
    assert (options.steps, note) == (None, "")


@pytest.mark.slow
def test_inspect_says_what_a_file_is(home: Path, capsys) -> None:
    assert main(["lora", "inspect", str(home / "style.safetensors"), "--model", str(home / "model")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("LoRA", "unet", "text encoder", "float32", "all 21 modules"):
        assert words in said


@pytest.mark.slow
def test_merged_and_extracted_again(home: Path, tmp_path: Path, capsys) -> None:
    lora = f"{home / 'style.safetensors'}:0.5"
    assert main(["lora", "merge", str(home / "model"), str(tmp_path / "merged"), "--lora", lora]) == 0
    merged = cmjax.text_to_image.load(tmp_path / "merged")
    expected = cmjax.lora.merge(text_model(), cmjax.lora.read(home / "style.safetensors"), 0.5)
    for got, wanted in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)
    out = tmp_path / "again.safetensors"
    argv = ["lora", "extract", str(home / "model"), str(tmp_path / "merged"), str(out), "--dtype", "float32"]
    assert main(argv) == 0
    assert "100.0%" in capsys.readouterr().out
    again = cmjax.lora.merge(text_model(), cmjax.lora.read(out))
    for got, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6 * float(abs(wanted).max()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", "--prompt", "a", "--lora", "nowhere.safetensors"), "there is no LoRA nowhere"),
        (("sample", "--lora", "a.safetensors"), "--lora belongs to texts"),
        (
            ("sample", "--prompt", "a", "--model", "{}/model", "--lora", "{}/style.safetensors:nan"),
            "must have a finite scale",
        ),
        (("sample", "--prompt", "a", "--lora", "{}/style.safetensors"), "has no module for|do not fit"),
        (("lora", "inspect", "{}/model/unet/diffusion_pytorch_model.safetensors"), "holds no LoRA"),
        (("lora", "merge", "{}/model", "{}/model/model_index.json", "--lora", "{}/style.safetensors"), "is neither"),
        (("sample", "--prompt", "a", "--lora", ":0.5"), r"must be a FILE or FILE:SCALE"),
        (("sample", "--prompt", "a", "--lora", "a.safetensors:"), r"must be a FILE or FILE:SCALE"),
        (("sample", "--prompt", "a", "--model", "emoji-ink"), "is a LoRA, not a model"),
        (("inspect", "{}/style.safetensors"), "but a LoRA. Give it to --lora"),
        (("lora", "inspect", "{}"), "has 2 .safetensors files: give the path of one"),
        (("lora", "merge", "{}/model", "{}", "--lora", "{}/style.safetensors"), "holds other files than a model's"),
        (
            ("lora", "merge", "{}/model", "out", "--lora", "{}/style.safetensors:1e38", "--dtype", "float16"),
            "take smaller",
        ),
        (("lora", "extract", "{}/model", "{}/model", "out.bin"), r"must end in \.safetensors"),
        (("lora", "extract", "{}/model", "{}/model", "out.safetensors"), "must differ"),
    ],
)
def test_what_does_not_suit_is_one_sentence(words, said, home: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(home) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert not any(tmp_path.iterdir())
