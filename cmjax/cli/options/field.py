"""What a field of options says of itself: its help, its heading, and how its text is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["GROUPS", "Options", "flags", "option"]

# The groups of --help, in order.
INPUT, DRAW, TEXT, SAMPLER, MODEL, TRAINING, OUTPUT, SPEED, SHARDS, PT = (
    "input",
    "what to draw",
    "texts to pictures",
    "sampler",
    "model",
    "training",
    "output",
    "speed",
    "many images, in shards (--out is a folder; run the same command again to resume)",
    "what a .pt file does not say (a folder's configs do)",
)
GROUPS = (INPUT, DRAW, TEXT, SAMPLER, MODEL, TRAINING, OUTPUT, SPEED, SHARDS, PT)


def option(
    help: str,
    *,
    default: Any = None,
    group: str | None = None,
    exclusive: str | None = None,
    type: Callable[[str], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Declare a field that is an option of its name, or a positional argument.

    Args:
      help: what `--help` says of it.
      default: where it is not given; `dataclasses.MISSING` where it must be.
      group: its heading in `--help`, one of `GROUPS`.
      exclusive: a name; of all options with that name, one may be given.
      type: from text to value.
      **kwargs: of `argparse`: metavar, choices, nargs, action; `flag` for another name than the field's, and
        `positional=True` for an argument without a flag.
    """
    said = {"help": help, "group": group, "exclusive": exclusive, **kwargs}
    return dataclasses.field(default=default, metadata=said | ({} if type is None else {"type": type}))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command was asked for."""

    command: ClassVar[str] = ""  # the module beside this one that runs it
    program: ClassVar[str] = ""  # its name in messages


def flags(kind: type[Options]) -> list[dataclasses.Field[Any]]:
    """List the fields of a command that are read from the command line, in the order of `--help`."""
    found = [field for field in dataclasses.fields(kind) if field.metadata]
    first: dict[str, int] = {}  # where those of which one may be given begin: they stay together
    for i, field in enumerate(found):
        first.setdefault(field.metadata["exclusive"] or field.name, i)

    def place(field: dataclasses.Field[Any]) -> tuple[bool, int, int]:
        group = field.metadata["group"]
        together = first[field.metadata["exclusive"] or field.name]
        return not field.metadata.get("positional"), GROUPS.index(group) if group else 0, together

    return sorted(found, key=place)
