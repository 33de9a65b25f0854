"""What was published with the checkpoints, held to the guide's table and to the samplers."""

import re
from pathlib import Path

import pytest

import cmjax
from cmjax.io.single_files.published import PUBLISHED, published

PAGE = (Path(__file__).parents[2] / "notebooks" / "published_models.md").read_text(encoding="utf-8")


def rows():
    section = PAGE.split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `openai/"):
            ids, _, classes, size, path = (cell.strip() for cell in line.strip("|").split("|"))
            first, *others = re.findall(r"`([^`]+)`", ids)
            for name in (first, *(f"openai/diffusers{other}" for other in others)):
                steps = tuple(map(int, re.findall(r"\d+", path))) or None
                yield name, (int(size), steps, None if classes == "none" else int(classes))


def test_the_guide_shows_the_table():
    assert dict(rows()) == {name: tuple(entry) for name, entry in PUBLISHED.items()}
    assert len(PUBLISHED) == 9


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_paths_lie_on_their_grids(name):
    entry = published(name)
    assert entry == published(Path("somewhere") / name.partition("/")[2])
    config = cmjax.cm.CMConfig(num_train_timesteps=entry.num_train_timesteps)
    if entry.timesteps is not None:
        state = cmjax.cm.init(config, timesteps=entry.timesteps)
        assert state.num_steps == 2
        assert 1.0 < float(state.sigmas[1]) < 6.0  # as published: 1.38 ... 5.25
