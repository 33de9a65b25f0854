"""Many images on many hosts: this room starts several processes, kills them, and compares every byte."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import tiny
import unets
from environment import is_optimized
from flax import nnx

import cmjax
from cmjax.cli import main
from cmjax.drawing import compile_draw, hosts
from cmjax.drawing.shards import Shards
from cmjax.models import UNet, from_nnx

NUM, SIZE, BATCH = 23, 4, 2  # six shards, the last with three images


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    cmjax.save(tiny.checkpoint(), folder, label_names=["a", "b", "c"])
    return folder


def command(model: Path, out: Path, *more: str) -> list[str]:
    options = ["--model", str(model), "--num", str(NUM), "--shard-size", str(SIZE), "--out", str(out)]
    return [sys.executable, "-m", "cmjax", "sample", *options, "--no-compile-cache", *more]


def environment(devices: int = 1) -> dict[str, str]:
    held = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    return held | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def start(model: Path, out: Path, *more: str, devices: int = 1, temp: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(model, out, *more),
        env=environment(devices) | ({"TMPDIR": str(temp)} if temp else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> str:
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return "".join(out for out, _ in said)


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process on one device draws, never interrupted."""
    out = tmp_path_factory.mktemp("alone") / "drawn"
    finish(start(model, out, "--batch", str(BATCH)))
    return out


def test_shards_are_numbered_labelled_and_whole(model: Path, alone: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in alone.iterdir()) == ["run.json"] + [
        f"shard-0000{i}-of-00006.npz" for i in range(6)
    ]
    shards = [np.load(alone / f"shard-0000{i}-of-00006.npz") for i in range(6)]
    indices = np.concatenate([shard["indices"] for shard in shards])
    np.testing.assert_array_equal(indices, np.arange(NUM))
    np.testing.assert_array_equal(np.concatenate([shard["labels"] for shard in shards]), np.arange(NUM) % 3)
    images = np.concatenate([shard["images"] for shard in shards])
    assert images.shape == (NUM, 8, 8, 1)
    out = tmp_path / "one.npz"
    options = ["--num", str(NUM), "--batch", str(BATCH), "--devices", "1", "--no-compile-cache"]
    assert main(["sample", "--model", str(model), "--out", str(out), *options]) == 0
    np.testing.assert_array_equal(np.load(out)["images"], images)  # image i is the same in one file


@pytest.mark.slow
def test_two_processes_draw_what_one_does(model: Path, alone: Path, tmp_path: Path) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    more = ("--batch", str(BATCH), "--distributed", who, "2")
    said = finish(*(start(model, out, *more, str(i)) for i in range(2)))
    assert said.count("3 of 6 shards drawn here") == 2
    assert held(out) == held(alone)


