"""Values and names in a table are those that its fields allow, or refused by name: most of them come from files."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Sequence
from typing import Any

__all__ = ["mistyped", "unknown_names"]

_LARGEST = 3.4028234663852886e38  # float32's
_SAID = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", type(None): "null"}


def mistyped(config: Any) -> str | None:
    """Say which field of a dataclass has a value of another type than it declares; None where all is well.

    Example:
      >>> @dataclasses.dataclass
      ... class Config:
      ...     size: int | None = None
      ...     clip: bool = False
      >>> mistyped(Config(size=3)), mistyped(Config(clip="false"))
      (None, "clip must be true or false, got 'false'.")
    """
    for name, kind in _fields(type(config)):
        value = getattr(config, name)
        if not _fits(value, kind):
            return f"{name} must be {_said(kind)}, got {value!r:.60}."
    return None


@functools.lru_cache
def _fields(config: type) -> list[tuple[str, Any]]:
    kinds = typing.get_type_hints(config)
    return [(field.name, kinds[field.name]) for field in dataclasses.fields(config)]


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in kind.__args__)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and _fit(value, kind.__args__)
    if kind is float:
        return _is_number(value, numbers.Real) and math.isfinite(value) and abs(value) <= _LARGEST
    if kind is int:
        return _is_number(value, numbers.Integral)
    return isinstance(value, kind) if kind in _SAID else True


def _fit(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether a tuple's values are of its kinds, such as (int, int), or (int, ...)."""
    kinds = kinds[:1] * len(values) if kinds[-1] is ... else kinds
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _said(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_said, kind.__args__))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_said(kind.__args__[0])}"
    return _SAID[kind]


def unknown_names(unknown: Sequence[str], known: Sequence[str], source: str) -> str:
    """Say which names of a table mean nothing, and what may have been meant.

    Example:
      >>> unknown_names(["batch_sise"], ["steps", "batch_size"], "my.toml")
      'my.toml has unknown names: batch_sise. Did you mean batch_size?'
    """
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
    return f"{source} has unknown names: {', '.join(unknown)}. {hint}"
