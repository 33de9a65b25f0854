"""`cmjax export`, and drawing with what it wrote: the pictures of the model itself, along any path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import complaint

import cmjax
from cmjax.cli import main

CONFIGS = {
    "cm": cmjax.cm.CMConfig(),
    "denoiser": cmjax.cm.CMConfig().of_denoiser(5),
    "tcd": cmjax.tcd.TCDConfig(prediction_type="sample"),
    "lcm": cmjax.lcm.LCMConfig(prediction_type="v_prediction"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, and its artifact."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        cmjax.save(tiny.checkpoint(config=config), folder / name, label_names=["a", "b", "c"])
        options = ["--steps", "3", *(["--eta", "0.8"] if name == "tcd" else []), "--max-steps", "6"]
        assert main(["export", str(folder / name), str(folder / f"{name}-drawer"), *options, "--platforms", "cpu"]) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(*options: str) -> np.ndarray:
    assert main(["sample", *options, "--num", "4", "--out", "x.npz"]) == 0
    return np.load("x.npz")["images"].astype(int)


@pytest.mark.parametrize(
    ("name", "asked", "as_if"),
    [
        ("cm", (), ("--steps", "3")),
        pytest.param("cm", ("--steps", "2"), ("--steps", "2"), marks=pytest.mark.slow),
        ("cm", ("--timesteps", "22", "0"), ("--timesteps", "22", "0")),
        pytest.param("denoiser", (), ("--steps", "3"), marks=pytest.mark.slow),
        pytest.param("denoiser", ("--steps", "4"), ("--steps", "4"), marks=pytest.mark.slow),
        pytest.param("tcd", (), ("--steps", "3", "--eta", "0.8"), marks=pytest.mark.slow),
        pytest.param("tcd", ("--eta", "0.1"), ("--steps", "3", "--eta", "0.1"), marks=pytest.mark.slow),  # steps stay
        ("tcd", ("--steps", "5"), ("--steps", "5", "--eta", "0.8")),  # eta stays
        pytest.param("lcm", ("--steps", "6"), ("--steps", "6"), marks=pytest.mark.slow),
        pytest.param("lcm", ("--labels", "b"), ("--steps", "3", "--labels", "b"), marks=pytest.mark.slow),
    ],
)
def test_an_artifact_draws_what_the_model_does(
    models: Path, name: str, asked: tuple[str, ...], as_if: tuple[str, ...]
) -> None:
    ours = drawn("--artifact", str(models / f"{name}-drawer"), *asked)
    own = drawn("--model", str(models / name), *as_if)
    assert np.abs(ours - own).max() <= 1
    assert ours.std() > 1


def test_the_number_of_steps_is_told(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn("--artifact", str(models / "tcd-drawer"), "--steps", "2")
    said = capsys.readouterr().out
    assert "artifact" in said
    assert "steps     2" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--steps", "7"),
            "--steps must be at most 6, the most that the artifact has room for, got 7: export one with a larger",
        ),
        (("--sampler", "lcm"), "--sampler: an artifact runs as it was exported; export another with cmjax export"),
        (("--dtype", "bfloat16"), "--dtype: an artifact runs as it was exported"),
        (("--variant", "fp16"), "--variant: an artifact runs as it was exported"),
        (("--trajectory",), "--trajectory: an artifact runs as it was exported"),
        (("--labels", "z"), "--labels: unknown label 'z'"),
        (
            ("--eta", "0.5"),
            "ctm, meanflow, ddim and euler_ancestral, but the sampler is cm",
        ),
        (("--timesteps", "0", "22"), "--timesteps must be strictly decreasing"),
    ],
)
def test_what_an_artifact_cannot_do(
    models: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in complaint(capsys, "sample", "--artifact", str(models / "cm-drawer"), *options)


def test_a_model_and_an_artifact_at_once(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "sample", "--artifact", str(models / "cm-drawer"), "--model", str(models / "cm"))
    assert "argument --model: not allowed with argument --artifact" in said


def test_what_cannot_be_exported(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(models / "cm"), str(tmp_path / "out")
    for more, message in (
        (("--max-steps", "1"), "--max-steps must be at least the 2 steps of the path, got 1"),
        (("--platforms", "gpu"), "argument --platforms: invalid choice: 'gpu'"),
    ):
        assert message in complaint(capsys, "export", model, out, *more)
    (tmp_path / "letter.txt").write_text("dear")
    assert "holds other files than an artifact's" in complaint(capsys, "export", model, str(tmp_path))
    assert "no model nowhere" in complaint(capsys, "export", "nowhere", out)
    assert "is not an artifact: it has no artifact.json" in complaint(capsys, "sample", "--artifact", str(tmp_path))


@pytest.mark.slow
def test_an_artifact_is_replaced_by_another(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawer"
    for name, beside in (("cm", True), ("tcd", False)):
        where = ["--weights", "beside"] if beside else []
        assert main(["export", str(models / name), str(out), "--platforms", "cpu", *where]) == 0
        about = json.loads((out / "artifact.json").read_text())
        assert about["scheduler"]["_class_name"] == CONFIGS[name].scheduler
        assert (out / "weights.safetensors").exists() == beside
        drawn("--artifact", str(out))
