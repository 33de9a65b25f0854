"""A run of a LoRA from shards: killed at any moment, or in two processes, it ends in the same files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import texts
from PIL import Image

import cmjax
from cmjax.cli.errors import UsageError
from cmjax.cli.training_run import begin, check_out
from cmjax.drawing import Hosts
from cmjax.io.images import write_png
from cmjax.io.locate import LORA_FILE
from cmjax.io.safetensors_files import read_safetensors
from cmjax.text_to_image import LatentCache
from cmjax.training import latest_step

KILLS, PICTURES, SHARDS = 4, 6, 3
COMMAND = "train tiny.toml --model base --data shard-*.tar --prompts prompts.txt --checkpoint-every 2"
RECIPE = """
method = "tcd"
batch_size = 2
steps = 12
ema_decays = [0.9]
[tcd]
guidance_range = [2, 5]
decay = 0.0
[lora]
rank = 2
targets = ["attn2.to_k", "conv1"]
"""
# Imports once, and forks for each command of a line. No curves: their library takes longest.
NURSERY = """
import os, sys
import orbax.checkpoint
from cmjax.cli import main, train, train_text, text_data, training_run
from cmjax.io import atomic
def telling(word, call):
    def told(*args, **options):
        print(word, flush=True)
        return call(*args, **options)
    return told
train_text.draw_curves = lambda out: None
training_run.training.train = telling("trains", training_run.training.train)
compute = text_data.cmjax.text_to_image.precompute
text_data.cmjax.text_to_image.precompute = telling("computes", lambda *a, **o: compute(*a, **o, shard_size=1))
atomic.tempfile.mkstemp = telling("writes", atomic.tempfile.mkstemp)
for line in sys.stdin:
    children = []
    for command in line.split(";"):
        children.append(os.fork())
        if not children[-1]:
            sys.stdin.close()
            os._exit(main(command.split()))
    print("pids", *children, flush=True)
    print("over", *(os.waitpid(child, 0)[1] for child in children), flush=True)
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """A folder with a model, captioned pictures in shards and a recipe; and the process that runs commands there."""
    folder = tmp_path_factory.mktemp("killed")
    cmjax.text_to_image.save(texts.text_model(), folder / "base")
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as file:
            for i in range(shard, PICTURES, SHARDS):
                write_png(rng.integers(0, 256, (8, 8, 3), np.uint8), folder / f"{i:02d}.png")
                (folder / f"{i:02d}.txt").write_text(f"fox {'abcdefghijkl'[i]}\n")
                for ending in ("png", "txt"):
                    file.add(folder / f"{i:02d}.{ending}", f"{i:02d}.{ending}")
    for name in ("whole", "killed", "together"):
        (folder / name).mkdir()
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "prompts.txt").write_text("fox a\n")
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": " ".join(flags)}
    environment |= {"JAX_NUM_CPU_DEVICES": "2"}
    child = subprocess.Popen(
        [sys.executable, "-c", NURSERY], env=environment, cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "errors").open("w"),
    )  # fmt: skip
    yield folder, child
    child.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    child.wait()


def run(nursery, *options: str, kill: tuple[str, int, float] | None = None, folders: tuple[Path, ...] = ()) -> bool:
    """Train, in a process for each of the options; whether all came to their ends.

    `kill` says when the last process is to die: at a word that one says ("computes", "trains"), then so many files
    later ("writes"), then so many seconds later. At each word, every file in the folders is read.
    """
    folder, nurse = nursery
    nurse.stdin.write(";".join(f"{COMMAND} {of_one}" for of_one in options) + "\n")
    nurse.stdin.flush()
    process, phase, files = 0, "", 0
    for line in nurse.stdout:
        word, *numbers = line.split() or [""]
        if word == "pids":
            process = int(numbers[-1])
        if word == "over":
            assert kill or set(numbers) == {"0"}, (folder / "errors").read_text()
            return set(numbers) == {"0"}
        if word in ("computes", "trains"):
            phase, files = word, 0
        files += word == "writes"
        read_all(*folders)
        if kill and (phase, files) == kill[:2]:
            time.sleep(kill[2])
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, 9)
    raise AssertionError((folder / "errors").read_text())


