"""Models from the Hugging Face hub: the one place that knows the optional package huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["download", "is_repo_id"]

# All that is read of a repository but its weights, and nothing else of what may be gigabytes.
_PATTERNS = ["model_index.json", "labels.json", "unet/*.json", "scheduler/*.json", "config.json"]
_PATTERNS += ["scheduler_config.json", "diffusion_pytorch_model.safetensors.index*.json"]


def is_repo_id(name: str) -> bool:
    """Say whether `name` has the form of a hub id, owner/name, as the hub itself restricts it.

    Example:
      >>> is_repo_id("openai/diffusers-cd_imagenet64_l2"), is_repo_id("./checkpoints/mine"), is_repo_id("mine")
      (True, False, False)
    """
    word = r"[A-Za-z0-9]([\w.-]*\w)?"
    odd = "--" in name or ".." in name or name.endswith(".git")
    return not odd and len(name) <= 96 and re.fullmatch(f"{word}/{word}", name, re.ASCII) is not None


def download(repo_id: str, *, weights: str, revision: str | None = None) -> Path:
    """Bring a repository's model to this machine, or find it in huggingface_hub's own cache.

    Args:
      repo_id: owner/name.
      weights: the stem of the weights' files, in unet/ or beside config.json, whole or in pieces.
      revision: a branch, tag or commit; None for the newest.

    Returns:
      The folder, in diffusers layout.

    Raises:
      ModuleNotFoundError: huggingface_hub is not installed.
      FileNotFoundError: the hub has no such repository, or it cannot be reached and nothing is cached.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{repo_id} is not a folder here, and looking on the hub takes huggingface_hub: pip install 'cmjax[hub]'."
        ) from error
    files = (f"{weights}.safetensors", f"{weights}-*.safetensors")
    patterns = [*_PATTERNS, *files, *(f"unet/{name}" for name in files)]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"the hub has no repository {repo_id} (or it is private, or needs a login).") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{repo_id} is not a folder here, and the hub could not be read: {reason.rstrip('.')}. Without a network, "
            "give the path of a folder that was downloaded elsewhere."
        ) from error
