"""The parts of a text-to-image model that options take from elsewhere."""

from __future__ import annotations

from typing import Any

import cmjax
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.options import PartsOptions

__all__ = ["digests_of_parts", "given_parts", "options_of_parts", "refuse_parts"]

_NAMES = {"base": "base", "vae": "vae", "text_encoder": "text_encoders", "tokenizer": "tokenizer", "ema": "ema"}


def given_parts(options: PartsOptions) -> dict[str, Any]:
    """Give what was asked for as arguments of `cmjax.text_to_image.load`."""
    return {name: value for option, name in _NAMES.items() if (value := getattr(options, option))}


def options_of_parts(options: PartsOptions) -> dict[str, Any]:
    """Give what was asked for by the names of the options."""
    return {name.replace("_", "-"): value for name in _NAMES if (value := getattr(options, name))}


def refuse_parts(options: PartsOptions, why: str) -> None:
    """Refuse options for parts where there are none.

    Raises:
      UsageError: one was given.
    """
    for name in options_of_parts(options):
        raise UsageError(f"--{name} {why}.")


def digests_of_parts(options: PartsOptions) -> dict[str, Any]:
    """Identify what was asked for, for the record of a run."""
    found: dict[str, Any] = {}
    for name, value in options_of_parts(options).items():
        if value is True:
            found[name] = True
            continue
        with bad_input(f"--{name}"):
            each = [value] if isinstance(value, str) else value
            found[name] = [cmjax.io.digest(one, whole=True) for one in each]
    return found
