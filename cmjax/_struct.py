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
        _register(cls)

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.repr]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{f.name}={_brief(getattr(self, f.name))}' for f in fields)})"


def _register(cls: Any) -> None:
    """Make a pytree of a class.

    Not by `jax.tree_util.register_dataclass`: with it, JAX 0.10 holds structures of different classes for equal, and a
    program that was compiled for one sampler's state may then run for another's.
    """
    fields = dataclasses.fields(cls)
    leaves, statics = (
        tuple(field.name for field in fields if bool(field.metadata.get("static")) is wanted)
        for wanted in (False, True)
    )
    names = [jax.tree_util.GetAttrKey(name) for name in leaves]

    def parts(struct: Any) -> tuple[Any, Any]:
        values = struct.__dict__
        return tuple([values[name] for name in leaves]), tuple([values[name] for name in statics])

    def named(struct: Any) -> tuple[Any, Any]:
        children, chosen = parts(struct)
        return tuple(zip(names, children, strict=True)), chosen

    def whole(chosen: Any, children: Any) -> Any:
        struct = object.__new__(cls)
        struct.__dict__.update(zip(leaves, children, strict=True))
        struct.__dict__.update(zip(statics, chosen, strict=True))
        return struct

    jax.tree_util.register_pytree_with_keys(cls, named, whole, parts)


def _brief(value: Any) -> str:
    """Arrays as dtype and shape: a table of a thousand numbers says nothing in a log."""
    if not hasattr(value, "dtype"):
        return repr(value)
    name = str(value.dtype)
    kind = name.rstrip("0123456789")
    return f"{_SHORT.get(kind, kind)}{name[len(kind) :]}[{', '.join(map(str, value.shape))}]"
