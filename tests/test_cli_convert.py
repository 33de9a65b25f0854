"""`cmjax convert`, from files of both layouts to a folder that loads, and its complaints."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
import tiny
import torchfiles
from originals import tensors

import cmjax
from cmjax.cli import main
from cmjax.io.tensors import read_safetensors
from cmjax.io.weights import unet_tensors


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def complaint(capsys, *argv):
    """The one sentence on standard error of a command that must fail with status 2 and leave nothing behind."""
    before = sorted(os.listdir())
    assert main(["convert", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(os.listdir()) == before
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def bin_folder(path="old", classes=3):
    """A folder as diffusers wrote them before safetensors."""
    checkpoint = tiny.checkpoint(classes=classes)
    cmjax.save(checkpoint, path, label_names=["a", "b", "c"])
    weights = f"{path}/unet/diffusion_pytorch_model"
    torchfiles.write(f"{weights}.bin", read_safetensors(f"{weights}.safetensors"))
    os.remove(f"{weights}.safetensors")
    return checkpoint


def test_an_original_file_becomes_a_folder(capsys):
    torchfiles.write("cd_imagenet64_l2.pt", tensors())
    assert main(["convert", "cd_imagenet64_l2.pt", "out", "--head-dim", "16"]) == 0
    captured = capsys.readouterr()
    said = " ".join(captured.out.split())
    parameters = sum(value.size for value in tensors().values())
    for pattern in (
        rf"^read cd_imagenet64_l2\.pt: {parameters:,} parameters",
        r"network 32, 64 channels, 1 block a level, attention at 64 channels and in the middle, heads of 16",
        r"pictures of 64 x 64 x 3, 5 classes, the time scales and shifts",
        r"N = 40 \(as published\)",
        r"written out: \d+\.\d MiB of float32",
        r"try cmjax sample --model out --timesteps 22 0$",
    ):
        assert re.search(pattern, said), (pattern, said)
    model, config = cmjax.load("out")
    assert config == cmjax.cm.CMConfig()
    np.testing.assert_array_equal(model.module.conv_in.bias[...], tensors()["input_blocks.0.0.bias"])
    assert sorted(os.listdir("out")) == ["model_index.json", "scheduler", "unet"]


def test_what_a_file_does_not_say_is_given_or_a_default(capsys):
    torchfiles.write("model000100.pt", tensors())
    assert main(["convert", "model000100.pt", "out", "--head-dim", "16"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "N = 40 (the default, as of distilled models: for another, --num-train-timesteps)" in said
    assert said.endswith("try cmjax sample --model out")
    options = ["--head-dim", "32", "--num-train-timesteps", "18", "--sample-size", "32", "--dtype", "float16"]
    assert main(["convert", "model000100.pt", "out", *options]) == 0  # over the old one
    said = " ".join(capsys.readouterr().out.split())
    assert "N = 18 (as given)" in said
    assert "of float16" in said
    model, config = cmjax.load("out")
    assert config.num_train_timesteps == 18
    assert (model.module.config.sample_size, model.module.config.attention_head_dim) == (32, 32)
    stored = read_safetensors("out/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {np.dtype("float16")}


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_a_folder_of_diffusers_becomes_safetensors(weights, capsys):
    checkpoint = bin_folder()
    if weights == "safetensors":
        cmjax.save(checkpoint, "old")
    assert main(["convert", "old", "new"]) == 0
    assert "N = 40 (as its folder says)" in capsys.readouterr().out.replace("\n         ", " ")
    loaded = cmjax.load("new")
    assert loaded.model.module.config == checkpoint.model.module.config
    assert cmjax.io.label_names("new") == ("a", "b", "c")
    for name, value in unet_tensors(checkpoint.model.module).items():
        np.testing.assert_array_equal(unet_tensors(loaded.model.module)[name], value)
    assert len(jax.tree.leaves(loaded.model)) == len(unet_tensors(checkpoint.model.module))


def test_a_folder_can_be_converted_in_place(capsys):
    bin_folder()
    assert main(["convert", "old", "old"]) == 0
    assert cmjax.load("old").config == cmjax.cm.CMConfig()
    assert os.path.exists("old/unet/diffusion_pytorch_model.bin")  # what else the folder holds is kept


def test_mistakes_are_one_sentence_and_nothing_is_written(capsys):
    torchfiles.write("m.pt", tensors())
    torchfiles.write("evil.pt", b"cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.")
    torchfiles.write("other.pt", {"w": np.zeros(3, np.float32)})
    open("empty.pt", "w").close()
    os.mkdir("full")
    open("full/notes.txt", "w").close()
    bin_folder()
    shutil.copytree("old", "bad")
    torchfiles.write("bad/unet/diffusion_pytorch_model.bin", b"cos\nsystem\n.")
    shutil.copytree("old", "bare")
    os.remove("bare/unet/diffusion_pytorch_model.bin")
    for argv, message in (
        (["no.pt", "out"], "there is no weights file no.pt."),
        (["m.pt", "missing/out"], "OUT: cannot write missing/out: the folder missing does not exist."),
        (["m.pt", "full"], "OUT: full holds other files than a model's; choose a new or empty folder."),
        (["m.pt", "other.pt"], "OUT: other.pt is a file, not a folder."),
        (["m.pt", "out", "--head-dim", "48"], "m.pt: head_dim = 48 does not divide the 64 channels that attention has"),
        (
            ["evil.pt", "out"],
            "evil.pt: the file asks for os.system, which is no part of a tensor; nothing",
        ),
        (["other.pt", "out"], "other.pt: it has no input_blocks.0.0.weight, so it is no UNetModel; it holds w"),
        (["empty.pt", "out"], "empty.pt is empty."),
        (["full", "out"], "full has no"),
        (["bad", "out"], "bad/unet/diffusion_pytorch_model.bin: the file asks for os.system"),
        (["bare", "out"], "the network has no weights"),
        (["old", "out", "--head-dim", "8"], "--head-dim is for a .pt file; old says it itself in its configs."),
        (["m.pt", "out", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["m.pt"], "the following arguments are required: OUT"),
    ):
        assert message in complaint(capsys, *argv), argv
    assert not os.path.exists("canary")
    with open("old/unet/config.json") as file:
        network = json.load(file)
    with open("old/unet/config.json", "w") as file:
        json.dump(network | {"block_out_channels": [16]}, file)
    assert "the wrong shape" in complaint(capsys, "old", "out")


def test_help_teaches(capsys):
    assert main(["convert", "--help"]) == 0
    said = capsys.readouterr().out
    assert "cmjax convert cd_imagenet64_l2.pt cd-imagenet64" in said
    assert "--num-train-timesteps N" in said
