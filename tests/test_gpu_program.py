"""The program for a GPU, without one: it runs, keeps to its time, and loses nothing when it fails or is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

PROGRAM = """HloModule jit_forward
%fused_computation.1 (p: bf16[2,8]) -> bf16[8,2] {
  ROOT %transpose.9 = bf16[8,2]{1,0} transpose(%p), dimensions={1,0}
}
ENTRY %main (x: bf16[2,8]) -> f32[8,2] {
  %copy.3 = bf16[2,8]{0,1} copy(%x)
  %transpose_fusion.2 = bf16[8,2]{1,0} fusion(%copy.3), kind=kLoop, calls=%fused_computation.1, metadata={op_name="f"}
  ROOT %add.4 = (f32[8,2]{1,0}, u8[4]{0}) fusion(%y), kind=kLoop, metadata={op_name="jit(f)/part=a, softmax(q k) v/add"}
}
"""


def run(folder: Path, *options: str, minutes: float = 5.0) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--minutes", str(minutes), "--out", str(folder)]
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}  # one CPU device, as a process of its own has
    subprocess.run([*command, *options], check=minutes >= 1, env=environment, capture_output=True, text=True)
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_parts.profile

    return gpu_parts


def test_every_instruction_has_a_part_and_a_size(parts: Any) -> None:
    found = parts.profile.instructions(PROGRAM)
    assert found["add.4"] == ("fusion", "a, softmax(q k) v", 8 * 2 * 4 + 4)
    assert found["copy.3"] == ("copy", "no name", 2 * 8 * 2)


def test_rearrangements_inside_of_a_fusion_are_no_kernels(parts: Any) -> None:
    megabytes = 2 * 32 / 1e6
    expected = {"copy": 1, "copy_megabytes": megabytes, "transpose": 1, "transpose_megabytes": megabytes}
    assert parts.profile.rearrangements(PROGRAM) == expected


@pytest.mark.parametrize(
    ("name", "operation", "part"),
    [
        ("add_4", None, "a, softmax(q k) v"),
        ("anything", "add.4", "a, softmax(q k) v"),
        ("transpose_fusion_2", None, "copies and transposes (the rest)"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", None, "convolutions"),
        ("nvjet_hsh_128x256", None, "matrix products"),
        ("something else", None, "no name"),
    ],
)
def test_kernels_belong_to_parts_of_the_network(parts: Any, name: str, operation: str | None, part: str) -> None:
    kernel = parts.profile.Kernel(name, operation, 1.0, 1)
    assert parts.profile.owner(kernel, parts.profile.instructions(PROGRAM)) == part


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_killed_and_what_it_wrote_is_kept(tmp_path: Path) -> None:
    start = time.monotonic()
    summary = run(tmp_path, "--only", "ceilings", "training", minutes=0.2)
    assert time.monotonic() - start < 12 + 8  # starting Python takes some of it on a busy machine
    assert summary["parts"]["training"]["status"] in ("killed", "failed")
    assert summary["parts"]["training"]["errors"]
    assert json.loads((tmp_path / "training.json").read_text())["machine"]["versions"]["jax"]


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert {name: (part["status"], part["errors"]) for name, part in summary["parts"].items()} == {
        name: ("done", []) for name in summary["parts"]
    }
    assert len(summary["parts"]) == len(list(tmp_path.glob("*.json"))) - 1
    assert all(part["rows"] for part in summary["parts"].values())
    shares = next(row for row in summary["parts"]["profile"]["rows"] if row["name"].endswith("shares of kernels' time"))
    assert "convolutions" in shares and shares["kernels_ms"] > 0
