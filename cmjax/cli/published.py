"""The settings that a model or LoRA was published with, taken where nothing else is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, TypeVar

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.lora_option import read_loras
from cmjax.cli.options import PathOptions, TextOptions
from cmjax.published import Published

__all__ = ["published_settings"]

OptionsT = TypeVar("OptionsT", bound=PathOptions)


def published_settings(options: OptionsT, *, path: bool = True, draws: bool = True) -> tuple[OptionsT, str]:
    """Take the sampler and the path that a LoRA, or else the model, was published with, where none was asked for.

    Steps that are asked for leave the sampler as published: the model's own may be for one that was not distilled.

    Args:
      options: of a command that draws.
      path: whether the number of steps is taken too.
      draws: whether the command draws, so that a network that cmjax lacks is refused.

    Returns:
      The options, and what to say behind the number of steps.

    Raises:
      UsageError: cmjax cannot draw with it.
    """
    row = _row(options)
    if row is None or not (row.is_drawn or draws):
        return options, ""
    if not row.is_drawn:
        raise UsageError(
            f"cmjax cannot draw with {row.title} ({row.network}), but it has the sampler: cmjax inspect --recommended "
            f"{row.title!r}."
        )
    asked = {name for name in ("steps", "timesteps", "sampler", "eta") if getattr(options, name, None) is not None}
    wanted: dict[str, Any] = {"published": row}
    if "sampler" not in asked:
        wanted |= {"sampler": row.sampler} | ({} if "eta" in asked else {"eta": row.eta})
        if path and not asked & {"steps", "timesteps"}:
            wanted |= {"timesteps": row.timesteps} if row.timesteps else {"steps": row.steps}
    if row.guidance is not None and isinstance(options, TextOptions) and options.guidance is None:
        wanted["guidance"] = row.guidance
    kind = "published settings" if row.repo_id else "settings"  # or in the header of a LoRA's file
    return dataclasses.replace(options, **wanted), f" ({kind} of {row.title}: {row.settings})"


def _row(options: Any) -> Published | None:
    """The first LoRA's row, in the table or in its own file, or else the model's."""
    if getattr(options, "artifact", None) is not None:
        return None
    names = [name for name, _ in getattr(options, "lora", None) or ()]
    for name in names:
        if row := cmjax.published.find(name, kinds=("lora",)):
            return row
    with contextlib.suppress(UsageError):  # which is said where they are read to draw, after what is said of prompts
        for name, one in zip(names, read_loras(options), strict=True):
            with bad_input(f"--lora {name}"):
                if row := cmjax.lora.recommended(one.lora):
                    return row
    return cmjax.published.find(options.model, kinds=("unet", "model"))
