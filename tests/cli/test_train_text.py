"""`cmjax train --model`: from captioned pictures to a LoRA that `cmjax sample` draws with, and its complaints."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import complaint
from PIL import Image
from texts import text_model

import cmjax
from cmjax.cli import main, train_text
from cmjax.io.images import write_png

RUN = ["--model", "base", "--data", "data", "--out", "run"]
TINY = ["tiny.toml", "--steps", "4", "--batch", "2", "--checkpoint-every", "2"]
RECIPE = """
method = "tcd"
ema_decays = [0.9]
[tcd]
guidance_range = [2, 5]
decay = 0.0
[lora]
rank = 2
targets = ["attn2.to_k", "conv1"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model's folder, captioned pictures and a recipe."""
    folder = tmp_path_factory.mktemp("made")
    cmjax.text_to_image.save(text_model(), folder / "base")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for i in range(4):
        write_png(rng.integers(0, 256, (8, 8, 3), np.uint8), folder / f"data/{i}.png")
        (folder / f"data/{i}.txt").write_text(f"fox {'abcd'[i]}\n")
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, made):
    """Each test in a folder of its own, with links to what all share; no pictures of curves, which take longest."""
    for name in ("base", "data", "tiny.toml"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_text, "draw_curves", lambda out: None)


def weights(run="run"):
    """The numbers of the LoRA, bit for bit; the texts in the file's header have no order."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(cmjax.lora.read(f"{run}/model").factors)]


@pytest.mark.slow
def test_from_captioned_pictures_to_a_lora_that_draws(capsys, monkeypatch):
    stopped_at(2, monkeypatch)
    first = weights()
    assert main(["train", *RUN, "--resume"]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "4 pictures with captions, LoRA(" in said and "cmjax sample --model base --lora run/model" in said
    assert sorted(os.listdir("run")) == ["checkpoints", "log.jsonl", "model", "run.json", "samples"]
    assert sorted(os.listdir("run/samples")) == ["0000002.png", "0000004.png"]
    assert Image.open("run/samples/0000004.png").mode == "RGB" and weights() != first
    lora = cmjax.lora.read("run/model")
    names = cmjax.models.lora.kernels(text_model().unet)
    wanted = {f"unet.{name}" for name in names if name.endswith((".conv1", "attn2.to_k"))}
    assert lora.ranks == (2,) and cmjax.lora.resolve(lora, text_model()).factors.keys() == wanted
    assert cmjax.lora.recommended(lora).settings == "tcd, 4 steps, eta 0.3, no guidance"
    card = Path("run/model/README.md").read_text()
    assert "base_model: base" in card and "guidance of the teacher between 2 and 5" in card
    argv = ["--model", "base", "--lora", "run/model", "--prompt", "fox a", "--num", "1", "--out", "drawn.npz"]
    assert main(["sample", *argv]) == 0
    assert "tcd, 4 steps, eta 0.3" in capsys.readouterr().out.replace("\n", " ")
    assert np.load("drawn.npz")["images"].shape == (1, 8, 8, 3)

    resume = [*RUN, "--resume"]
    for options, message in (
        (["--steps", "6"], "the run to resume has recipe steps = 4, not 6: give what the run began with"),
        (["--rank", "1"], "the run to resume has lora rank = 2, not 1"),
        (["--dtype", "bfloat16"], "the run to resume has dtype = float32, not bfloat16"),
        (["lcd-lora"], "--resume: the run to resume has recipe method = tcd, not lcd"),
    ):
        assert message in complaint(capsys, "train", *options, *resume)
    os.unlink("data")
    os.mkdir("data")
    for i in range(4):
        write_png(np.zeros((8, 8, 3), np.uint8), f"data/{i}.png")
        with open(f"data/{i}.txt", "w") as file:
            file.write("fox")
    assert "the run to resume has other pictures or captions" in complaint(capsys, "train", *resume)


def stopped_at(step, monkeypatch):
    """A run that is interrupted after what it wrote at a step."""
    write = train_text._CheckpointWriter.__call__

    def stop(self, state):
        write(self, state)
        if int(state.step) == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_text._CheckpointWriter, "__call__", stop)
        assert main(["train", *TINY, *RUN]) == 130


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(monkeypatch):
    assert main(["train", *TINY, "--model", "base", "--data", "data", "--out", "whole"]) == 0
    stopped_at(2, monkeypatch)
    assert main(["train", *RUN, "--resume"]) == 0
    assert weights() == weights("whole")


@pytest.mark.slow
def test_a_run_may_start_from_a_lora_or_train_the_whole_network(capsys):
    lora = cmjax.lora.new(text_model().unet, 3, targets=["conv2"])
    cmjax.lora.write(jax.tree.map(lambda leaf: leaf + 0.01, lora), "first.safetensors")
    assert main(["train", *TINY, *RUN, "--lora", "first.safetensors"]) == 0
    assert cmjax.lora.read("run/model").ranks == (3,)
    whole = ["vp", "--steps", "2", "--batch", "2", "--model", "base", "--data", "data", "--out", "full"]
    with open("vp.toml", "w") as file:
        file.write('method = "vp"\n[vp]\nlabel_dropout = 0.2\nnoise_offset = 0.1\n')
    assert main(["train", "vp.toml", *whole[1:]]) == 0
    assert cmjax.text_to_image.load("full/model").unet.config == text_model().unet.config
    with open("lcd.toml", "w") as file:
        file.write('method = "lcd"\n[lcd]\nguidance_range = [2, 9]\ntell_guidance = true\n')
    assert main(["train", "lcd.toml", *whole[1:-1], "told"]) == 0
    made = cmjax.text_to_image.load("told/model")
    assert made.unet.config.time_cond_proj_dim == 256 and made.pipeline == "LatentConsistencyModelPipeline"


@pytest.mark.slow
def test_continuous_time_makes_a_lora_or_a_network_that_lcm_draws_with():
    with open("scd.toml", "w") as file:
        file.write(RECIPE.replace('"tcd"', '"scd"').replace("[tcd]", "[scd]").replace("decay = 0.0\n", ""))
    argv = ["--steps", "2", "--batch", "2", "--model", "base", "--data", "data"]
    assert main(["train", "scd.toml", *argv, "--out", "run"]) == 0
    lora = cmjax.lora.read("run/model")
    assert cmjax.lora.recommended(lora).settings == "lcm, 4 steps, no guidance"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lora.factors))
    assert main(["train", "scd", *argv, "--out", "full"]) == 0
    assert isinstance(cmjax.text_to_image.load("full/model").config, cmjax.lcm.LCMConfig)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(capsys, made):
    lacking = os.path.join(os.getcwd(), "lacking")
    os.mkdir(lacking)
    for i in range(3):
        write_png(np.zeros((8, 8, 3), np.uint8), f"{lacking}/{i}.png")
    with open(f"{lacking}/0.txt", "w") as file:
        file.write("fox")
    with open("other.toml", "w") as file:
        file.write(RECIPE.replace("rank = 2", "wide = 2"))
    for argv, message in (
        (
            ["tcd-lora", "--data", "data", "--out", "run"],
            "tcd-lora trains a LoRA of a text-to-image model: give --model",
        ),
        (
            ["ect", "--rank", "2", "--data", "data", "--out", "run"],
            "--rank belongs to a text-to-image model: give --model",
        ),
        ([*TINY, *RUN, "--model", "fashion-mnist-tcd"], "fashion-mnist-tcd is no text-to-image model"),
        ([*TINY, *RUN, "--data", lacking], "must hold a caption for each picture, but 2 of 3 lack one"),
        ([*TINY, *RUN, "--rank", "99"], "--rank must be at most 8, the width of unet."),
        ([*TINY, *RUN, "--batch", "5"], "--batch: a batch of 5 needs more pictures than the 4 in the data"),
        ([*TINY, *RUN, "--teacher", "base"], "--teacher: the teacher is --model itself; leave it out"),
        (["tcd", *RUN, "--rank", "2"], "tcd trains the whole network: give a recipe with [lora]"),
        (["ect", *RUN], "ect is for models of noise levels, and text-to-image models have timesteps"),
        (["other.toml", *RUN], r"other.toml [lora] has unknown names: wide"),
        (["vp", *RUN], "vp must have no [scheduler]: that of --model counts"),
        ([*TINY, *RUN, "--resume"], "--resume: there is no checkpoint to continue from in run"),
    ):
        assert message in complaint(capsys, "train", *argv), argv
    assert not os.path.exists("run")
    for text in ("7", "[]", '{"sampler": "magic"}', '{"steps": 0}', '{"timesteps": ["a"]}'):
        lora = cmjax.lora.LoRA({}, (("cmjax.recommended", text),))
        with pytest.raises(ValueError, match=r"header must hold settings as cmjax\.recommended, a JSON object, got"):
            cmjax.lora.recommended(lora)
    assert cmjax.lora.recommended(cmjax.lora.LoRA({})) is None
    json.loads(dict(cmjax.lora.recommend(cmjax.published.PUBLISHED[0]))["cmjax.recommended"])
