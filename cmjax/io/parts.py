"""The parts of a text-to-image folder: networks, each in a folder of its own with its config.json and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from cmjax.io.configs import read_json, write_json
from cmjax.io.safetensors_files import write_safetensors
from cmjax.io.weights import cast, file_tensors
from cmjax.models import Network
from cmjax.models.families import FAMILIES, Family, family_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike

# What diffusers calls the parts of text-to-image models.
UNET, AUTOENCODER = "unet", "vae"
TEXT_ENCODERS, TOKENIZERS = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")

__all__ = [
    "AUTOENCODER",
    "TEXT_ENCODERS",
    "TOKENIZERS",
    "UNET",
    "family_of_part",
    "read_part_config",
    "save_part",
    "write_part",
]


def family_of_part(folder: Path) -> Family:
    """Find the family of a part by the class that its config.json names.

    Raises:
      FileNotFoundError: the part has no config.json.
      ValueError: the config.json is no JSON object, or for a class that cmjax does not read.
    """
    return _family(folder, read_json(folder / "config.json"))


def _family(folder: Path, content: Any) -> Family:
    architectures = content.get("architectures") if isinstance(content, Mapping) else None
    names = [content.get("_class_name")] if isinstance(content, Mapping) else []
    names += architectures if isinstance(architectures, list) else []
    for family in FAMILIES:
        if not set(family.class_names).isdisjoint(map(str, names)):
            return family
    said = next((name for name in names if isinstance(name, str)), "no class")
    known = ", ".join(name for family in FAMILIES for name in family.class_names)
    raise ValueError(f"{folder.name}/config.json is for {said}; cmjax reads {known}.")


def read_part_config(folder: Path) -> Any:
    """Read the config of a part.

    Raises:
      FileNotFoundError: the part has no config.json.
      ValueError: it is damaged, or of a class or with an option that cmjax does not read.
    """
    content = read_json(folder / "config.json")
    family = _family(folder, content)
    try:
        return family.config.from_dict(content)
    except ValueError as error:
        raise ValueError(f"{folder.name}/config.json: {error}") from error


def save_part(network: Network, folder: Path, *, dtype: DTypeLike | None = None) -> None:
    """Write a network as a part: config.json and weights, into a folder, which is made.

    Args:
      network: of a known family.
      folder: the part's, such as unet/; new or empty.
      dtype: of the stored weights; None keeps theirs.

    Raises:
      ValueError: a weight is infinite in dtype.
    """
    module = network.module
    write_part(module.config, file_tensors(module), folder, dtype=dtype)


def write_part(config: Any, tensors: Mapping[str, np.ndarray], folder: Path, *, dtype: DTypeLike | None = None) -> None:
    """Write a config and tensors as a part, like `save_part`.

    Args:
      config: of a known family.
      tensors: by the names of today.
      folder: the part's; new or empty.
      dtype: of the stored weights; None keeps theirs.

    Raises:
      ValueError: a weight is infinite in dtype.
    """
    if dtype is not None:
        tensors = {name: cast(name, value, jnp.dtype(dtype)) for name, value in tensors.items()}
    folder.mkdir(exist_ok=True)
    write_json(config.to_dict(), folder / "config.json")
    write_safetensors(tensors, folder / f"{family_of(config).stem}.safetensors")
