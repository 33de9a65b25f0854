"""How the command tells a user's mistake from its own: only the first becomes one sentence and exit status 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["UsageError", "bad_input"]


class UsageError(Exception):
    """What was asked cannot be done; the message is the one sentence that the user reads."""


@contextlib.contextmanager
def bad_input(argument: str | None = None) -> Iterator[None]:
    """Turn the library's typed errors, raised while input is read, into a `UsageError`.

    It stands around the reading of models, data and options and the writing of files, never around computing: there an
    exception is a defect and keeps its traceback.

    Args:
      argument: what the sentence begins with, such as `"--out"`; None where the message names the argument.

    Example:
      >>> with bad_input("--timesteps"):
      ...     raise ValueError("must be strictly decreasing.")
      Traceback (most recent call last):
      cmjax.cli.errors.UsageError: --timesteps: must be strictly decreasing.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{argument}: {text}" if argument else text) from error
