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
import unets
from commands import complaint
from originals import tensors

import cmjax
from cmjax.cli import convert, main
from cmjax.io import other_folders
from cmjax.io.safetensors_files import read_safetensors
from cmjax.io.weights import file_tensors


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


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
    assert (model.config.sample_size, model.config.attention_head_dim) == (32, 32)
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
    assert loaded.model.config == checkpoint.model.config
    assert cmjax.io.label_names("new") == ("a", "b", "c")
    for name, value in file_tensors(checkpoint.model.module).items():
        np.testing.assert_array_equal(file_tensors(loaded.model.module)[name], value)
    assert len(jax.tree.leaves(loaded.model)) == len(file_tensors(checkpoint.model.module))


def test_a_folder_can_be_converted_in_place(capsys):
    bin_folder()
    assert main(["convert", "old", "old"]) == 0
    assert cmjax.load("old").config == cmjax.cm.CMConfig()
    assert os.path.exists("old/unet/diffusion_pytorch_model.bin")  # what else the folder holds is kept


DDPM = '{"_class_name": "DDPMScheduler",\n "num_train_timesteps": 1000, "trained_betas": null}\n'
INDEX = '{"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "_more": 1}'


def ddpm_folder(layout="unet", weights="bin"):
    """A folder whose scheduler is none of cmjax's, in parts or flat; and what it holds."""
    checkpoint = bin_folder()
    for name, text in (("scheduler/scheduler_config.json", DDPM), ("model_index.json", INDEX)):
        with open(f"old/{name}", "w") as file:
            file.write(text)
    if weights == "safetensors":
        held = file_tensors(checkpoint.model.module)
        cmjax.io.write_safetensors(held, "old/unet/diffusion_pytorch_model.safetensors")
        os.remove("old/unet/diffusion_pytorch_model.bin")
    if layout == "flat":
        for part in ("unet", "scheduler"):
            for name in os.listdir(f"old/{part}"):
                os.rename(f"old/{part}/{name}", f"old/{name}")
            os.rmdir(f"old/{part}")
    return checkpoint.model


def same(network, other):
    """Whether two networks have the same weights."""
    ours, theirs = file_tensors(network.module), file_tensors(other.module)
    return ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def text(path):
    with open(path) as file:
        return file.read()


