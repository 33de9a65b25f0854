"""The families of networks: one table from the class name in a config.json to everything that reading and writing need.

A new family is a folder beside this file, with `config`, `network` and `names` like the others, and a row here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from cmjax.models import autoencoder_kl, autoencoder_tiny, clip, unet2d, unet2d_condition

__all__ = ["FAMILIES", "Family", "family_of", "read_network_config"]


@dataclasses.dataclass(frozen=True)
class Family:
    """What is known of one kind of network.

    Args:
      class_name: of a config.json, and of a pipeline's model_index.json.
      config: the frozen dataclass of its config.json, with `from_dict` and `to_dict`.
      network: the module, made by `network(config, rngs=rngs, dtype=dtype)`; it keeps `config`.
      folder: its usual name in a pipeline's folder.
      stem: what the names of its weights' files begin with.
      current: maps a tensor's name in a file, old or new, to its name today; to None for a tensor to ignore.
      library: of the class, for model_index.json.
      is_model: whether a folder with this network alone is a model that `cmjax.load` reads.
      others: further class names that are read as this family. Its configs then say which one they are, as their
        `class_name`, and are corrected by what a file holds, by `adapted(names)`.
    """

    class_name: str
    config: Any
    network: type[nnx.Module]
    folder: str
    stem: str
    current: Callable[[str], str | None]
    library: str = "diffusers"
    is_model: bool = True
    others: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every class that is read as this family."""
        return (self.class_name, *self.others)

    def class_of(self, config: Any) -> str:
        """Name the class that a config of this family describes."""
        return config.class_name if self.others else self.class_name

    def adapted(self, config: Any, names: Iterable[str]) -> Any:
        """Correct a config by the names of a file's tensors, where its class alone does not say all."""
        return config.adapted(names) if self.others else config


FAMILIES = [
    Family(
        "UNet2DModel",
        config=unet2d.UNetConfig,
        network=unet2d.UNet,
        folder=unet2d.names.FOLDER,
        stem=unet2d.names.STEM,
        current=unet2d.names.current,
    ),
    # The parts of a text-to-image model. `cmjax.load` does not read such folders yet.
    Family(
        "UNet2DConditionModel",
        config=unet2d_condition.UNetConditionConfig,
        network=unet2d_condition.UNetCondition,
        folder=unet2d_condition.names.FOLDER,
        stem=unet2d_condition.names.STEM,
        current=unet2d_condition.names.current,
        is_model=False,
    ),
    Family(
        "AutoencoderKL",
        config=autoencoder_kl.AutoencoderConfig,
        network=autoencoder_kl.Autoencoder,
        folder=autoencoder_kl.names.FOLDER,
        stem=autoencoder_kl.names.STEM,
        current=autoencoder_kl.names.current,
        is_model=False,
    ),
    Family(
        "AutoencoderTiny",
        config=autoencoder_tiny.AutoencoderTinyConfig,
        network=autoencoder_tiny.AutoencoderTiny,
        folder=autoencoder_tiny.names.FOLDER,
        stem=autoencoder_tiny.names.STEM,
        current=autoencoder_tiny.names.current,
        is_model=False,
    ),
    Family(
        clip.names.CLASSES[0],
        others=clip.names.CLASSES[1:],
        config=clip.TextConfig,
        network=clip.TextEncoder,
        folder=clip.names.FOLDER,
        stem=clip.names.STEM,
        current=clip.names.current,
        library="transformers",
        is_model=False,
    ),
    Family(
        clip.names.VISION_CLASSES[0],
        others=clip.names.VISION_CLASSES[1:],
        config=clip.VisionConfig,
        network=clip.VisionEncoder,
        folder=clip.names.VISION_FOLDER,
        stem=clip.names.STEM,
        current=clip.names.current_vision,
        library="transformers",
        is_model=False,
    ),
]


def family_of(module_or_config: Any) -> Family:
    """Find the family of a network's module or config.

    Raises:
      TypeError: it is of no family.

    Example:
      >>> family_of(unet2d.UNetConfig()).class_name
      'UNet2DModel'
    """
    for family in FAMILIES:
        if isinstance(module_or_config, family.config | family.network):
            return family
    known = " or a ".join(f"cmjax.models.{family.network.__name__}" for family in FAMILIES if family.is_model)
    raise TypeError(f"model must be a {known} or from_nnx of one, got {type(module_or_config).__name__}.")


def read_network_config(content: Any) -> Any:
    """Read the content of a network's config.json, by the class that it names.

    Args:
      content: what the file holds. One that names no class is read as a `UNet2DModel`'s.

    Returns:
      The config of the family; only of one that is a model by itself (`is_model`).

    Raises:
      ValueError: it is no JSON object, for a class that is none of `FAMILIES`, or not what that class understands.
    """
    default = FAMILIES[0].class_name
    name = content.get("_class_name", default) if isinstance(content, Mapping) else default
    models = [family for family in FAMILIES if family.is_model]
    for family in models:
        if family.class_name == name:
            return family.config.from_dict(content)
    if name == "UNet2DConditionModel":
        raise ValueError(
            f"the network's config.json is for {name}, which draws what a text says: load it with "
            "cmjax.text_to_image.load, or draw with cmjax sample --prompt TEXT."
        )
    known = ", ".join(family.class_name for family in models)
    raise ValueError(f"the network's config.json is for {name}; cmjax reads {known}.")