@pytest.mark.slow
def test_killed_a_third_of_the_way_another_number_of_hosts_and_devices_goes_on(
    model: Path, alone: Path, tmp_path: Path
) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    first = [start(model, out, "--batch", str(BATCH), "--distributed", who, "2", str(i)) for i in range(2)]
    deadline = time.monotonic() + 200
    while len(list(out.glob("shard-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in first:
        process.kill()
        process.communicate()
    written = sorted(out.glob("shard-*"))
    if len(written) == 6:  # they were quicker than the kill
        for path in written[2:]:
            path.unlink()
    there = len(list(out.glob("shard-*")))
    assert 2 <= there < 6
    (out / ".shard-00005-of-00006-h4lf_1ab.npz").write_bytes(b"half")  # what a kill leaves
    said = finish(start(model, out, devices=3))  # one host with three devices: so many images on each as before
    assert f"{there} were there" in " ".join(said.split())
    assert held(out) == held(alone)
    assert "nothing was left to draw" in finish(start(model, out))


@pytest.mark.slow
def test_one_host_that_dies_takes_no_other_with_it(model: Path, alone: Path, tmp_path: Path) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    both = [start(model, out, "--batch", str(BATCH), "--distributed", who, "2", str(i)) for i in range(2)]
    deadline = time.monotonic() + 200
    while not (out / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)  # they have parted, and compile
    both[0].kill()  # the first: the one that the other came to
    both[0].communicate()
    assert both[0].returncode == -9
    finish(both[1])
    assert {"shard-00001-of-00006.npz", "shard-00003-of-00006.npz"} <= set(held(out))
    finish(start(model, out))
    assert held(out) == held(alone)


@pytest.mark.slow
def test_pictures_in_folders(model: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    finish(start(model, out, "--batch", str(BATCH), "--shard-format", "png"))
    folder = out / "shard-00005-of-00006"
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:08}-class{i % 3}.png" for i in (20, 21, 22)]
    picture = cmjax.io.read_images(folder).images
    np.testing.assert_array_equal(picture, np.load(alone / "shard-00005-of-00006.npz")["images"])


def test_a_run_that_was_told_more_is_another_run(tmp_path: Path) -> None:
    """As one with --lora or --negative, which runs without them do not name."""
    run = {"seed": 0, "variant": None, "loras": [["of a file", 0.5]]}
    Shards(tmp_path / "run", 2, 1, run).begin()
    Shards(tmp_path / "run", 2, 1, run).check()
    Shards(tmp_path / "run", 2, 1, {"seed": 0, "loras": run["loras"]}).check()  # None says nothing
    for other in ({"seed": 0}, {"loras": run["loras"]}, {**run, "guidance": 2.0}):
        with pytest.raises(ValueError, match="holds images of another run"):
            Shards(tmp_path / "run", 2, 1, other).check()


def test_a_folder_of_another_run_is_left_alone(
    model: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held(alone)
    for more, message in (
        (("--seed", "1"), "holds images of another run (seed is 0 there and 1 now): choose another folder"),
        (("--steps", "3"), "holds images of another run"),
        (("--batch", "24"), "(images_a_device is 2 there and 3 now)"),
        (("--labels", "a"), "(classes is [0, 1, 2] there and [0] now)"),
        (("--dtype", "bfloat16"), '(dtype is "float32" there and "bfloat16" now)'),
    ):
        said = refused(capsys, *command(model, alone, *more)[3:])
        assert message in said
    assert held(alone) == before
    (tmp_path / "letter.txt").write_text("dear")
    assert "holds other files (letter.txt): choose a new or empty folder" in refused(
        capsys, *command(model, tmp_path)[3:]
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("[1")
    assert "is not valid JSON" in refused(capsys, *command(model, tmp_path / "run")[3:])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    return said.err


@pytest.mark.slow
def test_a_host_that_never_comes_is_given_up(model: Path, tmp_path: Path) -> None:
    for index in ("0", "1"):
        who = f"127.0.0.1:{free_port()}"
        lonely = start(model, tmp_path / "drawn", "--distributed", who, "2", index, "--wait", "3", temp=tmp_path)
        _, err = lonely.communicate(timeout=200)
        assert lonely.returncode == 2, err
        assert "cmjax sample: --distributed: not all processes came at 127.0.0.1" in err
        assert "nobody within 3 s. (--wait S waits longer.)" in err
        assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # no picture, and no lock


@pytest.mark.slow
def test_one_that_refuses_tells_the_others(model: Path, tmp_path: Path) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    both = [
        start(model, out, *more, "--distributed", who, "2", str(i)) for i, more in enumerate(((), ("--labels", "z")))
    ]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert "--distributed: process 1 refused to take part; its own message says why" in said[0]
    assert "unknown label 'z'" in said[1]
    assert not out.exists()


@pytest.mark.slow
def test_one_with_a_mistake_in_its_options_tells_the_others(model: Path, tmp_path: Path) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    both = [
        start(model, out, "--distributed", who, "2", str(i), *more) for i, more in enumerate(((), ("--frobnicate",)))
    ]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert "process 1 refused to take part" in said[0]
    assert "unrecognized arguments: --frobnicate" in said[1]


@pytest.mark.slow
def test_a_process_that_is_started_twice_is_refused_and_the_first_goes_on(model: Path, tmp_path: Path) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    twice = [start(model, out, "--distributed", who, "2", "0") for _ in range(2)]
    deadline = time.monotonic() + 200
    while not (over := [process for process in twice if process.poll() is not None]) and time.monotonic() < deadline:
        time.sleep(0.05)
    (second,) = over
    _, err = second.communicate()
    assert second.returncode == 2
    assert f"--distributed: process 0 of {who} already runs on this machine: give each process its own number" in err
    twice.remove(second)
    said = finish(*twice, start(model, out, "--distributed", who, "2", "1"))
    assert said.count("3 of 6 shards drawn here") == 2
    assert "[Gloo]" not in said


def test_a_process_number_is_held_by_one_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inside, most = [], 0

    def hold(_: int) -> bool:
        nonlocal most
        try:
            with hosts._own_number("host:1", 0):
                inside.append(1)
                most = max(most, len(inside))
                time.sleep(0.001)
                inside.pop()
                return True
        except ValueError:
            return False

    with ThreadPoolExecutor(8) as pool:
        holding = list(pool.map(hold, range(200)))
    assert any(holding) and not all(holding) and most == 1
    assert not list(tmp_path.iterdir())

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", Mock(side_effect=FileNotFoundError("no usable temporary directory")))
        assert hold(0)

    lock, opened = fcntl.flock, []

    def removed_before(file: int, how: int) -> None:
        if not opened:
            opened.append(file)
            next(tmp_path.iterdir()).unlink()  # as by a process that ends now
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with hosts._own_number("host:1", 0):
        assert len(list(tmp_path.iterdir())) == 1
        assert not hold(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_a_cluster_one_must_say_who_takes_part(model: Path, tmp_path: Path) -> None:
    process = start(model, tmp_path / "drawn", "--distributed")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    assert "--distributed: no cluster (Slurm, Open MPI, a TPU pod) says who takes part: give HOST:PORT of" in err


@pytest.mark.slow
def test_hosts_that_were_asked_for_different_things_do_not_begin(model: Path, tmp_path: Path) -> None:
    who, out = f"127.0.0.1:{free_port()}", tmp_path / "drawn"
    both = [start(model, out, "--seed", str(i), "--distributed", who, "2", str(i)) for i in range(2)]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 2, err
        assert "process 1 was started with another model or other options than process 0" in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--distributed", "localhost:1", "2"),
            "--distributed takes three values, HOST:PORT of process 0, the number of processes",
        ),
        (
            ("--distributed", "localhost", "2", "0"),
            "--distributed: coordinator must be HOST:PORT of process 0, got localhost",
        ),
        (("--distributed", "localhost:99999", "2", "0"), "must be HOST:PORT of process 0"),
        (("--distributed", "localhost:1", "2", "2"), "process_id must be a whole number from 0 to 1, got 2"),
        (("--distributed", "localhost:1", "9" * 20, "0"), "num_processes must be a whole number from 1 to 65536"),
        (("--distributed", "localhost:1", "-1", "0"), "num_processes must be a whole number from 1 to 65536, got -1"),
        (("--distributed", "localhost:1", "2", "0", "--wait", "90000"), ": --wait must be from 1 to 86400 s, a day"),
        (("--devices", "64"), ": --devices must be at most 8, the number of cpu devices of this process, got 64."),
        (("--devices", "4", "--batch", "6"), ": --batch must be a multiple of 4, the number of devices, got 6."),
        (("--batch", "6"), "--batch must be a multiple of 8"),
        (("--trajectory",), "--trajectory shows every step of a few images; shards hold images alone"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *command(model, tmp_path / "drawn", *more)[3:])
    assert not (tmp_path / "drawn").exists()


def test_shards_go_into_folders(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *command(model, tmp_path / "drawn.npz")[3:])
    assert "shards go into a folder, not into a .npz file" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_devices_are_chosen_for_one_file_too(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = []
    for devices in ("1", "2", "8"):
        out = tmp_path / f"{devices}.npz"
        options = ["--num", "16", "--devices", devices, "--no-compile-cache"]
        assert main(["sample", "--model", str(model), "--out", str(out), *options]) == 0
        images.append(np.load(out)["images"].astype(int))
    for other in images[1:]:
        assert np.abs(other - images[0]).max() <= 1  # a grey level: other batch sizes round differently
    said = refused(capsys, "sample", "--model", model, "--devices", "3", "--batch", "4", "--out", tmp_path / "x.png")
    assert "--batch must be a multiple of 3" in said


@pytest.mark.slow
def test_a_damaged_shard_is_drawn_again_and_foreign_files_stay(
    model: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drawn"
    shutil.copytree(alone, out)
    (out / ".shard-mine.txt").write_text("mine")
    for i, damage in enumerate((b"", b"PK", (out / "shard-00002-of-00006.npz").read_bytes()[:300])):
        (out / f"shard-0000{i}-of-00006.npz").write_bytes(damage)
    shutil.copy(alone / "shard-00005-of-00006.npz", out / "shard-00004-of-00006.npz")  # three images, not four
    assert "4 of 6 shards drawn here, 2 were there" in finish(start(model, out))
    assert held(out) == held(alone) | {".shard-mine.txt": b"mine"}
    shard = out / "shard-00001-of-00006.npz"
    shard.unlink()
    shard.mkdir()
    assert "is not a shard of this run: move it away" in refused(capsys, *command(model, out, "--devices", "1")[3:])


@pytest.mark.slow
def test_a_folder_of_too_few_pictures_is_drawn_again(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    finish(start(model, out, "--shard-format", "png"))
    whole = held(out)
    next((out / "shard-00003-of-00006").glob("*.png")).unlink()
    assert "1 of 6 shards drawn here, 5 were there" in finish(start(model, out, "--shard-format", "png"))
    assert held(out) == whole


@pytest.mark.slow
def test_a_count_that_is_not_the_first_ones_is_refused(model: Path, tmp_path: Path) -> None:
    who = f"127.0.0.1:{free_port()}"
    both = [
        start(model, tmp_path / "drawn", "--distributed", who, n, i, "--wait", "120")
        for n, i in (("2", "0"), ("3", "1"))
    ]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert "process 0 waited for 2 processes, this one for 3" in said[1]


def test_another_variant_of_the_weights_is_another_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both"
    shutil.copytree(model, both)
    weights = both / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert main(command(both, tmp_path / "drawn", "--batch", "8")[3:]) == 0
    said = refused(capsys, *command(both, tmp_path / "drawn", "--batch", "8", "--variant", "fp16")[3:])
    assert '(variant is null there and "fp16" now)' in said


@pytest.mark.skipif(not is_optimized, reason="bits are those of optimized programs, which CI runs")
def test_a_device_computes_the_same_whatever_is_beside_it(tmp_path: Path) -> None:
    """Formulations go by the sizes that a device sees: a network at their border, two images on each."""
    network = unets.config(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(384,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
        norm_num_groups=8,
        num_class_embeds=None,
    )
    model = from_nnx(UNet(network, rngs=nnx.Rngs(0)))
    model = jax.tree.map(lambda leaf: leaf + 0.01, model)
    state, drawn = cmjax.cm.init(cmjax.cm.CMConfig(), 2), []
    for devices in (1, 4):
        size = 2 * devices
        draw = compile_draw(model, state, (size, 8, 8, 1), classes=None, seed=0, devices=jax.local_devices()[:devices])
        drawn.append(np.concatenate([draw(first, model).images for first in range(0, 8, size)]))
    np.testing.assert_array_equal(*drawn)


def test_run_json_says_all_that_the_images_depend_on(alone: Path) -> None:
    said = json.loads((alone / "run.json").read_text())
    assert {
        "model",
        "seed",
        "num",
        "path",
        "sampler",
        "classes",
        "class_names",
        "dtype",
        "images_a_device",
    } <= said.keys()
    assert said["class_names"] == ["a", "b", "c"]
