"""Files in one piece on the command line: convert, inspect, and what takes parts from elsewhere."""

import os
import re

import numpy as np
import pytest
from commands import complaint
from single_files import model, use_tiny_kinds

import cmjax
from cmjax.cli import main
from cmjax.text_to_image.opening import open_source

SD, XL = "bk-sdm-tiny", "stable-diffusion-xl-base-1.0"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own, with a file and a folder of one model."""
    monkeypatch.chdir(tmp_path)
    use_tiny_kinds(monkeypatch)
    model(SD).file("model.safetensors")
    cmjax.text_to_image.convert("model.safetensors", "folder", tokenizer=str(model(SD).folder(tmp_path / "words")))


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_file_becomes_a_folder_and_a_file_again(capsys):
    assert main(["convert", "model.safetensors", "out", "--tokenizer", "words"]) == 0
    shown = said(capsys)
    assert re.search(r"read model.safetensors: Stable Diffusion 1, BK-SDM tiny, [\d,]+ parameters predicts eps", shown)
    assert re.search(r"written out: \d+\.\d MiB try cmjax sample --model out --prompt TEXT$", shown)
    assert sorted(os.listdir("out")) == ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert main(["convert", "out", "again.safetensors", "--dtype", "float16"]) == 0
    again, first = open_source("again.safetensors"), open_source("model.safetensors")
    for part in first.parts:
        for name, value in first.parts[part].tensors.items():
            np.testing.assert_array_equal(again.parts[part].tensors[name], value.astype(np.float16))
    capsys.readouterr()
    assert "--head-dim is for a .pt" in complaint(capsys, "convert", "model.safetensors", "out", "--head-dim", "3")
    assert "is for models of texts" in complaint(capsys, "convert", "fashion-mnist-cm", "out", "--vae", "folder")


@pytest.mark.slow
def test_inspect_says_what_a_file_is(capsys):
    assert main(["inspect", "model.safetensors"]) == 0
    shown = said(capsys)
    for word in (
        "model.safetensors (Stable Diffusion 1, BK-SDM tiny)",
        "text encoder 1",
        "float32",
        "DDIMScheduler",
        "25 steps",
    ):
        assert word in shown, word
    model(XL).file("unet.safetensors", "unet", **{"model_ema.decay": np.zeros(1, np.float32)})
    assert main(["inspect", "unet.safetensors"]) == 0
    shown = said(capsys)
    assert "(Stable Diffusion XL)" in shown and shown.count("not here: --base") == 3
    assert "--ema takes them" in shown and "told the size and crop" in shown
    other = {"double_blocks.0.img_attn.qkv.weight": np.zeros((2, 2), np.float32)}
    cmjax.io.write_safetensors(other, "flux.safetensors")
    assert "it holds no UNetModel, but Flux" in complaint(capsys, "inspect", "flux.safetensors")
    model(XL).file("vae.safetensors", "vae")
    assert "an autoencoder alone: load it with" in complaint(capsys, "inspect", "vae.safetensors")
    assert "no averages of its weights" in complaint(capsys, "inspect", "unet.safetensors", "--ema")


def test_parts_belong_to_texts(capsys):
    assert "--vae belongs to texts: give --prompt too" in complaint(capsys, "sample", "--vae", "folder")
    assert "--vae is for models of texts" in complaint(capsys, "inspect", "--vae", "folder")
    assert "--ema is for models of texts" in complaint(capsys, "export", "fashion-mnist-cm", "out", "--ema")
    words = ["sample", "--prompt", "a", "--out", "x.png", "--model"]
    assert "base is for files in one piece" in complaint(capsys, *words, "folder", "--base", "folder")
    assert "has no averages of its weights" in complaint(capsys, *words, "model.safetensors", "--ema")
    two = ["--text-encoder", "folder", "--text-encoder", "folder"]
    assert "text_encoders must be at most 1" in complaint(capsys, *words, "folder", *two)


@pytest.mark.slow
def test_a_file_draws_what_its_folder_draws():
    words = ["--prompt", "red fox", "--num", "1", "--steps", "1", "--size", "64"]
    files = ["--model", "model.safetensors", "--tokenizer", "words", "--vae", "folder", "--text-encoder", "folder"]
    assert main(["sample", "--model", "folder", *words, "--out", "a.npz"]) == 0
    assert main(["sample", *files, *words, "--out", "b.npz"]) == 0
    np.testing.assert_array_equal(np.load("a.npz")["images"], np.load("b.npz")["images"])
    shards = ["sample", "--model", "model.safetensors", *words, "--shard-size", "1", "--out", "shards"]
    assert main([*shards, "--tokenizer", "words"]) == 0
    assert main([*shards, "--base", "folder"]) == 2  # another run
