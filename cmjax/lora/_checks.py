"""What every function of this folder refuses."""

from __future__ import annotations

from typing import Any

from cmjax.models.lora import LoRA

__all__ = ["refuse_no_lora"]


def refuse_no_lora(lora: Any, hint: str = "") -> None:
    """Raise TypeError for what is no LoRA, such as the path of one."""
    if not isinstance(lora, LoRA):
        raise TypeError(f"lora must be a LoRA{hint}, as cmjax.lora.read returns it, got a {type(lora).__name__}.")
