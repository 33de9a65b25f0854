"""The settings that a LoRA's file recommends, in the texts of its header."""

from __future__ import annotations

import json
from typing import Any

from cmjax._sampler_names import SAMPLERS
from cmjax.lora._checks import refuse_no_lora
from cmjax.models.lora import LoRA
from cmjax.published import Published

__all__ = ["recommend", "recommended"]

_KEY = "cmjax.recommended"
_KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "base": (str,),
    "sampler": (str,),
    "steps": (int,),
    "timesteps": (list, type(None)),
    "eta": (int, float, type(None)),
    "guidance": (int, float, type(None)),
}


def recommend(row: Published) -> dict[str, str]:
    """Write settings as metadata, for `write`: `cmjax sample --lora` takes them where nothing else is asked for.

    Args:
      row: of which title, base, sampler, steps, timesteps, eta and guidance count.

    Returns:
      One text by its name.

    Example:
      >>> row = Published("a fox", "Stable Diffusion 1", "", sampler="tcd", steps=4, eta=0.3)
      >>> recommended(LoRA({}, tuple(recommend(row).items()))).settings
      'tcd, 4 steps, eta 0.3, no guidance'
    """
    settings = {name: getattr(row, name) for name in _KINDS}
    return {_KEY: json.dumps({name: value for name, value in settings.items() if value is not None})}


def recommended(lora: LoRA) -> Published | None:
    """Read the settings that a LoRA's file recommends; None where it says nothing.

    Args:
      lora: from `read`.

    Raises:
      ValueError: its header holds something else than such settings.
      TypeError: lora is none.
    """
    refuse_no_lora(lora)
    text = dict(lora.metadata).get(_KEY)
    if text is None:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not _are_settings(said):
        raise ValueError(f"the LoRA's header must hold settings as {_KEY}, a JSON object, got {text!r:.80}.")
    known = {name: value for name, value in said.items() if name in _KINDS}
    if (path := known.get("timesteps")) is not None:
        known["timesteps"] = tuple(path)
    return Published(**{"title": "the LoRA", "base": "", **known}, repo_id="")


def _are_settings(said: dict[str, Any]) -> bool:
    kinds = (type(said[name]) in kinds for name, kinds in _KINDS.items() if name in said)
    path = said.get("timesteps") or [0]
    return (
        all(kinds)
        and all(type(one) in (int, float) for one in path)
        and said.get("sampler", "tcd") in SAMPLERS
        and said.get("steps", 1) >= 1
    )
