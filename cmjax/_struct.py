"""Frozen dataclasses that cross `jit`: what states, guided models and edits are made of."""

from __future__ import annotations

import dataclasses
from typing import Any, Self, dataclass_transform

import jax

__all__ = ["Struct", "static"]

_SHORT = {"float": "f", "int": "i", "uint": "u", "bfloat": "bf", "complex": "c"}


def static(**kwargs: Any) -> Any:
    """Declare a field that chooses a formula or a shape: hashable, part of the tree definition, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
class Struct:
    """A pytree with names: every subclass becomes a frozen dataclass, registered with JAX.

    Fields are leaves (or subtrees), but those made with `static()`. Nothing is validated on construction: JAX rebuilds
    structs with placeholders inside.

    Example:
      >>> class Line(Struct):
      ...     slope: jax.Array
      ...     name: str = static(default="line")
      >>> Line(jax.numpy.zeros(3)).replace(name="flat")
      Line(slope=f32[3], name='flat')
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
        jax.tree_util.register_dataclass(cls)

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.repr]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{f.name}={_brief(getattr(self, f.name))}' for f in fields)})"


def _brief(value: Any) -> str:
    """Arrays as dtype and shape: a table of a thousand numbers says nothing in a log."""
    if not hasattr(value, "dtype"):
        return repr(value)
    name = str(value.dtype)
    kind = name.rstrip("0123456789")
    return f"{_SHORT.get(kind, kind)}{name[len(kind) :]}[{', '.join(map(str, value.shape))}]"
