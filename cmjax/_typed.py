"""The gate of every config: fields hold plain Python values that their declaration allows, or are refused by name.

Values come from files and from arrays. A number of NumPy or JAX becomes Python's, and a list a tuple, so that a config
that was accepted has a hash, can be written as JSON, and equals itself when it is read back.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cmjax._bounds import Rule

__all__ = ["check_fields", "frozen", "mistyped", "out_of_bounds", "thawed", "unknown_names"]

_LARGEST = 3.4028234663852886e38  # float32's
_SAID = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", type(None): "null"}


def check_fields(config: Any, error: type[Exception] = ValueError, *, bounds: bool = True) -> None:
    """Make the fields of a frozen dataclass plain, in place, and refuse what they may not hold: for `__post_init__`.

    Args:
      config: the dataclass.
      error: what is raised.
      bounds: whether the declared bounds are checked too, or types alone.

    Raises:
      Exception: `error`, with a sentence that begins with the field's name.

    Example:
      >>> import numpy as np
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     rate: float
      ...     def __post_init__(self):
      ...         check_fields(self)
      >>> Config(np.float32(0.5))
      Config(rate=0.5)
      >>> Config(None)
      Traceback (most recent call last):
      ValueError: rate must be a finite number, got None.
    """
    for name, kind, _ in _fields(type(config)):
        value = getattr(config, name)
        if (plain := _plain(value, kind)) is not value:
            object.__setattr__(config, name, plain)
    fault = mistyped(config)
    if fault is None and bounds:
        fault = out_of_bounds(config)
    if fault is not None:
        raise error(fault)


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
    for name, kind, _ in _fields(type(config)):
        value = getattr(config, name)
        if not _fits(value, kind):
            return f"{name} must be {_said(kind)}, got {value!r:.60}."
    return None


def out_of_bounds(config: Any) -> str | None:
    """Say which field of a dataclass breaks a rule that it declares; None where all is well."""
    for name, _, rules in _fields(type(config)):
        for rule in rules:
            if fault := rule.fault(name, getattr(config, name)):
                return fault
    return None


@functools.lru_cache
def _fields(config: type) -> list[tuple[str, Any, tuple[Rule, ...]]]:
    """Name, type and rules of each field."""
    kinds = typing.get_type_hints(config, include_extras=True)
    return [(field.name, *_declared(kinds[field.name])) for field in dataclasses.fields(config)]


def _declared(kind: Any) -> tuple[Any, tuple[Rule, ...]]:
    if typing.get_origin(kind) is Annotated:
        return kind.__origin__, tuple(rule for rule in kind.__metadata__ if isinstance(rule, Rule))
    return kind, ()


# ---- types -----------------------------------------------------------------------------------------------------------


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in kind.__args__)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and _fit(value, kind.__args__)
    if kind is float:
        return _is_number(value, float | int) and -_LARGEST <= value <= _LARGEST  # NaN neither
    if kind is int:
        return _is_number(value, int)
    return isinstance(value, kind) if kind in _SAID else True


def _fit(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether a tuple's values are of its kinds, such as (int, int), or (int, ...)."""
    kinds = kinds[:1] * len(values) if kinds[-1] is ... else kinds
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _said(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_said, kind.__args__))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_said(kind.__args__[0])}"
    return _SAID[kind]


# ---- plain values ----------------------------------------------------------------------------------------------------


def _plain(value: Any, kind: Any) -> Any:
    """A field's value in Python's own types; what has none there stays, to be refused."""
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    tuples = [one for one in kinds if typing.get_origin(one) is tuple]
    if tuples and _is_list(value):
        try:
            one = tuples[0].__args__[0]
            return tuple(_plain(each, one) if _is_list(each) else _plain_number(each) for each in _values(value))
        except Exception:  # a traced array has no values
            return value
    return _plain_number(value) if any(one in _SAID for one in kinds) else value


def _is_list(value: Any) -> bool:
    """Whether it is a list, a tuple, or an array with an axis."""
    return bool(getattr(value, "shape", ())) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _values(value: Any) -> list[Any]:
    return value.tolist() if hasattr(value, "dtype") else list(value)


def _plain_number(value: Any) -> Any:
    """A number, truth value or text as Python's own: np.float32(0.5) is 0.5, and so is an array without axes."""
    if type(value) in _SAID or isinstance(value, _JsonText):
        return value
    try:
        if getattr(value, "shape", None) == () and hasattr(value, "dtype") and value.dtype.kind not in "mM":
            value = value.item()  # of dates, that would be a count of nanoseconds
            value = float(value) if hasattr(value, "dtype") else value  # a float of ml_dtypes, or a longdouble
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value
    except Exception:  # a traced array has no value; a fraction may be too large
        return value


# ---- values that are kept without being understood -------------------------------------------------------------------


class _JsonText(str):
    """A JSON value that has no hash or does not equal itself, as text: so that what holds it has one and does."""


def frozen(value: Any) -> Any:
    """Make a JSON value hashable and equal to itself; `thawed` gives it back.

    Raises:
      ValueError: JSON has no such value.

    Example:
      >>> thawed(frozen([1, {"a": [2]}]))
      [1, {'a': [2]}]
    """
    if isinstance(value, _JsonText):
        return value
    if _is_list(value):
        return tuple(map(frozen, _values(value)))
    if isinstance(value, Mapping):
        return _JsonText(json.dumps({str(key): thawed(frozen(one)) for key, one in value.items()}))
    value = _plain_number(value)
    if type(value) not in _SAID:
        raise ValueError(f"{value!r:.60}")
    return _JsonText("NaN") if isinstance(value, float) and math.isnan(value) else value


def thawed(value: Any) -> Any:
    """Make a frozen value what it was in JSON."""
    if isinstance(value, tuple):
        return list(map(thawed, value))
    return json.loads(value) if isinstance(value, _JsonText) else value


# ---- names -----------------------------------------------------------------------------------------------------------


def unknown_names(unknown: Sequence[str], known: Sequence[str], source: str) -> str:
    """Say which names of a table mean nothing, and what may have been meant.

    Example:
      >>> unknown_names(["batch_sise"], ["steps", "batch_size"], "my.toml")
      'my.toml has unknown names: batch_sise. Did you mean batch_size?'
    """
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
    return f"{source} has unknown names: {', '.join(unknown)}. {hint}"
