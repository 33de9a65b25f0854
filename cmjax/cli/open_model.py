"""Open a model for a command that draws with it: its files are checked first, and its weights are read last."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.drawing import image_shape
from cmjax.io import Checkpoint
from cmjax.io.memory import return_freed_memory

__all__ = ["UnloadedModel", "open_model"]


class UnloadedModel(NamedTuple):
    """A model whose weights are not read yet: compiling takes memory that they can have after it.

    Attributes:
      checkpoint: the abstract model, and the config.
      load: reads the weights, and returns the checkpoint.
      shape: (H, W, C) of its images.
      classes: how many it has, or None.
      names: of the classes, if known.
    """

    checkpoint: Checkpoint
    load: Callable[[], Checkpoint]
    shape: tuple[int, int, int]
    classes: int | None
    names: tuple[str, ...] | None


def open_model(name: str, *, dtype: str, variant: str | None, pictures: bool = False) -> UnloadedModel:
    """Look a model up, and check its files.

    Args:
      name: a folder, a model of the package, or a hub id.
      dtype: what the network computes in.
      variant: which of the weights.
      pictures: whether what it draws must be pictures, of 1 or 3 channels.

    Raises:
      UsageError: there is none, or it is damaged, or of no use to commands.
    """

    def load(*, abstract: bool = False) -> Checkpoint:
        if not abstract:
            return_freed_memory()  # the compiler's, for the weights
        return cmjax.load(name, dtype=dtype, variant=variant, abstract=abstract)

    with bad_input():
        checkpoint = load(abstract=True)
        unet = checkpoint.model.config
        shape = image_shape(unet)
        classes = unet.num_class_embeds
        # Without classes, a labels.json is another tool's.
        names = None if classes is None else cmjax.io.label_names(name, variant=variant)
    if unet.class_embed_type is not None:
        raise UsageError(f"the model is conditioned on a {unet.class_embed_type}, which cannot be given here.")
    if pictures and shape[-1] not in (1, 3):
        raise UsageError(f"the model makes images of {shape[-1]} channels, but pictures have 1 or 3.")
    return UnloadedModel(checkpoint, load, shape, classes, names)
