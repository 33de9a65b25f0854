"""Stable Diffusion 1.5, 2.1 and XL in full size: the files of diffusers and transformers give the same numbers here.

The weights are random, every one of them, so nothing is downloaded. Each framework has a process of its own, one after
the other, as Stable Diffusion XL's network takes 10 GB. Every output of network, autoencoder (both ways) and text
encoders is compared, relative to its largest value.

`CMJAX_RECORD=1 pytest -n 0 tests/parity/test_full_size_texts.py --slow` takes a quarter of an hour of two cores, and
writes what it finds to `benchmarks/results/full_size_parity-cpu.json`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import full_size_parity
import numpy as np
import pytest
from full_size_texts import MODELS

from cmjax.io.memory import _free_memory

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

BOUND = 2e-5
MOST_MEMORY = 18  # GiB, of a process
TITLES = {"sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2.1", "sdxl": "Stable Diffusion XL"}


@pytest.fixture(scope="module")
def figures(pytestconfig: pytest.Config) -> Iterator[dict[str, Any]]:
    """What was measured, by model; written down at the end where that is asked for."""
    measured: dict[str, Any] = {}
    common = runpy.run_path(str(pytestconfig.rootpath / "benchmarks" / "common.py"))
    machine = common["machine"]()
    yield measured
    if os.environ.get("CMJAX_RECORD") == "1":
        targets = []
        for name, found in measured.items():
            largest, memory = max(found["relative_errors"].values()), found["peak_gib"]["ours"]
            targets.append(common["target"](largest, BOUND, f"{name}: largest relative error of any output"))
            targets.append(common["target"](memory, MOST_MEMORY, f"{name}: peak memory of cmjax, GiB"))
            targets[-2]["value"] = largest  # four decimals are none of it
        path = pytestconfig.rootpath / "benchmarks" / "results" / "full_size_parity-cpu.json"
        machine["versions"] |= {one: importlib.metadata.version(one) for one in ("transformers", "safetensors")}
        common["conclude"]({"program": "full_size_parity", "models": measured, "targets": targets}, path, machine)


def run(who: str, name: str, folder: Path) -> dict[str, Any]:
    """Let a framework compute; neither eight devices nor quick compilation, as the other tests have them."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS" and "JAX_" not in key}
    paths = [str(Path(full_size_parity.__file__).parent), str(Path(full_size_parity.__file__).parents[2])]
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, full_size_parity.__file__, who, name, str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-4000:]
    return json.loads((folder / f"{who}.json").read_text())


def refuse_small_machine(name: str, folder: Path) -> None:
    """Skip where the weights fit neither in memory nor on the disk."""
    need = 1.3 * 4 * (MODELS[name].parameters or 0) + 3e9
    if min(_free_memory() or need, shutil.disk_usage(folder).free - 4e9) < need:
        pytest.skip(f"needs {need / 1e9:.0f} GB of memory and of disk")


def compare(name: str, folder: Path) -> dict[str, Any]:
    """Run both, and measure how far apart they are."""
    said = {who: run(who, name, folder) for who in ("theirs", "ours")}
    with np.load(folder / "theirs.npz") as theirs, np.load(folder / "ours.npz") as ours:
        assert set(theirs) <= set(ours)
        errors, shapes = {}, {}
        for key, b in theirs.items():
            a = ours[key]
            assert a.shape == b.shape and np.isfinite(b).all() and b.std() > 0.1
            errors[key] = float(np.abs(a - b).max() / np.abs(b).max())
            shapes[key] = list(b.shape)
    for part, kind, config in full_size_parity.parts(name):
        shapes |= {f"{part}, {k}": list(x.shape) for k, x in full_size_parity.inputs(name, kind, config).items()}
    return {
        "parameters": MODELS[name].parameters,
        "relative_errors": errors,
        "shapes": shapes,
        "peak_gib": {who: round(one["peak_bytes"] / 2**30, 2) for who, one in said.items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-xl", *TITLES])
def test_the_same_files_give_the_same_numbers(name: str, figures: dict[str, Any], tmp_path: Path) -> None:
    refuse_small_machine(name, tmp_path)
    try:
        found = compare(name, tmp_path)
    finally:
        shutil.rmtree(tmp_path)
    assert max(found["relative_errors"].values()) <= BOUND, found["relative_errors"]
    if name in TITLES:
        assert found["peak_gib"]["ours"] <= MOST_MEMORY
        figures[TITLES[name]] = found
