"""A run killed by SIGKILL at any moment goes on as if it never was; one that cannot write loses nothing."""

import dataclasses
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy

from cmjax import training
from cmjax.training.checkpoints import restore

STEPS, KILLS = 300, 20
CHILD = f"""
import dataclasses, sys, toy
from cmjax import training
out, resume = sys.argv[1], sys.argv[2] == "resume"
recipe = dataclasses.replace(toy.RECIPE, steps={STEPS})
print("ready", flush=True)
training.train(toy.model(), toy.CONFIG, toy.IMAGES, toy.LABELS, recipe=recipe, out=out, resume=resume,
               report_every=5, checkpoint_every=10)
"""


def start(out: Path, resume: bool) -> subprocess.Popen:
    """A run in a process of its own, past its imports."""
    argv = [sys.executable, "-c", CHILD, str(out), "resume" if resume else "new"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    child = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "ready\n", child.communicate()[1]
    return child


def finished(child: subprocess.Popen) -> float:
    began = time.monotonic()
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    return time.monotonic() - began


def outcome(out: Path):
    """The last state's bits, and the log without its clock."""
    recipe = dataclasses.replace(toy.RECIPE, steps=STEPS)
    state, _ = restore(out / "checkpoints", training.init(toy.model(), recipe), recipe, toy.CONFIG)
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    return toy.bits(state), [{k: v for k, v in entry.items() if k != "images_per_second"} for entry in log]


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path):
    seconds = finished(start(tmp_path / "whole", resume=False))
    expected = outcome(tmp_path / "whole")
    assert [entry["step"] for entry in expected[1]] == list(range(5, STEPS + 1, 5))
    moments, kills, out = random.Random(0), 0, tmp_path / "killed"
    while True:
        child = start(out, resume=training.latest_step(out / "checkpoints") is not None)
        if kills < KILLS:
            time.sleep(moments.uniform(0.0, seconds / 3))  # so a run is killed some six times before it is through
            if child.poll() is None:
                child.kill()
                child.wait()
                kills += 1
                continue
        finished(child)
        assert outcome(out) == expected
        if kills == KILLS:
            return
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_its_last_checkpoint_whole(tmp_path):
    recipe = toy.RECIPE
    training.train(toy.model(), toy.CONFIG, toy.IMAGES, recipe=recipe, out=tmp_path, checkpoint_every=7)
    state = training.init(toy.model(), recipe)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # no file may grow beyond: what a full disk is to a writer
    try:
        with pytest.raises(OSError, match="checkpoint of step 21 cannot be written"):
            training.checkpoints.save(tmp_path / "checkpoints", state.replace(step=np.int32(21)), recipe, toy.CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["14", "7"]
    assert int(restore(tmp_path / "checkpoints", state, recipe, toy.CONFIG)[0].step) == 14
