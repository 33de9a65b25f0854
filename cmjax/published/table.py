"""The table of published models and LoRAs, for the guide."""

from __future__ import annotations

from cmjax.published.lookup import PUBLISHED
from cmjax.published.row import Published

__all__ = ["markdown"]

_KINDS = {"lora": "LoRA", "unet": "network", "model": "model"}


def markdown() -> str:
    """Write every row as a table of Markdown: those that cmjax draws with, then those that it has the sampler of.

    Example:
      >>> markdown().splitlines()[2]
      '| name | for | hub id and file | settings | licence | source |'
    """
    drawn = [row for row in PUBLISHED if row.is_drawn]
    others = [row for row in PUBLISHED if not row.is_drawn]
    return f"## Drawn by cmjax\n\n{_table(drawn)}\n\n## Only the sampler\n\n{_table(others)}\n"


def _table(rows: list[Published]) -> str:
    head = ("name", "for", "hub id and file", "settings", "licence", "source")
    lines = [head, ("---",) * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Published) -> tuple[str, ...]:
    where = ", ".join(f"`{name}`" for name in (row.repo_id, *row.files[:1]))
    settings = "; ".join(filter(None, (row.settings, row.note)))
    return f"{row.title} ({_KINDS[row.kind]})", row.base, where, settings, row.licence, row.source