@pytest.mark.parametrize(("layout", "weights"), [("unet", "bin"), ("unet", "safetensors"), ("flat", "bin")])
def test_a_network_of_another_sampler_becomes_a_folder_for_load_unet(layout, weights, capsys):
    network = ddpm_folder(layout, weights)
    assert main(["convert", "old", "new"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sampler none here for DDPMScheduler, whose config is kept as it is; cmjax.io.load_unet loads" in said
    assert said.endswith("try cmjax.io.load_unet('new') in Python")
    assert same(cmjax.io.load_unet("new"), network)
    assert text("new/scheduler/scheduler_config.json") == DDPM
    assert text("new/model_index.json") == INDEX
    assert sorted(os.listdir("new")) == ["labels.json", "model_index.json", "scheduler", "unet"]
    assert sorted(os.listdir("new/unet")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(os.listdir()) == ["new", "old"]
    assert main(["convert", "old", "new", "--dtype", "float16"]) == 0  # over the old one
    stored = read_safetensors("new/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {np.dtype("float16")}
    assert main(["convert", "old", "old"]) == 0  # and in place
    assert same(cmjax.io.load_unet("old"), network)


def test_a_network_of_another_sampler_without_an_index_gets_one(capsys):
    ddpm_folder()
    os.remove("old/model_index.json")
    assert main(["convert", "old", "new"]) == 0
    index = json.loads(text("new/model_index.json"))
    assert (index["_class_name"], index["scheduler"]) == ("DDPMPipeline", ["diffusers", "DDPMScheduler"])


def test_a_network_of_another_sampler_is_written_whole_or_not_at_all(capsys):
    ddpm_folder()
    cmjax.save(tiny.checkpoint(classes=2), "new", label_names=["x", "y"])
    os.remove("old/labels.json")
    assert "OUT: label_names must be 3 texts" in complaint(capsys, "convert", "old", "new")  # those of "new" would stay
    assert cmjax.load("new").model.config.num_class_embeds == 2
    os.remove("old/scheduler/scheduler_config.json")
    assert "old has no scheduler/scheduler_config.json" in complaint(capsys, "convert", "old", "out")


@pytest.mark.parametrize("make", [bin_folder, ddpm_folder])
def test_what_save_refuses_is_one_sentence(make, capsys, monkeypatch):
    def save(*args, **kwargs):
        raise ValueError("tensor conv_in.weight is too large for float16.")

    make()
    monkeypatch.setattr(cmjax, "save", save)
    monkeypatch.setattr(other_folders, "save", save)
    said = complaint(capsys, "convert", "old", "new", "--dtype", "float16")
    assert said == "cmjax convert: OUT: tensor conv_in.weight is too large for float16."


def test_a_flat_folder_of_a_sampler_of_ours_is_loaded_after(capsys):
    network = ddpm_folder("flat")
    cmjax.io.write_config(cmjax.tcd.TCDConfig(beta_end=0.01), "old/scheduler_config.json")
    assert main(["convert", "old", "new"]) == 0
    model, config = cmjax.load("new")
    assert config == cmjax.tcd.TCDConfig(beta_end=0.01)
    assert same(model, network)


def test_pickles_are_read_where_there_are_safetensors_of_a_variant_only(capsys):
    checkpoint = bin_folder()
    variant = "old/unet/diffusion_pytorch_model.fp16.safetensors"
    cmjax.io.write_safetensors({"large": np.zeros(1 << 20, np.float16)}, variant)
    assert main(["convert", "old", "old"]) == 0
    assert same(cmjax.load("old").model, checkpoint.model)
    written = os.path.getsize("old/unet/diffusion_pytorch_model.safetensors") / 2**20
    assert f"old: {written:.1f} MiB of float32" in capsys.readouterr().out  # and not the variant, which stays
    assert written < 1 and os.path.exists(variant)


def pieces():
    """A folder whose weights are two pieces and an index; the second holds an old copy of the first's tensors too."""
    checkpoint = bin_folder()
    os.remove("old/unet/diffusion_pytorch_model.bin")
    held = file_tensors(checkpoint.model.module)
    names, stem = sorted(held), "diffusion_pytorch_model"
    first, second = (f"{stem}-0000{i}-of-00002.bin" for i in (1, 2))
    torchfiles.write(f"old/unet/{first}", {name: held[name] for name in names[:9]})
    torchfiles.write(f"old/unet/{second}", {name: held[name] * (0 if name in names[:9] else 1) for name in names})
    index = {name: first if name in names[:9] else second for name in names}
    write_index(index)
    return checkpoint, index


def write_index(index):
    with open("old/unet/diffusion_pytorch_model.bin.index.json", "w") as file:
        json.dump({"metadata": {}, "weight_map": index}, file)


def test_weights_in_pieces_are_put_together(capsys):
    checkpoint, _ = pieces()
    assert main(["convert", "old", "new"]) == 0
    assert same(cmjax.load("new").model, checkpoint.model)


def test_an_index_that_lies(capsys):
    _, index = pieces()
    shutil.copy("old/unet/diffusion_pytorch_model-00001-of-00002.bin", "outside.bin")
    name, first = next(iter(index.items()))
    for change, message in (
        ({name: "../../outside.bin"}, "must hold a weight_map from tensors to the names of files beside it"),
        ({name: ".."}, "must hold a weight_map"),
        ({name: 3}, "must hold a weight_map"),
        ({name: "gone.bin"}, "there is no weights file old/unet/gone.bin"),
        ({"more.weight": first}, "lists tensors that are not in their files: more.weight."),
    ):
        write_index(index | change)
        assert message in complaint(capsys, "convert", "old", "new"), change
    write_index({})
    assert "must hold a weight_map" in complaint(capsys, "convert", "old", "new")


PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
PLAIN |= {"block_out_channels": (32, 64), "sample_size": 8}
K = {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2}


@pytest.mark.parametrize(
    ("options", "inside", "outside"),
    [
        ({}, "attention in the middle only, heads of 8", "pictures of 8 x 8 x 2 to 3, 5 classes, the time is added"),
        ({"mid_block_type": None}, "1 block a level, no attention", ""),
        ({"add_attention": False}, "1 block a level, no attention", ""),
        ({"attention_head_dim": None}, "attention in the middle only, one head", ""),
        (
            {"down_block_types": ("DownBlock2D", "UNetResAttnDownBlock2D"), "add_attention": False},
            "attention at 64 channels on the way down, heads of 8",
            "",
        ),
        (
            {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
            "attention at 64 channels on the way up and in the middle, heads of 8",
            "",
        ),
        (
            {
                "down_block_types": ("AttnDownBlock2D",) * 2,
                "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
                "mid_block_type": None,
            },
            "attention at 32 channels and at 64 channels on the way down, heads of 8",
            "",
        ),
        ({"sample_size": None, "num_class_embeds": None}, "", "pictures of any size, 2 to 3 channels, no classes"),
        ({"sample_size": (8, 16)}, "", "pictures of 8 x 16 x 2 to 3"),
        ({"class_embed_type": "identity"}, "", "the condition an embedding"),
        ({"class_embed_type": "timestep"}, "", "the class a number that is embedded as the time is"),
        ({"resnet_time_scale_shift": "scale_shift"}, "", "the time scales and shifts"),
        (K, "attention in the middle only, heads of 8", "the time scales and shifts, and is added in the middle"),
        (K | {"mid_block_type": None}, "no attention", "the time scales and shifts"),
    ],
)
def test_what_is_said_of_a_network_is_true(options, inside, outside):
    config = unets.config(**PLAIN | options)
    assert convert._inside(config).endswith(inside), convert._inside(config)
    assert outside in convert._outside(config)
    assert "None" not in convert._inside(config) + convert._outside(config)


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
        (
            ["m.pt", "out", "--head-dim", "48"],
            "m.pt: --head-dim = 48 does not divide the 64 channels that attention has",
        ),
        (
            ["evil.pt", "out"],
            "evil.pt: the file asks for os.system, which is not part of a tensor; nothing",
        ),
        (["other.pt", "out"], "other.pt: it has no input_blocks.0.0.weight, so it is not a UNetModel; it holds w"),
        (["empty.pt", "out"], "empty.pt is empty."),
        (["full", "out"], "full has no scheduler/scheduler_config.json"),
        (["old/unet/diffusion_pytorch_model.bin", "out"], "a config.json beside the file says; give its folder"),
        (["bad", "out"], "bad/unet/diffusion_pytorch_model.bin: the file asks for os.system"),
        (["bare", "out"], "the network has no weights"),
        (
            ["m.pt", "out", "--num-train-timesteps", "1000001"],
            ": --num-train-timesteps must be a whole number from 1 to",
        ),
        (["old", "out", "--head-dim", "8"], "--head-dim is for a .pt file; old has it in its configs."),
        (["m.pt", "out", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["m.pt"], "the following arguments are required: OUT"),
    ):
        assert message in complaint(capsys, "convert", *argv), argv
    assert not os.path.exists("canary")
    with open("old/unet/config.json") as file:
        network = json.load(file)
    with open("old/unet/config.json", "w") as file:
        json.dump(network | {"block_out_channels": [16]}, file)
    assert "the wrong shape" in complaint(capsys, "convert", "old", "out")


def test_help_teaches(capsys):
    assert main(["convert", "--help"]) == 0
    said = capsys.readouterr().out
    assert "cmjax convert cd_imagenet64_l2.pt cd-imagenet64" in said
    assert "--num-train-timesteps N" in said
