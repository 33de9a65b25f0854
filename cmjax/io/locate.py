"""Find a model: a local folder or file, a model in the package, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmjax.io import hub
from cmjax.io.atomic import recover_folder
from cmjax.io.pieces import of_variant

__all__ = ["LORA_FILE", "embedded_folder", "embedded_loras", "embedded_models", "resolve"]

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names the only one of a folder
_PRETRAINED = Path(__file__).parent.parent / "pretrained"


def embedded_models() -> tuple[str, ...]:
    """List the models in the package.

    Example:
      >>> "no such model" in embedded_models()
      False
    """
    return tuple(sorted(p.parent.name for p in _PRETRAINED.glob("*/model_index.json")))


def embedded_loras() -> tuple[str, ...]:
    """List the LoRAs in the package.

    Example:
      >>> embedded_loras()
      ('emoji-ink',)
    """
    return tuple(sorted(p.parent.name for p in _PRETRAINED.glob(f"*/{LORA_FILE}")))


def embedded_folder(name: str) -> Path:
    """The folder of a model or a LoRA in the package."""
    return _PRETRAINED / name


def resolve(
    path_or_name: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    whole: bool = False,
    parts: Sequence[str] | None = None,
    files: Sequence[str] | None = None,
) -> Path:
    """Find a model: a folder or file of that name, then a model in the package, then a repository on the hub.

    Args:
      path_or_name: a path, a name of `embedded_models()`, or a hub id owner/name.
      revision: the revision of the hub's repository.
      variant: the variant of the weights to download.
      whole: whether to download the parts of a text-to-image model, and not only the network that draws.
      parts: which of them; None for all.
      files: patterns of names to download, and no others; None for those of a model in diffusers' layout.

    Returns:
      The folder, or the file.

    Raises:
      FileNotFoundError: there is no such folder or model.
      ModuleNotFoundError: it looks like a hub id, and huggingface_hub is not installed.
      TypeError: path_or_name is neither a string nor a path.
      ValueError: variant is not a word, or a single file is asked for a variant or a revision.
    """
    if not isinstance(path_or_name, str | Path):
        raise TypeError(f"path_or_name must be a path, a name or a hub id, got a {type(path_or_name).__name__}.")
    of_variant("", variant)  # refuses what is no variant
    try:
        path = Path(path_or_name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise FileNotFoundError(f"no model {path_or_name}: {error}") from error
    recover_folder(path)
    if path.is_file() and (variant is not None or revision is not None):
        raise ValueError(f"{path} is a single file, which has no variant and no revision.")
    if path.is_dir() or path.is_file():
        return path
    name = str(path_or_name)
    if name in embedded_models():
        return _PRETRAINED / name
    if hub.is_repo_id(name) and not path.parent.is_dir():
        given: dict[str, Sequence[str] | None] = {"parts": parts, "files": files}
        some: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return hub.download(name, variant=variant, revision=revision, whole=whole, **some)
    if name in embedded_loras():
        raise FileNotFoundError(
            f"{name} is a LoRA, not a model: --lora, cmjax lora inspect and cmjax.lora.read take it."
        )
    raise FileNotFoundError(
        f"no model {name}: it is neither a folder here, nor one of the package's models "
        f"({', '.join(embedded_models()) or 'none'}), nor a hub id (owner/name)."
    )
