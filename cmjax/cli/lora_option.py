"""LoRAs on the command line: read them, and find their modules in the model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import cmjax
from cmjax.cli.errors import bad_input

if TYPE_CHECKING:  # LoRAs load where one is given
    from cmjax.lora import LoRA

__all__ = ["NamedLoRA", "lora_rows", "merged", "read_loras"]


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
