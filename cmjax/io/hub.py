"""Models from the Hugging Face hub. Only this module uses the optional package huggingface_hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cmjax.io.folder import named_parts
from cmjax.io.parts import AUTOENCODER, TEXT_ENCODERS, TOKENIZERS, UNET
from cmjax.io.pieces import of_variant
from cmjax.models.families import FAMILIES, Family

_PARTS = (*TOKENIZERS, UNET, AUTOENCODER, *TEXT_ENCODERS)

__all__ = ["download", "download_file", "is_repo_id", "list_files", "patterns", "whole_patterns"]


def patterns(variant: str | None = None, parts: Mapping[str, Family] | None = None) -> list[str]:
    """List the files to download from a repository, which may hold gigabytes of others.

    Args:
      variant: the variant of the weights.
      parts: the folders of its networks, and their families; None for the usual ones.

    Raises:
      ValueError: variant is not a word.
    """
    found = ["model_index.json", "labels.json", "scheduler/*.json", "config.json", "scheduler_config.json"]
    parts = {family.folder: family for family in FAMILIES if family.is_model} if parts is None else parts
    for part, family in parts.items():
        weights = of_variant(family.stem, variant)
        found += [f"{part}/*.json", f"{family.stem}.safetensors.index*.json"]
        found += [f"{at}{weights}{end}" for at in ("", f"{part}/") for end in _ENDS]
    return list(dict.fromkeys(found))


def whole_patterns(variant: str | None = None, parts: Sequence[str] = _PARTS) -> list[str]:
    """List the files of a text-to-image model to download: of these parts, and of no other format.

    Args:
      variant: the variant of the weights.
      parts: their names; all by default.

    Raises:
      ValueError: variant is not a word.
    """
    found = ["model_index.json", "scheduler/*.json"]
    for part in parts:
        if part in TOKENIZERS:
            found += [f"{part}/*.json", f"{part}/merges.txt"]
            continue
        stem = of_variant("model" if part in TEXT_ENCODERS else "diffusion_pytorch_model", variant)
        found += [f"{part}/*.json", *(f"{part}/{stem}{end}" for end in _ENDS)]
    return found


_ENDS = (".safetensors", "-*.safetensors")  # whole or in pieces


def is_repo_id(name: str) -> bool:
    """Check whether `name` has the form of a hub id, owner/name, by the hub's own rules.

    Example:
      >>> is_repo_id("openai/diffusers-cd_imagenet64_l2"), is_repo_id("./checkpoints/mine"), is_repo_id("mine")
      (True, False, False)
    """
    word = r"[A-Za-z0-9]([\w.-]*\w)?"
    odd = "--" in name or ".." in name or name.endswith(".git")
    return not odd and len(name) <= 96 and re.fullmatch(f"{word}/{word}", name, re.ASCII) is not None


def list_files(repo_id: str, *, revision: str | None = None) -> list[str]:
    """List the files of a repository; without a network, those in huggingface_hub's cache.

    Raises:
      ModuleNotFoundError, FileNotFoundError: as for `download`.
    """
    with _hub_errors(repo_id):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            return sorted(HfApi().list_repo_files(repo_id, revision=revision))
        except (OfflineModeIsEnabled, *_unreachable()) as error:
            try:
                folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from None
            return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def download_file(repo_id: str, name: str, *, revision: str | None = None) -> Path:
    """Download one file of a repository, or find it in huggingface_hub's cache.

    Raises:
      ModuleNotFoundError, FileNotFoundError: as for `download`.
    """
    with _hub_errors(repo_id):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo_id, name, revision=revision))


def download(
    repo_id: str,
    *,
    variant: str | None = None,
    revision: str | None = None,
    whole: bool = False,
    parts: Sequence[str] = _PARTS,
    files: Sequence[str] | None = None,
) -> Path:
    """Download a repository's model, or find it in huggingface_hub's cache.

    Args:
      repo_id: owner/name.
      variant: the variant of the weights.
      revision: a branch, tag or commit; None for the newest.
      whole: whether to download the parts of a text-to-image model, and not only the network that draws.
      parts: which of them.
      files: patterns of names, for a repository that is no model in diffusers' layout: those and no others.

    Returns:
      The folder, in diffusers layout.

    Raises:
      ModuleNotFoundError: huggingface_hub is not installed.
      FileNotFoundError: the hub has no such repository, or it cannot be reached and nothing is cached.
    """
    with _hub_errors(repo_id):
        from huggingface_hub import snapshot_download

        wanted = whole_patterns(variant, parts) if whole else patterns(variant)
        wanted = wanted if files is None else list(files)
        path = Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))
        if whole or files is not None:
            return path
        odd = {part: family for part, family in named_parts(path).items() if part != family.folder}
        if odd:  # its model_index.json gives them other names
            snapshot_download(repo_id, revision=revision, allow_patterns=patterns(variant, odd))
        return path


def _unreachable() -> tuple[type[Exception], ...]:
    """What the hub's client raises without a network: errors of requests, or of httpx since its version 1."""
    try:
        from httpx import TransportError  # pyright: ignore[reportMissingImports]
    except ImportError:
        return (ConnectionError,)
    return (ConnectionError, TransportError)


@contextlib.contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Say of the hub's errors what to do."""
    try:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{repo_id} is not a folder here, and looking on the hub takes huggingface_hub: pip install 'cmjax[hub]'."
        ) from error
    try:
        yield
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"the hub has no repository {repo_id} (or it is private, or needs a login).") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, *_unreachable()) as error:
        reason = str(error).strip().removeprefix("Got: ").splitlines()  # as huggingface_hub begins when it is offline
        reason = reason[0] if reason else type(error).__name__
        raise FileNotFoundError(
            f"{repo_id} is not a folder here, and the hub could not be read: {reason.rstrip('.')}. Without a network, "
            "give the path of a folder that was downloaded elsewhere."
        ) from error
