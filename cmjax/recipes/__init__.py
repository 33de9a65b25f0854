"""The recipes of `cmjax train` that come with the library, one short TOML file each, and how such a file is read."""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["built_in", "read"]

_FOLDER = resources.files("cmjax.recipes")


def built_in() -> dict[str, str]:
    """The recipes that come with the library, by name, with the first line of each."""
    files = sorted((file for file in _FOLDER.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): file.read_text("utf-8").splitlines()[0].lstrip("# ") for file in files}


def read(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a recipe: one of these by name, or a TOML or JSON file.

    Returns:
      What it says, for `cmjax.training.Recipe().changed`; beside a recipe's fields, it may hold the tables `network`
      (diffusers' `UNet2DModel` config) and `scheduler` (a `scheduler_config.json`).

    Raises:
      FileNotFoundError: if there is neither a recipe nor a file of that name.
      ValueError: if the file is not of its format.

    Example:
      >>> read("ect")["method"]
      'ect'
    """
    if str(source) in built_in():
        return tomllib.loads((_FOLDER / f"{source}.toml").read_text("utf-8"))
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no recipe {str(source)!r}: give a TOML file, or one of {', '.join(built_in())}."
        )
    if path.suffix == ".json":
        from cmjax.io.configs import read_json

        given = read_json(path)
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold a JSON object, but it holds a {type(given).__name__}.")
        return given
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error
