"""The table of published few-step models: every row is laid out, found, drawn by its command, and in the guide."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cmjax
from cmjax.cli import main
from cmjax.cli.errors import UsageError
from cmjax.cli.parser import parse
from cmjax.cli.prompts import four_steps
from cmjax.cli.published import published_settings
from cmjax.cli.sampler_path import SamplerSetup, choose_sampler
from cmjax.io import Checkpoint
from cmjax.published import LEVELS, PUBLISHED, Published, find, matching, program
from cmjax.samplers import ddim, euler

GUIDE = Path(__file__).parents[1] / "notebooks" / "few_step_models.md"
XL = euler.Config.of(LEVELS)  # the scheduler file of Stable Diffusion XL
TITLES = [row.title for row in PUBLISHED]
rows = pytest.mark.parametrize("row", PUBLISHED, ids=TITLES)


def chosen(words: str, config: Any = XL) -> tuple[SamplerSetup, str]:
    """What `cmjax` plans, with a model of which only the scheduler's config is there."""
    options: Any = parse(shlex.split(words)[1:])
    options, note = published_settings(options)
    return choose_sampler(Checkpoint(lambda x, t, c: x, config), options.model, options, four_steps), note  # pyright: ignore


# ---- the rows --------------------------------------------------------------------------------------------------------


@rows
def test_a_row_is_laid_out_as_it_says(row: Published) -> None:
    state = row.state()
    assert state.num_steps == row.steps
    if row.timesteps is not None:
        np.testing.assert_allclose(state.timesteps, row.timesteps, rtol=1e-6)
    if row.spacing == "trailing":
        n, told = row.steps, np.asarray(state.timesteps)
        if row.sampler == "flow":
            assert told[0] == 1000
        else:
            np.testing.assert_array_equal(told, np.round(np.arange(1000, 0, -1000 / n)[:n]) - 1)
    assert row.licence and row.source and row.kind in ("lora", "unet", "model")
    assert not row.is_drawn or row.kind == "model" or row.base in cmjax.published.BASES


@rows
def test_a_row_is_found_by_its_names(row: Published) -> None:
    for name in row.files or [row.repo_id]:
        assert find(f"downloads/{name}") is row and find(row.repo_id, name) is row
    assert row.files or find(f"{row.repo_id}/pytorch_lora_weights.safetensors") is row
    assert matching(row.title) == (row,)
    assert find(row.repo_id, kinds=()) is None


@rows
def test_the_program_and_the_command_have_the_path_of_the_row(row: Published) -> None:
    names = {"pipe": SimpleNamespace(config=XL), "cmjax": cmjax, "dataclasses": dataclasses}
    compile(program(row), "program", "exec")
    exec("\n".join(line for line in program(row).splitlines() if line.startswith(("config", "state"))), names)
    assert len(program(row).splitlines()) <= 7
    if (words := cmjax.published.command(row)) is None:
        assert not row.is_drawn
        planned = row.state()
        default = None
    else:
        setup, note = chosen(words)
        planned, default = setup.state, XL
        assert setup.sampler == row.sampler and row.settings in note
    for state in (planned, names["state"]):
        for got, wanted in zip(
            *(cmjax.artifact.tables(one).values() for one in (state, row.state(default))), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


def test_titles_and_files_are_of_one_row_each() -> None:
    files = [(row.repo_id, file) for row in PUBLISHED for file in row.files or ("",)]
    assert len(set(TITLES)) == len(TITLES) and len(set(files)) == len(files)
    assert all(row.kind == "lora" for row in cmjax.lora.PUBLISHED)
    assert len(cmjax.lora.PUBLISHED) == sum(row.kind == "lora" for row in PUBLISHED)


@pytest.mark.parametrize(
    "name", ["style.safetensors", "emoji", "fashion-mnist-cm", "ByteDance/Hyper-SD", "sdxl-turbo/style.safetensors", ""]
)
def test_other_names_are_no_rows(name: str) -> None:
    assert find(name) is None


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_what_is_asked_for_of_a_model_goes_first() -> None:
    turbo, told = "cmjax sample --prompt a --model sdxl-turbo", lambda setup: setup.state.timesteps.tolist()
    setup, note = chosen(turbo)
    assert note == " (published settings of SDXL-Turbo: euler_ancestral trailing, 1 step, no guidance)"
    assert told(setup) == [999] and setup.note == ""
    assert told(chosen(f"{turbo} --steps 2")[0]) == [999, 499]
    assert told(chosen(f"{turbo} --timesteps 900")[0]) == [900]
    assert chosen(f"{turbo} --sampler dpmpp")[0].state.num_steps == 4
    setup, note = chosen("cmjax sample --prompt a --model mine --steps 3")
    assert (note, setup.sampler, told(setup)) == ("", "euler", [667, 334, 1])
    assert chosen("cmjax sample --prompt a --model mine")[0].state.num_steps == 25
    assert chosen(f"{turbo} --lora h1t/TCD-SDXL-LoRA")[0].sampler == "tcd"


def test_a_network_that_predicts_x0_is_known_by_its_name() -> None:
    words = "cmjax sample --prompt a --model sdxl_lightning_1step_unet_x0.safetensors --base sdxl"
    for more in ("", " --sampler ddim", " --sampler tcd --steps 1"):
        assert chosen(words + more)[0].state.prediction_type == "sample"
    assert chosen(words.replace("_x0", ""), ddim.Config.of(LEVELS))[0].state.prediction_type == "epsilon"


def test_a_network_that_is_not_here_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot draw with FLUX.1-schnell \(DiT, not part of cmjax\), but it has the"):
        chosen("cmjax sample --prompt a --model black-forest-labs/FLUX.1-schnell")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sdxl_lightning_1step_unet_x0.safetensors", "predicts x0 (sample)"),
        ("stabilityai/sdxl-turbo", "cmjax sample --model stabilityai/sdxl-turbo --dtype bfloat16 --prompt"),
        ("hyper-sdxl 8 steps, guided", "guidance=5, negative=pipe.without_text(cond)"),
        ("SANA-Sprint 1.6B", "intermediate_timesteps=1.3"),
        ("Lightning", "SDXL-Lightning 8 steps UNet"),
    ],
)
def test_inspect_shows_what_is_recommended(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--recommended", name]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_inspect_knows_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--recommended", "sdxl-turboo"]) == 2
    assert "is called 'sdxl-turboo'. The nearest names are SDXL-Turbo" in capsys.readouterr().err
    assert main(["inspect", "--recommended", "qqqq"]) == 2
    assert "Give a hub id, a file's name or a title." in capsys.readouterr().err


# ---- the guide -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not GUIDE.is_file(), reason="the sources are elsewhere")
def test_the_table_of_the_guide_is_that_of_the_code() -> None:
    assert cmjax.published.markdown() in GUIDE.read_text("utf-8"), "write it again, as CONTRIBUTING.md says"