def read_all(*folders: Path) -> None:
    """Read every file that a reader of a run and of its latents sees."""
    for path in [path for folder in folders for path in folder.rglob("*")]:
        if "checkpoints" in path.parts or path.name[0] == ".":
            continue
        if path.suffix == ".safetensors":
            assert all(np.isfinite(tensor).all() for tensor in read_safetensors(path).values())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".md":
            assert path.read_text().endswith("shows what it draws.\n")
        elif path.suffix == ".png":
            Image.open(path).load()


def contents(*folders: Path) -> dict[str, bytes]:
    """The files that a run and its latents consist of, and any that are half."""
    return {
        f"{i}/{path.relative_to(folder)}": path.read_bytes()
        for i, folder in enumerate(folders)
        for path in folder.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts and path.name not in ("log.jsonl", "README.md")
    }


@pytest.fixture(scope="module")
def expected(nursery):
    """The files of a run, and its latents, in one process that never stopped."""
    folder, _ = nursery
    assert run(nursery, "--out whole/run --cache whole/latents")
    found = contents(folder / "whole/run", folder / "whole/latents")
    assert f"0/model/{LORA_FILE}" in found and len(LatentCache(folder / "whole/latents")) == PICTURES
    return found


@pytest.mark.slow
def test_a_lora_of_shards_killed_at_any_moment_ends_in_the_same_files(nursery, expected):
    out, latents = (nursery[0] / "killed" / name for name in ("run", "latents"))
    moments, kills, computed = random.Random(0), 0, sum(name.startswith("1/") for name in expected) - 1
    while True:
        phase = "computes" if kills % 2 == 0 and len(list(latents.glob("*.safetensors"))) < computed else "trains"
        kill = (phase, moments.randrange(8), moments.uniform(0.0, 0.1)) if kills < KILLS else None
        resume = "--resume" if latest_step(out / "checkpoints") is not None else ""
        options = f"--out killed/run --cache killed/latents {resume}"
        if not run(nursery, options, kill=kill, folders=(out, latents)):
            kills += 1
            read_all(out, latents)
            continue
        assert contents(out, latents) == expected
        if kill is None:
            return
        shutil.rmtree(out.parent)
        out.parent.mkdir()


@pytest.mark.slow
def test_two_processes_make_the_files_of_one_and_go_on_after_a_kill(nursery, expected):
    out, latents = (nursery[0] / "together" / name for name in ("run", "latents"))
    for resume, kill in (("", ("trains", 4, 0.0)), ("--resume", None)):
        common = f"--out together/run --cache together/latents {resume} --distributed localhost:{free_port()} 2"
        assert run(nursery, f"{common} 0", f"{common} 1", kill=kill) == (kill is None)
        assert (latest_step(out / "checkpoints") == 12) == (kill is None)
    assert contents(out, latents) == expected


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_what_a_kill_leaves_half_written_is_no_obstacle_and_is_removed(tmp_path):
    out = tmp_path / "run"
    (out / "model").mkdir(parents=True)
    (out / "model" / ".pytorch_lora_weights-ab_cd012.safetensors").write_bytes(b"half")
    (out / "run.json").write_text("{}")
    check_out(out, tmp_path / "data", resume=False, index=LORA_FILE)
    begin(out, {"a": 1}, Hosts())
    assert not list((out / "model").iterdir()) and json.loads((out / "run.json").read_text()) == {"a": 1}
    (out / "model" / "mine.txt").touch()
    with pytest.raises(UsageError, match="holds other files than a model's"):
        check_out(out, tmp_path / "data", resume=False, index=LORA_FILE)
