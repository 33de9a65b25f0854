"""Damaged and hostile checkpoints in one file: one sentence each, nothing is executed, and memory stays bounded."""

import math
import os
import random
import tracemalloc

import numpy as np
import pytest
import torchfiles
from single_files import model, use_tiny_kinds

from cmjax.io.single_files.stable_diffusion import (
    original_of,
    read_autoencoder,
    read_stable_diffusion,
    read_text_encoder,
)

NAMES = ("bk-sdm-tiny", "koala-700m", "stable-diffusion-2-1", "stable-diffusion-xl-refiner-1.0")
LONGEST = 16_000  # characters of a message, which lists at most 30 names of each kind


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    use_tiny_kinds(monkeypatch)


def pytest_generate_tests(metafunc):
    if "rounds" in metafunc.fixturenames:
        metafunc.parametrize("rounds", [100, pytest.param(3_000, marks=pytest.mark.slow)])


def said(call):
    """What a call complains of, one line; None where it does not."""
    try:
        call()
    except ValueError as error:
        message = str(error)
        fit = message.isprintable() and len(message) < LONGEST
        assert fit, message[:500]
        return message
    return None


def blank(shape, dtype=np.float32):
    return np.broadcast_to(np.zeros((), dtype), shape)


def renamed(name, rng):
    """A name with one character or word changed."""
    words = name.split(".")
    place = rng.randrange(len(words))
    change = rng.choice(["drop", "number", "repeat", "letters", "long"])
    if change == "drop":
        del words[place]
    elif change == "number":
        words[place] = str(rng.choice([0, 1, 2, 3, 7, 12, 99, 10**9]))
    elif change == "repeat":
        words.insert(place, words[place])
    elif change == "letters":
        words[place] = rng.choice(["\n", "\x1b[31m", "ä", "", " ", "weight", "model_ema", "lora_up"]) + words[place]
    else:
        words[place] = words[place] * rng.choice([2, 1000])
    return ".".join(words)


def changed(tensors, rng):
    """A checkpoint with a few things amiss."""
    tensors = dict(tensors)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        name = rng.choice([*tensors] or ["x"])
        value = tensors.get(name, blank((1,)))
        match rng.choice(["drop", "rename", "shape", "dtype", "add", "part", "axes", "only"]):
            case "drop":
                tensors.pop(name, None)
            case "rename":
                tensors.pop(name, None)
                tensors[renamed(name, rng)] = value
            case "shape":
                shape = [rng.choice([n, n + 1, 2 * n, 0, 1, 3, 1 << 18]) for n in value.shape]
                tensors[name] = blank(tuple(shape) if math.prod(max(n, 1) for n in shape) < 1 << 58 else ())
            case "axes":
                tensors[name] = blank(value.shape[: rng.randrange(5)] + (1,) * rng.randrange(3))
            case "dtype":
                tensors[name] = blank(value.shape, rng.choice([np.int64, np.bool_, np.float64, np.uint8]))
            case "add":
                tensors[renamed(name, rng)] = value
            case "part":
                start = name[: rng.randrange(1, 30)]
                tensors = {other: value for other, value in tensors.items() if not other.startswith(start)}
            case "only":
                start = name[: rng.randrange(1, 30)]
                tensors = {other: value for other, value in tensors.items() if other.startswith(start)}
    return tensors


def test_thousands_of_damaged_checkpoints_give_one_sentence_each(rounds):
    files = [{name: blank(value.shape) for name, value in model(name).tensors().items()} for name in NAMES]
    complaints = 0
    for seed in range(rounds):
        rng = random.Random(seed)
        damaged = changed(rng.choice(files), rng)
        complaints += said(lambda damaged=damaged, rng=rng: original_of(damaged, ema=rng.random() < 0.1)) is not None
    assert complaints > rounds // 3


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_damaged_bytes_give_one_sentence_each(suffix, tmp_path, rounds):
    path = tmp_path / f"model{suffix}"
    tensors = {name: value.astype(np.float16) for name, value in model("bk-sdm-tiny").tensors().items()}
    if suffix == ".ckpt":
        torchfiles.write(path, {"state_dict": tensors, "global_step": 3})
    else:
        model("bk-sdm-tiny").file(path)
    whole = path.read_bytes()
    assert said(lambda: read_stable_diffusion(path)) is None
    header = 8 + int.from_bytes(whole[:8], "little") if suffix == ".safetensors" else len(whole)
    kind, complaints = model("bk-sdm-tiny").kind, 0
    before = sorted(os.listdir(tmp_path))
    for seed in range(rounds // 6):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[rng.randrange(header)] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        for call in (
            lambda: read_stable_diffusion(path),
            lambda: read_autoencoder(path, scaling_factor=1.0),
            lambda: read_text_encoder(path, kind, 0),
        ):
            complaints += said(call) is not None
    assert complaints
    assert sorted(os.listdir(tmp_path)) == before


def test_hostile_names_cost_little():
    """Names that say of very many blocks, and long ones."""
    tensors = model("bk-sdm-tiny").tensors()
    unet, text = "model.diffusion_model.input_blocks", "cond_stage_model.transformer.text_model.encoder.layers"
    deep = {f"{unet}.1.1.transformer_blocks.{n}.norm1.weight": blank((8,)) for n in range(5000)}
    wide = {f"{unet}.{k}.0.out_layers.3.weight": blank((8, 8, 3, 3)) for k in range(5000)}
    long = {f"x{'y' * 100_000}{i}": blank((1,)) for i in range(50)}
    layers = {f"{text}.{n}.layer_norm1.weight": blank((8,)) for n in range(5000)}
    tracemalloc.start()
    for more in (deep, wide, long, layers):
        assert said(lambda more=more: original_of({**tensors, **more})) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
