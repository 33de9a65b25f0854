"""LoRAs on the command line: read them, find their modules in the model, and take the settings they were made for."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

import cmjax
from cmjax.cli.errors import bad_input
from cmjax.cli.options import PathOptions, TextOptions
from cmjax.lora import LoRA, Published

__all__ = ["NamedLoRA", "lora_rows", "merged", "published_settings", "read_loras"]

OptionsT = TypeVar("OptionsT", bound=PathOptions)


class NamedLoRA(NamedTuple):
    """A LoRA as it was asked for."""

    name: str
    lora: LoRA
    scale: float

    @property
    def digest(self) -> str:
        """The SHA-256 of its names and numbers."""
        sums = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.lora):
            sums.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}\n".encode())
            sums.update(np.ascontiguousarray(leaf).tobytes())
        return sums.hexdigest()


def read_loras(options: Any) -> tuple[NamedLoRA, ...]:
    """Read every --lora.

    Raises:
      UsageError: a file is not there, damaged, or none of a LoRA.
    """
    found = []
    for name, scale in getattr(options, "lora", None) or ():
        with bad_input("--lora"):
            lora = cmjax.lora.read(name)
        found.append(NamedLoRA(name, lora, _scale(name, scale)))
    return tuple(found)


def lora_rows(options: Any) -> tuple[tuple[str, str], ...]:
    """What is printed of every --lora: its name and scale."""
    asked = getattr(options, "lora", None) or ()
    return tuple(("lora", f"{name}, scale {_scale(name, scale):g}") for name, scale in asked)


def _scale(name: str, asked: float | None) -> float:
    """What was asked for, or else what a LoRA was published with, or else 1."""
    if asked is not None:
        return asked
    entry = cmjax.lora.published(name)
    return 1.0 if entry is None else entry.scale


def merged(pipe: Any, loras: tuple[NamedLoRA, ...], *, abstract: bool) -> Any:
    """Add LoRAs to a model that was just loaded; of an abstract one, check that they fit.

    Raises:
      UsageError: one does not fit.
    """
    for one in loras:
        with bad_input(f"--lora {one.name}"):
            cmjax.lora.resolve(one.lora, pipe)
    if abstract or not loras:
        return pipe
    with bad_input("--lora"):
        return cmjax.lora.merge(pipe, [one.lora for one in loras], [one.scale for one in loras], donate=True)


def published_settings(options: OptionsT, *, path: bool = True) -> tuple[OptionsT, str]:
    """Take the sampler and the path that a LoRA was published with, where none was asked for.

    Steps that are asked for leave the sampler as published: the model's own may be for one that was not distilled.

    Args:
      options: of a command that draws.
      path: whether the number of steps is taken too.

    Returns:
      The options, and what to say behind the number of steps.
    """
    entry = _entry(options)
    if entry is None:
        return options, ""
    asked = [name for name in ("steps", "timesteps", "sampler", "eta") if getattr(options, name, None) is not None]
    wanted: dict[str, Any] = {}
    if "sampler" not in asked:
        wanted = {"sampler": entry.sampler} | ({} if "eta" in asked else {"eta": entry.eta})
    if not asked and path:
        wanted |= {"timesteps": entry.timesteps} if entry.timesteps else {"steps": entry.steps}
    if entry.guidance is not None and getattr(options, "guidance", None) is None:
        wanted["guidance"] = entry.guidance
    return dataclasses.replace(options, **wanted), f" ({entry.title} was published for {entry.settings})"


def _entry(options: Any) -> Published | None:
    if not isinstance(options, TextOptions):
        return None
    found = [entry for name, _ in options.lora or () if (entry := cmjax.lora.published(name))]
    return found[0] if found else None
