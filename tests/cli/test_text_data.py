"""Captioned pictures for `cmjax train --model`: in memory or in files, in one size or several; and runs on them."""

import io
import os
import tarfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands import complaint
from PIL import Image
from texts import text_model

import cmjax
from cmjax.cli import main, train_text
from cmjax.cli.options import TrainOptions
from cmjax.cli.text_data import read_text_data
from cmjax.io import Captioned, CaptionedSource

RECIPE = """
method = "tcd"
ema_decays = [0.9]
[tcd]
decay = 0.0
[lora]
rank = 2
targets = ["attn2.to_k"]
"""
TALL, SQUARE = (12, 6), (8, 8)


def encoded(size, seed=0):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def folder(path, sizes):
    os.mkdir(path)
    for i, size in enumerate(sizes):
        (path / f"{i}.png").write_bytes(encoded(size, i))
        (path / f"{i}.txt").write_text(f"fox {'abcdefg'[i]}")
    return path


def shard(path, sizes):
    with tarfile.open(path, "w") as archive:
        for i, size in enumerate(sizes):
            for name, raw in ((f"{i}.png", encoded(size, i)), (f"{i}.txt", f"fox {'abcdefg'[i]}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
    return path


def read(data, **options):
    return read_text_data(TrainOptions(data=str(data), out="run", model="base", **options))


PIPE = SimpleNamespace(  # of pictures of 8 x 8 pixels, with latents of 2 x 2, which its network halves no further
    native_size=(8, 8),
    latent_shape=lambda batch, size: size,
    autoencoder=SimpleNamespace(downsampling=2),
    unet=SimpleNamespace(config=SimpleNamespace(downsampling=1)),
)


def test_what_lies_in_memory_and_in_which_sizes(tmp_path):
    pipe = PIPE
    one = read(folder(tmp_path / "one", [TALL] * 2))
    assert isinstance(one.pictures, Captioned) and one.sizes(pipe, 2) == (TALL,) and one.count == 2
    cached = read(tmp_path / "one", cache="latents")
    assert isinstance(cached.pictures, CaptionedSource) and cached.sizes(pipe, 2) == (TALL,)
    many = read(folder(tmp_path / "many", [TALL, SQUARE, (30, 30)]))
    assert isinstance(many.pictures, CaptionedSource) and many.sizes(pipe, 2) == (pipe.native_size,)
    packed = read(shard(tmp_path / "a.tar", [(40, 20)] * 2 + [SQUARE] * 2), buckets=True)
    assert packed.sizes(pipe, 2) == ((10, 6), (8, 8))
    assert packed.sizes(pipe, 3) == ((8, 8),)
    with pytest.raises(ValueError, match="least is 5, but there are 4 pictures"):
        packed.sizes(pipe, 5)
    prints = [data.fingerprint() for data in (one, cached, many, packed, read(tmp_path / "a.tar"))]
    assert len({str(one) for one in prints}) == 5


def test_options_of_pictures_with_captions_need_a_model(capsys):
    for option in (["--buckets"], ["--skip-unreadable"], ["--cache", "latents"]):
        argv = ["ect", "--data", "data", "--out", "run", *option]
        assert f"{option[0]} belongs to a text-to-image model: give --model" in complaint(capsys, "train", *argv)


@pytest.mark.slow
def test_a_run_on_shards_in_buckets_with_a_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_text, "draw_curves", lambda out: None)
    cmjax.text_to_image.save(text_model(sample_size=8), tmp_path / "base")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    shard(tmp_path / "0.tar", [(32, 16)] * 2)
    shard(tmp_path / "1.tar", [(16, 16)] * 3)
    argv = ["train", "tiny.toml", "--model", "base", "--data", "*.tar", "--buckets", "--batch", "2", "--steps", "3"]
    assert main([*argv, "--out", "fresh"]) == 0
    assert "pictures are resized and cropped to 12x20, 16x16" in capsys.readouterr().out.replace("\n", " ")
    assert main([*argv, "--cache", "latents", "--out", "run"]) == 0
    one, two = ([np.asarray(x) for x in jax.tree.leaves(cmjax.lora.read(f"{run}/model"))] for run in ("fresh", "run"))
    assert all(np.allclose(a, b, atol=2e-3) for a, b in zip(one, two, strict=True))
    capsys.readouterr()
    other = complaint(capsys, "train", "tiny.toml", "--model", "base", "--data", "*.tar", "--out", "run", "--resume")
    assert "the run to resume has other pictures or captions" in other
    one_size = [option for option in argv[1:] if option != "--buckets"]
    said = complaint(capsys, "train", *one_size, "--cache", "latents", "--out", "other")
    assert "was made with buckets = [[20, 12], [16, 16]], not [[16, 16]]" in said
