"""The former name of `cmjax.noises`, kept for two minor releases. Latents are what an autoencoder makes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from cmjax import noises

if TYPE_CHECKING:
    from cmjax.noises import slerp, slerp_grid, slerp_path

__all__ = ["slerp", "slerp_grid", "slerp_path"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cmjax.latents' has no attribute {name!r}")
    warnings.warn(f"cmjax.latents is now cmjax.noises: use cmjax.noises.{name}.", DeprecationWarning, stacklevel=2)
    return getattr(noises, name)


def __dir__() -> list[str]:
    return sorted(__all__)
