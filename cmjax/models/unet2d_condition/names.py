"""What files of this family call things. The rule that gives all other weights their names is in `cmjax.io.weights`."""

from __future__ import annotations

__all__ = ["FOLDER", "STEM", "current"]

FOLDER = "unet"  # of a pipeline's folder
STEM = "diffusion_pytorch_model"  # of its weights' files


def current(name: str) -> str | None:
    """Map a tensor's name in a file to its name today: these never changed."""
    return name
