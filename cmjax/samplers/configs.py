"""The base of every sampler's config: the keys of a `scheduler_config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from cmjax._typed import check_fields, frozen, thawed

__all__ = ["SamplerConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """A `scheduler_config.json`: its keys and their defaults. Hashable.

    Types are checked at once. `init` checks the values of numbers, where they are used.

    Attributes:
      scheduler: the sampler's class name in the file.
      extra: keys of the file that this config does not know, kept to be written back: a mapping or pairs, of values
        that JSON has.
    """

    scheduler: ClassVar[str]

    extra: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        fields = {field.name for field in dataclasses.fields(self)} - {"extra"}
        object.__setattr__(self, "extra", _kept(self.extra, fields))
        check_fields(self, TypeError, bounds=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make a config of a file's keys. Those that it has no field for go to `extra`, but not who wrote the file."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        known = {key: value for key, value in values.items() if key in fields}
        extra = {key: value for key, value in values.items() if key not in fields and not key.startswith("_")}
        return cls(**known, extra=tuple(extra.items()))

    def values(self) -> dict[str, Any]:
        """Every field, and the keys that were kept: what `of` takes."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**fields, **{key: thawed(value) for key, value in self.extra}}


def _kept(extra: Any, fields: set[str]) -> tuple[tuple[str, Any], ...]:
    """The keys that a config keeps, as pairs with a hash."""
    pairs = list(extra.items()) if isinstance(extra, Mapping) else extra
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise TypeError(f"extra must be a mapping, or pairs of a key and a value, got {extra!r:.60}.")
    names = [str(name) for name, _ in pairs]
    for name in names:
        if name in fields or name.startswith("_") or names.count(name) > 1:
            raise TypeError(f"extra must hold each key once, none of them a field or begun by _, got {name!r}.")
    kept = []
    for name, value in pairs:
        try:
            kept.append((str(name), frozen(value)))
        except ValueError as error:
            raise TypeError(f"extra must hold values that JSON has, got {name} = {error}.") from error
    return tuple(kept)
