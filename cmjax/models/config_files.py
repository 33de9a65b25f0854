"""A network's config.json: which keys are its options, which other tools left there, and which nobody knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["LEFT_BY_OTHERS", "options"]

# Keys that are no options of a network, by who writes them into its config.json.
LEFT_BY_OTHERS: dict[str, tuple[str, ...]] = {
    "diffusers' EMAModel.save_pretrained": (
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    ),
    "diffusers' and transformers' from_pretrained": ("quantization_config", "torch_dtype", "dtype"),
    "transformers' save_pretrained": ("architectures", "model_type", "transformers_version"),
}


def options(content: Any, class_name: str, known: Iterable[str]) -> dict[str, Any]:
    """Read the options of a network from the content of its config.json.

    Args:
      content: what the file holds. Keys that begin with an underscore are diffusers' bookkeeping, and are skipped, as
        are those of `LEFT_BY_OTHERS`, unless the network knows them.
      class_name: the class that the file must be for.
      known: the network's options.

    Raises:
      ValueError: the content is not an object, is for another class, or has an unknown option.

    Example:
      >>> options({"_class_name": "UNet2DModel", "in_channels": 3, "decay": 0.999}, "UNet2DModel", ["in_channels"])
      {'in_channels': 3}
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"the network's config.json must hold a JSON object, but it holds a {type(content).__name__}.")
    kind = content.get("_class_name", class_name)
    if kind != class_name:
        raise ValueError(f"the network's config.json is for {kind}; cmjax reads {class_name}.")
    known = set(known)
    left = {key for keys in LEFT_BY_OTHERS.values() for key in keys} - known
    given = {key: value for key, value in content.items() if not key.startswith("_") and key not in left}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"the network's config.json has unknown options: {', '.join(unknown)}.")
    return given
