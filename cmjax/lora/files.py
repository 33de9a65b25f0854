"""LoRAs in files: `read` and `write`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmjax.io import hub
from cmjax.io.locate import LORA_FILE, embedded_folder, embedded_loras
from cmjax.io.lora_files import read_lora, write_lora
from cmjax.lora._checks import refuse_no_lora
from cmjax.models.lora import LoRA

__all__ = ["read", "write"]

# What programs call the one file of a repository or folder, the likeliest first.
_USUAL = (LORA_FILE, "adapter_model.safetensors", "pytorch_lora_weights.bin")


def read(path_or_repo_id: str | Path, weight_name: str | None = None, *, revision: str | None = None) -> LoRA:
    """Read a LoRA, in any published form.

    Args:
      path_or_repo_id: a file, a folder, a LoRA of the package (`"emoji-ink"`), a hub id (owner/name), or a file of one
        (owner/name/file.safetensors).
      weight_name: the file in the folder or repository; None for its only one.
      revision: a branch, tag or commit of the hub's repository.

    Returns:
      The LoRA. Its modules have the file's names until `merge`, `attach` or `resolve` finds them in a model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, holds no LoRA, or holds tensors that belong to none; the message lists them.
      TypeError: path_or_repo_id is neither text nor a path.
      ModuleNotFoundError: the name is a hub id, and huggingface_hub is not installed.

    Example:
      >>> read("emoji-ink").ranks
      (4,)
      >>> read("style.safetensors")
      Traceback (most recent call last):
      FileNotFoundError: there is no LoRA style.safetensors: give a file, a folder, or a hub id (owner/name).
    """
    return read_lora(_locate(path_or_repo_id, weight_name, revision))


def write(lora: LoRA, path: str | Path, style: str = "peft", *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a LoRA as a file that diffusers and the common user interfaces load.

    Args:
      lora: one that is resolved (`resolve`), since files name modules.
      path: a .safetensors file; it is replaced in one step.
      style: "peft", as diffusers writes today, or "kohya", which other programs read too, and which has all forms.
      metadata: texts for the file's header.

    Raises:
      ValueError: there is no such style, path does not end in .safetensors, the LoRA is empty, modules have names of no
        model, or the style has no such form.
      TypeError: lora is none.
      OSError: it cannot be written.

    Differs from diffusers: each alpha is written as the rank, with alpha / rank in the second factor, since several
    programs read only one alpha a file. Where ranks differ, "kohya" has no alphas, which all take for the ranks.
    """
    refuse_no_lora(lora)
    if not isinstance(path, str | Path):
        raise TypeError(f"path must name a file, got a {type(path).__name__}.")
    write_lora(lora, path, style=style, metadata=metadata)


def _locate(path_or_repo_id: str | Path, weight_name: str | None, revision: str | None) -> Path:
    if not isinstance(path_or_repo_id, str | Path):
        raise TypeError(f"path_or_repo_id must be a path, a name or a hub id, got a {type(path_or_repo_id).__name__}.")
    path = Path(path_or_repo_id or "''").expanduser()
    if path.is_file():
        if weight_name is not None:
            raise ValueError(f"{path} is a file, and weight_name names one in a folder or repository.")
        return path
    name = str(path_or_repo_id)
    if not path.exists() and name in embedded_loras():
        path = embedded_folder(name)
    if path.is_dir():
        return path / _choose(name, [one.name for one in sorted(path.iterdir()) if one.is_file()], weight_name)
    owner, _, rest = name.partition("/")
    repo, _, inside = rest.partition("/")
    if inside and weight_name is None and hub.is_repo_id(f"{owner}/{repo}") and not path.parent.is_dir():
        name, weight_name = f"{owner}/{repo}", inside
    if hub.is_repo_id(name) and not path.parent.is_dir():
        chosen = weight_name or _choose(name, hub.list_files(name, revision=revision), None)
        return hub.download_file(name, chosen, revision=revision)
    raise FileNotFoundError(f"there is no LoRA {name}: give a file, a folder, or a hub id (owner/name).")


def _choose(name: str, files: list[str], weight_name: str | None) -> str:
    if weight_name is not None:
        if weight_name not in files:
            raise FileNotFoundError(f"{name} has no file {weight_name}; it has {', '.join(files) or 'none'}.")
        return weight_name
    for usual in _USUAL:
        if usual in files:
            return usual
    weights = [file for file in files if file.endswith(".safetensors")]
    if len(weights) != 1:
        if not weights:
            raise ValueError(f"{name} has no .safetensors file: give a file, or a folder with one.")
        raise ValueError(
            f"{name} has {len(weights)} .safetensors files: give the path of one, or its name as weight_name: "
            f"{', '.join(weights)}."
        )
    return weights[0]
