"""The published LoRAs that make models draw in few steps: those of the table `cmjax.published`."""

from __future__ import annotations

from pathlib import PurePath

from cmjax.published import PUBLISHED as ALL
from cmjax.published import Published, find

__all__ = ["PUBLISHED", "Published", "published"]

PUBLISHED: tuple[Published, ...] = tuple(row for row in ALL if row.kind == "lora")


def published(path_or_repo_id: str | PurePath, weight_name: str | None = None) -> Published | None:
    """Look a LoRA up, by its hub id or by the name of a file or folder that was downloaded.

    Args:
      path_or_repo_id: what `read` is given.
      weight_name: as there.

    Returns:
      The row; None for any other LoRA.

    Example:
      >>> published("h1t/TCD-SDXL-LoRA").settings
      'tcd, 4 steps, eta 0.3, no guidance'
      >>> published("downloads/Hyper-SDXL-4steps-lora.safetensors").spacing
      'trailing'
      >>> published("style.safetensors") is None
      True
    """
    return find(path_or_repo_id, weight_name, kinds=("lora",))
