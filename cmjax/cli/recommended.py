"""`cmjax inspect --recommended`: the settings that a model or LoRA was published with, and how to draw with it."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmjax._sampler_names import ORDINARY
from cmjax.cli.errors import UsageError
from cmjax.published import Published, command, matching, nearest, program

__all__ = ["show"]

_KINDS = {
    "lora": "a LoRA",
    "unet": "a network, whose other parts are its base's",
    "model": "a whole model",
}


def show(name: str) -> None:
    """Print the row of that name, or all that have it in theirs.

    Raises:
      UsageError: the table has none.
    """
    rows = matching(name)
    if not rows:
        near = nearest(name)
        said = f"The nearest names are {', '.join(near)}." if near else "Give a hub id, a file's name or a title."
        raise UsageError(f"--recommended: no published few-step model or LoRA is called {name!r}. {said}")
    console = Console(highlight=False)
    if len(rows) == 1:
        return _show_one(rows[0], console)
    table = Table(box=None, pad_edge=False)
    for column in ("title", "is", "for", "settings"):
        table.add_column(column, overflow="fold", no_wrap=column == "title")
    for row in rows:
        table.add_row(*map(escape, (row.title, row.kind, row.base, row.settings)))
    console.print(table)
    console.print(
        f"\n{len(rows)} are called so. Of one: cmjax inspect --recommended {rows[0].title!r}",
        markup=False,
        soft_wrap=True,
    )
    return None


def _show_one(row: Published, console: Console) -> None:
    """Print everything that is known of one, the command, and the program."""
    path = " ".join(f"{t:.6g}" for t in np.asarray(row.state().timesteps))
    if row.spacing is None and row.sampler in ORDINARY:
        path = "as its scheduler file spaces them"
    guidance = "none" if row.guidance is None else f"{row.guidance:g}{', which the network is told' * row.told}"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in (
        ("is", _KINDS[row.kind]),
        ("for" if row.kind != "model" else "made of", row.base),
        ("hub id", row.repo_id),
        ("files", ", ".join(row.files)),
        ("sampler", row.sampler),
        ("spacing", row.spacing),
        ("steps", str(row.steps)),
        ("timesteps", path),
        ("eta", None if row.eta is None else f"{row.eta:g}"),
        ("guidance", guidance),
        ("predicts", {"sample": "x0 (sample)"}.get(row.prediction_type or "", row.prediction_type)),
        ("scale", f"{row.scale:g}" if row.kind == "lora" else None),
        *((name, str(value)) for name, value in (*row.config.items(), *row.options.items())),
        ("network", row.network),
        ("note", row.note),
        ("licence", row.licence),
        ("source", row.source),
    ):
        if value:
            table.add_row(key, escape(value))
    console.print(f"[bold]{escape(row.title)}[/bold]")
    console.print(table)
    if (said := command(row)) is not None:
        if row.kind == "unet":
            said += f"    # once the file of https://huggingface.co/{row.repo_id} is here"
        console.print("\n[bold]command[/bold]")
        console.print(said, markup=False, soft_wrap=True)
    console.print("\n[bold]Python[/bold]")
    console.print(program(row), markup=False, soft_wrap=True)
