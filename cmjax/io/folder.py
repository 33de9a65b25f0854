"""A model's folder in diffusers' layout: which part of it is the network, and what its configs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmjax.io.configs import read_config, read_json
from cmjax.models.families import FAMILIES, Family, read_network_config

__all__ = [
    "INDEX",
    "check_layout",
    "folder_of",
    "named_parts",
    "network_folder",
    "network_part",
    "read_configs",
    "refuse_other_files",
]

INDEX = "model_index.json"


def network_part(folder: Path) -> Path:
    """Find the part of a model's folder that is the network: by its model_index.json, else by its usual name.

    Returns:
      The part, such as unet/; it is there unless the folder has no network of any family.
    """
    usual = [family.folder for family in FAMILIES if family.is_model]
    parts = [folder / name for name in (*named_parts(folder), *usual)]
    return next((part for part in parts if (part / "config.json").is_file()), parts[0])


def named_parts(folder: Path) -> dict[str, Family]:
    """Read which parts of a model's folder its model_index.json says are networks, and of which family."""
    said = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    return {
        part: family
        for part, entry in (said.items() if isinstance(said, dict) else ())
        for family in FAMILIES
        if family.is_model and isinstance(entry, list) and entry[1:] == [family.class_name] and "/" not in part
    }


def network_folder(folder: Path) -> Path:
    """Find the folder of a network's files: a part of a model's folder, or the folder itself."""
    part = network_part(folder)
    return part if (part / "config.json").is_file() else folder


def read_configs(folder: Path) -> tuple[Any, Any]:
    """Read the configs of a model's network and sampler."""
    network = read_network_config(read_json(network_part(folder) / "config.json"))
    try:
        return network, read_config(folder / "scheduler")
    except ValueError as error:
        raise ValueError(f"{error} The network alone: cmjax.io.load_unet.") from error


def folder_of(file: Path) -> Path | None:
    """Find the model's folder to which a file of a network belongs, or None."""
    folder = file.parent.parent
    is_model = network_part(folder) == file.parent and all((folder / part).is_file() for part in _configs(folder))
    return folder if is_model else None


def check_layout(folder: Path) -> None:
    """Name the first missing file of a model's folder, and the kind of the folder if it is recognized."""
    for part in _configs(folder):
        if not (folder / part).is_file():
            raise FileNotFoundError(
                f"{folder} has no {part}: a model's folder holds {network_part(folder).name}/ and scheduler/, as "
                f"diffusers writes it.{_kind_of(folder)}"
            )


def _kind_of(folder: Path) -> str:
    """Describe a folder of another kind by its own files."""
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            said = read_json(folder / name)
            kind = said.get("_class_name") if isinstance(said, dict) else None
            return f" Its {name} is for {kind}." if isinstance(kind, str) else ""
    return ""


def refuse_other_files(path: Path) -> None:
    """Refuse a folder that holds something other than a model.

    Raises:
      FileExistsError: it does.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / INDEX).exists():
        raise FileExistsError(f"{path} holds other files than a model's; choose a new or empty folder.")


def _configs(folder: Path) -> tuple[str, str]:
    """The config files of a model's folder, by their names in it."""
    return f"{network_part(folder).name}/config.json", "scheduler/scheduler_config.json"
