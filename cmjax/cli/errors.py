"""How the command tells a user's mistake from its own: only the first becomes one sentence and exit status 2."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

__all__ = ["UsageError", "as_typed", "bad_input"]

# Arguments of the library, and the options that they come from.
_OPTIONS = (
    ("num_steps", "--steps"),
    ("total_steps", "--steps"),
    ("timesteps", "--timesteps"),
    ("sigmas", "--sigmas"),
    ("sigmas", "--sigma"),
    ("strength", "--strength"),
    ("eta", "--eta"),
    ("mu", "--mu"),
    ("variant", "--variant"),
    ("block_out_channels", "--channels"),
    ("num_train_timesteps", "--num-train-timesteps"),
    ("sample_size", "--sample-size"),
    ("head_dim", "--head-dim"),
    ("devices", "--devices"),
    ("batch", "--batch"),
    ("wait", "--wait"),
    ("size", "--size"),
    ("guidance", "--guidance"),
    ("rank", "--rank"),
)


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
        raise UsageError(f"{argument}: {_sentence(error)}" if argument else _sentence(error)) from error


def _sentence(error: Exception) -> str:
    """What an error says, in one line; of the system's own, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def as_typed(message: str, options: object) -> str:
    """Replace the name of the library's argument by the option that was given for it.

    Example:
      >>> from cmjax.cli.options import DenoiseOptions
      >>> as_typed("sigmas must be positive, got -1.", DenoiseOptions(images=("a.png",), sigma=-1.0))
      '--sigma must be positive, got -1.'
    """
    for argument, option in _OPTIONS:
        if getattr(options, option[2:].replace("-", "_"), None) is not None:
            message = re.sub(rf"(^|: ){argument}\b", rf"\1{option}", message, count=1)
    return re.sub(r"\w+=True \((--[\w-]+)\)", r"\1", message)  # what both say: skip_unreadable=True (--skip-unreadable)
