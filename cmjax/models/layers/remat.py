"""Blocks whose work a gradient can do again, so that of all they compute it keeps only what went in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from flax import nnx

__all__ = ["Block", "again"]

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


class Block(nnx.Module):
    """A module with methods that gradients can compute `again`.

    Attributes:
      remat: whether they do. Static, and False unless `models.remat` has set it.
    """

    remat = False


def again(method: MethodT) -> MethodT:
    """Decorate a method of a block: where its `remat` is True, gradients compute the method again."""

    @functools.wraps(method)
    def call(self: Block, *inputs: Any, **options: Any) -> Any:
        run = functools.partial(method, self)
        return (jax.checkpoint(run) if self.remat else run)(*inputs, **options)

    return cast(MethodT, call)
