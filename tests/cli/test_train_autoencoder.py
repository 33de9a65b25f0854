"""`cmjax train autoencoder`: a run and its folder, resume to the same bits, and its complaints."""

import json
import os

import jax
import numpy as np
import pytest
from commands import complaint
from PIL import Image

import cmjax
from cmjax.cli import main, parse, train_autoencoder

NETWORK = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}
RUN = ["--data", "data.npz", "--out", "run"]
TINY = ["autoencoder", "--steps", "4", "--batch", "4", "--network", "network.json", "--checkpoint-every", "2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in a folder of its own, with pictures and a network."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(20) % 2)
    with open("network.json", "w") as file:
        json.dump(NETWORK, file)


def weights(run):
    with open(f"{run}/model/diffusion_pytorch_model.safetensors", "rb") as file:
        return file.read()


@pytest.mark.slow
def test_a_run_and_its_folder(monkeypatch, capsys):
    monkeypatch.setattr(train_autoencoder, "draw_curves", lambda out: None)  # matplotlib takes longer than all else
    assert main(["train", *TINY, *RUN, "--steps", "2"]) == 0
    assert "the autoencoder is in run/model" in capsys.readouterr().out.replace("\n", " ")
    assert sorted(os.listdir("run")) == ["checkpoints", "log.jsonl", "model", "run.json", "samples"]
    assert os.listdir("run/samples") == ["0000002.png"]
    assert sorted(os.listdir("run/model")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert Image.open("run/samples/0000002.png").mode == "RGB"

    coder = cmjax.text_to_image.load_autoencoder("run/model")
    images = np.load("data.npz")["images"].astype(np.float32) / 127.5 - 1
    encode = jax.jit(lambda network, x: network.module.encode(x))
    mean, log_variance = encode(coder.network, images[:16])  # as many as are measured of these
    spread = np.sqrt(np.square(mean).mean() - np.mean(mean) ** 2 + np.exp(log_variance).mean())
    assert coder.config.scaling_factor == pytest.approx(1 / float(spread), rel=1e-3)

    resume = [*RUN, "--resume"]
    for options, message in (
        (["--steps", "6"], "the run to resume has steps = 2, not 6: give --data, --out and --resume alone"),
        (["--channels", "8"], "the run to resume has block_out_channels = [4], not [8]"),
        (["--dtype", "bfloat16"], "the run to resume has dtype = float32, not bfloat16"),
        (["ect"], "the run to resume has method = autoencoder, not ect"),
    ):
        assert message in complaint(capsys, "train", *options, *resume)
    assert "already holds a run; add --resume" in complaint(capsys, "train", *TINY, *RUN)
    np.savez("data.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    assert "--resume: the run had other data" in complaint(capsys, "train", *resume)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(monkeypatch):
    assert main(["train", *TINY, *RUN]) == 0

    def stop(self, state):
        keep(self, state)
        if int(state.step) == 2:
            raise KeyboardInterrupt

    keep = train_autoencoder._CheckpointWriter.__call__
    with monkeypatch.context() as patch:
        patch.setattr(train_autoencoder._CheckpointWriter, "__call__", stop)
        assert main(["train", *TINY, "--data", "data.npz", "--out", "parts"]) == 130
    assert main(["train", "--data", "data.npz", "--out", "parts", "--resume", "--checkpoint-every", "2"]) == 0
    assert weights("parts") == weights("run")


def test_options_without_a_meaning_are_refused(capsys):
    os.makedirs("used/model")
    open("used/model/notes.txt", "w").close()
    with open("noisy.toml", "w") as file:
        file.write('method = "autoencoder"\n[scheduler]\n_class_name = "TCDScheduler"\n')
    for argv, message in (
        ([*TINY, *RUN, "--teacher", "m"], "--teacher: an autoencoder has no teacher; leave it out"),
        (["autoencoder", *RUN, "--init", "m"], "--init: an autoencoder begins with new weights"),
        ([*TINY, *RUN, "--label-names", "a"], "--label-names: an autoencoder knows no classes"),
        ([*TINY, *RUN, "--classes"], "--classes: an autoencoder knows no classes"),
        ([*TINY, *RUN, "--batch", "21"], "--batch: a batch of 21 needs more images than the 20 in the data"),
        (["autoencoder", *RUN, "--channels", *"88888"], "pictures of 8x8 cannot be halved 4 times"),
        (["autoencoder", *RUN, "--channels", "9"], "must be a multiple of norm_num_groups"),
        (["noisy.toml", *RUN], "noisy.toml must have no [scheduler]: an autoencoder has no noise levels"),
        (["autoencoder", "--data", "data.npz", "--out", "used"], "used/model holds other files than a model's"),
        ([*RUN, "--resume"], "no checkpoint to continue from in run"),
    ):
        assert message in complaint(capsys, "train", *argv)
        assert not os.path.exists("run")


@pytest.mark.parametrize(
    ("shape", "factor"), [((8, 8, 1), 2), ((28, 28, 1), 2), ((64, 64, 3), 4), ((7, 9, 3), 1), ((512, 512, 3), 8)]
)
def test_the_network_fits_the_pictures(shape, factor):
    options = parse(["train", "autoencoder", *RUN])
    settled = train_autoencoder._settled(options, np.zeros((1, *shape), np.uint8), None)
    assert settled.network.downsampling == factor
    assert settled.network.in_channels == settled.network.out_channels == shape[-1]
