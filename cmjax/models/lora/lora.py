"""A LoRA: factors by the names of modules."""

from __future__ import annotations

import jax

from cmjax._struct import Struct, static
from cmjax.models.lora.factors import Factors

__all__ = ["LoRA"]


class LoRA(Struct):
    """How the kernels of a model change; a pytree whose leaves are the factors.

    Attributes:
      factors: by the names of modules: those of the file that it was read from, or, once it is resolved, a part's and
        a module's, `unet.mid_block.attentions.0.proj_in`.
      metadata: what the file's header said, as pairs. Static.
    """

    factors: dict[str, Factors]
    metadata: tuple[tuple[str, str], ...] = static(default=())

    def of(self, part: str) -> dict[str, Factors]:
        """The factors of one part of a model, by the names of its layers; of a resolved LoRA.

        Args:
          part: such as `unet`.
        """
        start = f"{part}."
        return {name.removeprefix(start): one for name, one in self.factors.items() if name.startswith(start)}

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, smallest first."""
        return tuple(sorted({one.rank for one in self.factors.values() if one.rank is not None}))

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.factors))

    def __repr__(self) -> str:
        if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(self)):  # a tree of axes, or of shardings
            return f"LoRA({len(self.factors)} modules)"
        ranks = ", ".join(map(str, self.ranks))
        return f"LoRA({len(self.factors)} modules, rank {ranks or 'none'}, {self.size:,} numbers)"
