"""Compiled programs kept between runs of the command, in the user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax

__all__ = ["cache_folder", "enable"]


def cache_folder() -> Path:
    """Name the folder: `$XDG_CACHE_HOME/cmjax/xla`, or where the system keeps caches."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG rules: a relative path is to be ignored
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        elif sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
            base = os.environ["LOCALAPPDATA"]
        else:
            base = Path.home() / ".cache"
    return Path(base) / "cmjax" / "xla"


def enable() -> Path | None:
    """Turn JAX's persistent compile cache on; never a reason to fail.

    Returns:
      The folder, or None where the cache stays off because the folder cannot be written. A folder that the user has set
      through `JAX_COMPILATION_CACHE_DIR` is left as it is.
    """
    if own := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(own)
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
