"""Processes that train together: the numbers of one process, refused disagreements, and a kill that leaves no trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import cmjax
from cmjax import training
from cmjax.training import hosts

CHILD = """
import os, sys
import jax
index, count, port, out, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
jax.config.update("jax_num_cpu_devices", 2 // count)
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index, heartbeat_timeout_seconds=10)
import numpy as np
import test_hosts
from cmjax import training
images = test_hosts.IMAGES if mode != "other" or index == 0 else test_hosts.IMAGES[::-1].copy()
if mode == "killed" and index == 1:
    step = training.loop.train_step
    seen = []
    def dying(*args, **options):
        seen.append(1)
        if len(seen) == 5:
            os.kill(os.getpid(), 9)
        return step(*args, **options)
    training.loop.train_step = dying
state = test_hosts.run(images, out, divide_weights=count == 2, resume=mode == "resumed")
np.savez(f"{out}-{index}.npz", *map(np.asarray, jax.tree.leaves(state.model)))
"""
IMAGES = np.concatenate([toy.IMAGES, 255 - toy.IMAGES])


def network(params, x, t, cond, key=None):
    """A few numbers, and a leaf that is large enough to divide."""
    return params["gain"] * x + params["bias"] + params["wide"].mean() * jnp.cos(x)


def run(images, out, **options):
    """Six steps of it."""
    params = {"gain": jnp.float32(0.1), "bias": jnp.zeros((4, 4, 1)), "wide": jnp.ones((128, 512))}
    recipe = training.Recipe(steps=6, batch_size=8, optimizer=training.Optimizer(warmup_steps=2))
    return training.train(
        jax.tree_util.Partial(network, params), cmjax.cm.CMConfig(), images,
        recipe=recipe, out=out, checkpoint_every=3, report_every=1, **options,
    )  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


def start(out: Path, count: int, mode: str) -> list[subprocess.Popen]:
    port, folders = free_port(), [str(Path(__file__).parent), str(Path(toy.__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    environment.pop("XLA_FLAGS", None)  # which the tests set for eight devices
    argv = [[sys.executable, "-c", CHILD, str(i), str(count), port, str(out), mode] for i in range(count)]
    return [subprocess.Popen(one, env=environment, stderr=subprocess.PIPE, text=True) for one in argv]


def weights(out: Path, index: int) -> list[np.ndarray]:
    with np.load(f"{out}-{index}.npz") as file:
        return [file[name] for name in file.files]


def furthest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_kill_leaves_no_trace(tmp_path):
    for name, count, mode in (("one", 1, "plain"), ("two", 2, "plain")):
        children = start(tmp_path / name, count, mode)
        for child in children:
            errors = child.communicate(timeout=300)[1]
            assert child.returncode == 0, errors
    expected = weights(tmp_path / "one", 0)
    assert furthest(weights(tmp_path / "two", 0), weights(tmp_path / "two", 1)) == 0.0
    assert furthest(weights(tmp_path / "two", 1), expected) < 1e-5
    entries = [[(e["step"], e["loss"]) for e in training.read_log(tmp_path / n / "log.jsonl")] for n in ("one", "two")]
    np.testing.assert_allclose(entries[1], entries[0], rtol=1e-5)

    first, second = start(tmp_path / "killed", 2, "killed")
    second.wait(timeout=300)
    assert second.returncode == -9
    first.wait(timeout=300)  # it cannot go on alone, and ends by itself
    assert first.returncode != 0
    assert training.latest_step(tmp_path / "killed" / "checkpoints") == 3
    for child in start(tmp_path / "killed", 2, "resumed"):
        errors = child.communicate(timeout=300)[1]
        assert child.returncode == 0, errors
    assert furthest(weights(tmp_path / "killed", 0), weights(tmp_path / "two", 0)) == 0.0

    for child in start(tmp_path / "other", 2, "other"):
        errors = child.communicate(timeout=300)[1]
        assert child.returncode != 0
        assert "all processes must have the same data, but process 1 has another one than process 0" in errors
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_divided_weights_train_to_the_same_and_lie_in_parts(tmp_path):
    states = [run(IMAGES, None, divide_weights=divide) for divide in (False, True)]
    assert furthest(*([np.asarray(leaf) for leaf in jax.tree.leaves(state)] for state in states)) < 1e-5
    large = [leaf for leaf in jax.tree.leaves(states[1].model) if leaf.size >= 1 << 14]
    assert large and all(not leaf.sharding.is_fully_replicated for leaf in large)
    small = [leaf for leaf in jax.tree.leaves(states[1].model) if leaf.size < 1 << 14]
    assert all(leaf.sharding.is_fully_replicated for leaf in small)


def test_a_tree_that_shares_leaves_shares_them_on_devices_and_large_ones_are_divided_along_the_longest_axis():
    mesh = hosts.mesh_of(8)
    kernel, odd = np.zeros((64, 512), np.float32), np.zeros((129, 129), np.float32)
    placed = hosts.place({"a": kernel, "b": kernel, "c": odd}, mesh, divide=True)
    assert placed["a"] is placed["b"]
    assert placed["a"].sharding.shard_shape((64, 512)) == (64, 512 // mesh.size)
    assert placed["c"].sharding.is_fully_replicated


def test_a_large_model_is_on_one_core_alone():
    large = {"weights": jax.ShapeDtypeStruct((1 << 27,), "float32")}
    assert [hosts.mesh_of(8, model).size for model in (None, large, (large["weights"],) * 2)] == [8, 1, 1]
    half = jax.ShapeDtypeStruct((3 << 24,), "float32")  # 192 MiB
    assert hosts.mesh_of(8, (half, {"teacher": half})).size == 8  # there once
