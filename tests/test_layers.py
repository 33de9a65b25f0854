"""The layers of the library: this room reads every import, and lets it point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cmjax

ROOT = Path(cmjax.__file__).parent
# Layer of each module or package under cmjax. Inside layer 2 nobody imports a neighbour.
LAYERS = {
    0: ("types", "schedules", "_typed", "_bounds", "_version"),
    1: ("_struct", "_numerics", "_random", "_cpu", "_mesh", "parameterization"),
    2: ("samplers", "guidance", "editing", "latents", "losses", "ode", "curricula"),
    3: ("paths", "sampling", "search", "vp_model"),
    4: ("models", "io", "artifact", "drawing", "recipes", "training", "evaluation"),
    5: ("cli", "__main__", "plots", "__init__"),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
HEAVY = {"flax", "optax", "chex", "PIL", "rich", "safetensors", "matplotlib", "huggingface_hub"}


def imports(file: Path) -> set[str]:
    """Everything that runs on import or later, as dotted names; what only type checkers read is left out."""
    tree = ast.parse(file.read_text())
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) not in checked and isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif id(node) not in checked and isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file}: a relative import hides where it points"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in LAYER, f"{part} has no layer yet: give it one"
    for name in imports(file):
        top, _, rest = name.partition(".")
        assert not (LAYER[part] <= 3 and top in HEAVY), f"{part} imports {name}"
        assert top != "chex", "chex is for the tests alone"
        assert not (part == "schedules" and top == "jax")
        target = rest.split(".")[0]
        if top == "cmjax" and target in LAYER and target != part:
            below = LAYER[target] < LAYER[part] or LAYER[target] == LAYER[part] != 2
            assert below, f"{part} imports {name}"


def test_importing_the_core_imports_nothing_heavy() -> None:
    code = f"import sys, cmjax; cmjax.generate, cmjax.guidance, cmjax.editing; print({HEAVY!r} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.strip() == "set()"


def test_every_module_says_what_is_public() -> None:
    for file in ROOT.rglob("*.py"):
        if file.name != "__main__.py":
            assert "__all__" in file.read_text(), file


def test_the_public_names() -> None:
    verbs = "prior add_noise model_input step skip pad sample trajectory generate load save consistency_fn"
    more = "denoiser_fn search_timesteps"
    modules = "cm tcd lcm samplers schedules guidance editing latents ode losses curricula models io"
    promised = f"{verbs} {more} {modules} Prediction Trajectory".split()
    for name in promised:
        assert getattr(cmjax, name) is not None
        assert name in dir(cmjax)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        cmjax.sampel  # noqa: B018
