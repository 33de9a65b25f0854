"""What was published with the paper's checkpoints: the size of their grid, the two-step path, the classes.

Song et al. 2023 chose the middle level of each model's two-step path by search, and put it into the launch scripts of
their repository; the checkpoints on the hub do not carry it.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple

__all__ = ["PUBLISHED", "Published", "published"]


class Published(NamedTuple):
    """One checkpoint: N of its grid, the timesteps of two steps or None where none were published, and its classes."""

    num_train_timesteps: int
    timesteps: tuple[int, ...] | None
    num_classes: int | None = None


PUBLISHED = {
    "openai/diffusers-cd_imagenet64_l2": Published(40, (22, 0), 1000),
    "openai/diffusers-cd_imagenet64_lpips": Published(40, (22, 0), 1000),
    "openai/diffusers-ct_imagenet64": Published(201, (106, 0), 1000),
    "openai/diffusers-cd_bedroom256_l2": Published(40, (18, 0)),
    "openai/diffusers-cd_bedroom256_lpips": Published(40, (17, 0)),
    "openai/diffusers-ct_bedroom256": Published(151, (67, 0)),
    "openai/diffusers-cd_cat256_l2": Published(40, None),
    "openai/diffusers-cd_cat256_lpips": Published(40, None),
    "openai/diffusers-ct_cat256": Published(151, (62, 0)),
}

_BY_NAME = {name.partition("/diffusers-")[2]: entry for name, entry in PUBLISHED.items()}


def published(path_or_name: str | PurePath) -> Published | None:
    """Look a checkpoint up by its hub id, or by the name of a folder or file that was downloaded or made from it.

    Args:
      path_or_name: what `cmjax.load` or `cmjax.io.load_original` is given.

    Returns:
      The entry, or None for any other model.

    Example:
      >>> published("openai/diffusers-cd_imagenet64_l2").timesteps
      (22, 0)
      >>> published("checkpoints/diffusers-ct_cat256").num_train_timesteps
      151
      >>> published("downloads/ct_cat256.pt") == published("ct_cat256") == published("checkpoints/diffusers-ct_cat256")
      True
      >>> published("fashion-mnist-cm") is None
      True

    References:
      Song et al. 2023, section 4 (the greedy search) and their repository's scripts/launch.sh.
    """
    name = PurePath(path_or_name).name.removesuffix(".pt").removesuffix(".safetensors")
    return _BY_NAME.get(name.removeprefix("diffusers-"))
