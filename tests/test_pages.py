"""README and guides: Python blocks run as they are written, a page a session; commands parse; links lead somewhere."""

from __future__ import annotations

import functools
import os
import re
import shlex
import tomllib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampler_table

import cmjax
import cmjax.recipes
from cmjax.cli import main
from cmjax.cli.parser import parse

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "notebooks"
PAGES = ("README.md", *(f"notebooks/{path.name}" for path in sorted(GUIDES.glob("*.md"))))
SOURCES = (ROOT / "cmjax").is_dir()  # not beside the tests of a wheel
CARDS = tuple(f"{path.relative_to(ROOT)}" for path in sorted(ROOT.glob("cmjax/pretrained/*/README.md")))
OTHERS = ("benchmarks/README.md", "notebooks/cifar10-cm/README.md", "CONTRIBUTING.md")
PROGRAMS = {"pip", "pytest", "ruff", "pyright", "mkdocs", ".ci/run"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [code for said, code in BLOCK.findall(read(page)) if said == language]


def commands(page: str) -> list[list[str]]:
    """The lines of a page's shell blocks, as words, one command each; what is sent to the background too."""
    lines = "\n".join(blocks(page, "sh")).splitlines()
    parts = (part for line in lines for part in re.split(r" && | &$", line.split("  #")[0]))
    return [words for part in parts if (words := shlex.split(part, comments=True))]


@functools.cache
def session(page: str) -> dict[str, Any]:
    """The names that a page leaves behind, its programs run in order."""
    names: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for program in blocks(page, "python"):
            exec(compile(program, str(ROOT / page), "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page writes goes to a folder of its own."""
    monkeypatch.chdir(tmp_path)


def finite(array: Any) -> bool:
    return bool(jnp.isfinite(array).all())


# ---- every page ------------------------------------------------------------------------------------------------------


RUN = [page for page in (*PAGES, *CARDS) if blocks(page, "python") and "devices" not in page]


@pytest.mark.parametrize("page", [pytest.param(page, marks=() if page in CARDS else pytest.mark.slow) for page in RUN])
def test_the_programs_run(page: str) -> None:
    arrays = [value for value in session(page).values() if isinstance(value, jax.Array)]
    assert all(finite(value) for value in arrays if jnp.issubdtype(value.dtype, jnp.floating))


def test_no_block_escapes() -> None:
    said = {language for page in (*PAGES, *CARDS) for language, _ in BLOCK.findall(read(page))}
    assert said <= {"python", "py", "sh", "toml", "diff"}, "other blocks are neither run nor parsed"
    for page in (*PAGES, *CARDS):
        for program in blocks(page, "py"):  # of other libraries
            compile(program, page, "exec")
    assert len(blocks("README.md", "python")) == 4
    assert len(read("README.md").splitlines()) <= 200


@pytest.mark.skipif(not SOURCES, reason="the sources are elsewhere")
@pytest.mark.parametrize("page", [*PAGES, *OTHERS, *CARDS])
def test_the_commands_parse(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for program, *words in commands(page):
        if program == "cmjax":
            parse(words)  # exits at what it does not know
        elif program == "python":
            assert (ROOT / words[0]).is_file(), words
        elif program == "cd":
            assert (ROOT / words[0]).is_dir(), words
        else:
            assert program in PROGRAMS, program


@pytest.mark.skipif(not SOURCES, reason="the sources are elsewhere")
def test_the_recipes_of_cards_are_recipes() -> None:
    found = [tomllib.loads(text) for page in (*CARDS, OTHERS[1]) for text in blocks(page, "toml")]
    assert len(found) == 4
    for recipe in found:
        cmjax.training.Recipe().changed(recipe, "a card")


@pytest.mark.skipif(not SOURCES, reason="the sources are elsewhere")
@pytest.mark.parametrize("page", [*PAGES, *OTHERS, *CARDS])
def test_links_lead_somewhere(page: str) -> None:
    text = BLOCK.sub("", read(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page} links to {target}"


def anchors(file: Path) -> set[str]:
    """Where links may lead in a page, as code hosts and the site's builder name it."""
    text = BLOCK.sub("", file.read_text(encoding="utf-8"))
    titles = (re.sub(r"[^\w\s-]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {title.strip().replace(" ", "-") for title in titles} | set(re.findall(r'<a id="(\w+)"', text))


@pytest.mark.skipif(not SOURCES, reason="the sources are elsewhere")
def test_every_guide_has_its_place() -> None:
    order = re.findall(r"\(notebooks/(\w+\.(?:md|ipynb))\)", read("README.md"))
    assert sorted(order) == sorted(path.name for path in GUIDES.iterdir() if path.suffix in (".md", ".ipynb"))
    site = re.findall(r"(\w+\.(?:md|ipynb))$", read("mkdocs.yml").split("Guides:")[1].split("API")[0], re.MULTILINE)
    assert site == order


# ---- what some of them must show -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eta_does_something() -> None:
    strip = session("README.md")["strip"]
    assert strip.shape == (11, 1, 28, 28, 1)
    assert float(jnp.abs(strip[0] - strip[10]).max()) > 0.1


@pytest.mark.slow
def test_the_steps_train() -> None:
    assert np.isfinite(float(session("README.md")["loss"]))
    trained = session("notebooks/train_a_model.md")
    assert np.isfinite(float(trained["loss"])) and np.isfinite(float(trained["linen_loss"]))


@pytest.mark.slow
def test_inpainting_keeps_what_is_known() -> None:
    names = session("notebooks/zero_shot_editing.md")
    known = ~np.broadcast_to(names["hole"], names["photo"].shape)
    np.testing.assert_allclose(np.asarray(names["restored"])[known], np.asarray(names["photo"])[known], atol=1e-6)
    assert float(jnp.abs(names["restored"] - names["photo"]).max()) > 0.01  # the hole was filled anew
    assert names["shoes"].std() > 0.1


@pytest.mark.slow
def test_many_devices_and_an_artifact() -> None:
    """The page's commands make what its programs read."""
    page = "notebooks/devices_and_hosts.md"
    export = next(words for words in commands(page) if words[:2] == ["cmjax", "export"])
    assert main(export[1:]) == 0
    names = session(page)
    assert names["images"].shape == (64, 28, 28, 1)
    assert len(names["images"].sharding.device_set) == jax.device_count()
    kernels = [leaf for leaf in jax.tree.leaves(names["spread"]) if leaf.ndim == 4]
    assert any(leaf.addressable_shards[0].data.size * jax.device_count() == leaf.size for leaf in kernels)
    np.testing.assert_allclose(names["divided"], names["images"][:8], rtol=0, atol=2e-3)
    np.testing.assert_allclose(names["images_in_chunks"][:8], names["divided"], rtol=0, atol=2e-3)
    assert names["images_in_chunks"].shape == (32, 28, 28, 1)
    live = names["generate"](
        names["tcd_model"],
        cmjax.tcd.init(names["tcd_config"], num_steps=4),
        jax.random.split(jax.random.key(0), 10),
        shape=(10, 28, 28, 1),
        cond=jnp.arange(10),
    )
    np.testing.assert_allclose(names["exported"], live, rtol=0, atol=2e-3)


def test_the_table_of_recipes_is_whole() -> None:
    text = read("notebooks/train_a_model.md")
    table = text[text.index("| recipe | what is learned") :].split("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    loras = {name for name in cmjax.recipes.built_in() if name.endswith("lora")}  # which have a page of their own
    assert set(re.findall(r"`(\w+)`", " ".join(row[1] for row in rows))) == set(cmjax.recipes.built_in()) - loras
    text = read("notebooks/train_a_lora.md")
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == loras
    for row in rows:
        for name in re.findall(r"`(\w+)`", row[3]):
            assert name in cmjax.losses.__all__, name


@pytest.mark.skipif(not SOURCES, reason="the sources are elsewhere")
def test_the_table_of_samplers_is_what_the_code_says() -> None:
    found = sampler_table.TABLE.search(read("notebooks/which_sampler.md"))
    assert found, "the page has lost the table's first line"
    assert found[0] == sampler_table.table(), "write it anew: python tests/support/sampler_table.py"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["getting_started.md", "zero_shot_editing.md"])
def test_the_commands_run(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the notebooks' folder, but for what they write."""
    for name in ("pictures", "cifar10-cm"):
        os.makedirs(tmp_path / "notebooks", exist_ok=True)
        (tmp_path / "notebooks" / name).symlink_to(GUIDES / name)
    for program, *words in commands(f"notebooks/{page}"):
        if program == "cd":
            os.chdir(words[0])
        elif program == "cmjax":
            told = ["--out", str(tmp_path / f"{len(words)}.png")] if words[0] in ("sample", "edit") else []
            assert main([*words, *told]) == 0
