"""The layers of the library: this room reads every import, and lets it point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import cmjax

ROOT = Path(cmjax.__file__).parent
# Layer of each module or package under cmjax: imports point down.
LAYERS = {
    0: ("_ahead", "types", "schedules", "_typed", "_bounds", "_sampler_names", "_version"),
    1: ("_struct", "_numerics", "_random", "_order", "_compiled", "_cpu", "_mesh", "parameterization"),
    2: ("samplers", "guidance", "editing", "noises", "losses", "ode", "curricula"),
    3: ("latents", "published", "sampling", "search", "vp_model"),
    4: ("models",),
    5: ("io",),
    6: ("artifact", "drawing", "recipes", "training", "evaluation", "text_to_image", "lora"),
    7: ("cli", "plots", "__main__", "__init__"),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
APART = {2, 6}  # layers in which nobody imports a neighbour
HEAVY = {"flax", "optax", "chex", "PIL", "rich", "safetensors", "matplotlib", "huggingface_hub", "tokenizers"}

# The rooms of each folder from layer 4 up, floor by floor: imports point down, and neighbours never import each other.
# A folder's __init__ stands above all of its rooms.
FLOORS = {
    "sampling": ("paths", "loop"),
    "published": ("row", "adversarial consistency other_networks", "lookup", "table usage"),
    "models": (
        "config_files layers network text_cond",
        "autoencoder_kl autoencoder_tiny clip lora unet2d unet2d_condition",
        "families original_names remat tensor_sharding two_times",
    ),
    "models/autoencoder_kl": ("names", "config", "network"),
    "models/autoencoder_tiny": ("names", "config", "network"),
    "models/clip": ("names", "config preprocessing", "transformer", "network vision"),
    "models/unet2d_condition": ("names", "config", "conditions", "network"),
    "models/lora": ("factors", "adapted lora"),
    "models/layers": (
        "activation division dropout initial layout remat resample shapes",
        "linear long_attention on_cpu",
        "convolution embeddings norm",
        "attention resnet",
        "transformer",
    ),
    "models/unet2d": ("block_types names", "config", "blocks", "k_blocks skip_blocks", "network"),
    "io": (
        "atomic memory open_picture torch_files",
        "configs images pictures safetensors_files weights",
        "assembly folder image_sets pieces",
        "captions lora_files parts single_files",
        "captioned hub",
        "embeddings locate",
        "class_names digests",
        "checkpoint",
        "other_folders",
    ),
    "io/captioned": ("source", "folders parquet tars", "opening"),
    "io/lora_files": ("assemble words", "reader writer"),
    "io/single_files": (
        "other_kinds published shapes",
        "consistency_models kinds",
        "stable_diffusion",
        "stable_diffusion_writing",
    ),
    "io/torch_files": ("pickles", "archives", "reader"),
    "artifact": ("program", "drawer", "files"),
    "drawing": ("devices hosts", "batches", "grids shards"),
    "lora": ("_checks parts published", "recommended resolve scales", "attach extract files merge new"),
    "recipes": (),
    "text_to_image": (
        "buckets tiles tokenizer_files",
        "autoencoder tokenizer",
        "autoencoder_folder clip_vocabulary fit windows",
        "clip pipeline sources",
        "encoding",
        "latent_cache",
        "latent_writing",
        "captioned draw embeddings inpaint opening told",
        "folders",
        "export",
    ),
    "training": ("hosts log methods", "recipe", "data step", "checkpoints", "loop"),
    "training/methods": (
        "base guidance",
        "autoencoder consistency_training diffusion of_vp_teacher two_times",
        "distillation matching vp_distillation",
    ),
    "evaluation": ("features manifold split statistics weights", "classifier metrics text", "pictograms", "extractors"),
    "cli": (
        "compile_cache errors help_texts options",
        "lora_option model_parts recommended",
        "draw labels open_model output published parser processes run_config sampler_path",
        "open_artifact prompts text_data training_run",
        "train_autoencoder train_text",
        "open_text_artifact",
        "convert edit evaluate export inspect lora sample train",
    ),
    "cli/options": ("field read", "shared", "sample edit train evaluate lora files"),
    "cli/edit": ("inputs interpolate outputs", "tasks", "walks"),
    "cli/evaluate": ("inputs", "measure report text_inputs", "text_measure", "text_report", "texts"),
}


@cache
def imports(file: Path) -> set[str]:
    """Everything that a file imports, as dotted names: on import or later, or for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file}: a relative import hides where it points"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = dict.fromkeys(sorted(ROOT.rglob("*.py")))  # in order, and quick to look up


def target(name: str) -> Path | None:
    """The file that an imported name is in; None for one outside of cmjax."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.parent.joinpath(*parts[:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file in FILES:
                return file
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in LAYER, f"{part} has no layer yet: give it one"
    for name in imports(file):
        top, _, rest = name.partition(".")
        assert not (LAYER[part] <= 3 and top in HEAVY), f"{part} imports {name}"
        assert not (part == "schedules" and top == "jax")
        assert not (part == "models" and rest.startswith("samplers")), f"{part} imports {name}"
        other = rest.split(".")[0]
        if top == "cmjax" and other in LAYER and other != part:
            below = LAYER[other] < LAYER[part] or (LAYER[other] == LAYER[part] and LAYER[part] not in APART)
            assert below, f"{part} imports {name}"


def high_folders() -> list[str]:
    folders = {file.parent.relative_to(ROOT) for file in FILES} - {Path()}
    return sorted(str(folder) for folder in folders if LAYER.get(folder.parts[0], 4) >= 4)


@pytest.mark.parametrize("said", high_folders())
def test_within_a_folder_imports_point_down(said: str) -> None:
    assert said in FLOORS, f"{said} has no floors yet: say which of its rooms stand on which in FLOORS"
    folder = ROOT / said
    floor = {name: i for i, names in enumerate(FLOORS[said]) for name in names.split()}
    for file in FILES:
        if folder not in file.parents or file == folder / "__init__.py":
            continue
        room = file.relative_to(folder).parts[0].removesuffix(".py")
        assert room in floor, f"{said}/{room} has no floor yet: give it one in FLOORS"
        for name in imports(file):
            found = target(name)
            assert found != folder / "__init__.py", f"{said}/{room} imports {name}, which stands above it"
            if found and folder in found.parents:
                other = found.relative_to(folder).parts[0].removesuffix(".py")
                assert other == room or floor[other] < floor[room], f"{said}/{room} imports {name}"


def test_nothing_imports_in_a_circle() -> None:
    def visit(file: Path, above: tuple[Path, ...]) -> None:
        assert file not in above, f"{' -> '.join(str(f.relative_to(ROOT)) for f in (*above, file))}"
        if file not in done:
            for other in {target(name) for name in imports(file) if name.split(".")[0] == "cmjax"} - {None, file}:
                visit(other, (*above, file))
            done.add(file)

    done: set[Path] = set()
    for file in FILES:
        visit(file, ())


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
    modules = "cm tcd lcm samplers schedules guidance editing noises latents ode losses curricula models io"
    promised = f"{verbs} {more} {modules} Prediction Trajectory".split()
    for name in promised:
        assert getattr(cmjax, name) is not None
        assert name in dir(cmjax)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        cmjax.sampel  # noqa: B018
