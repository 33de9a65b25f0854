"""Where results go: --out is looked at before anything is computed; what was done is told after it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmjax.cli.errors import UsageError, bad_input
from cmjax.io.atomic import check_writable

__all__ = ["check_out", "report"]


def check_out(out: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse what cannot be written.

    Args:
      out: a file, or a folder that may be new.
      suffixes: what files may end in.

    Raises:
      UsageError: it is neither, or of another kind than what is there, or its place cannot be written.
    """
    is_file = out.suffix in suffixes
    if out.suffix and not is_file and not out.is_dir():
        raise UsageError(f"--out must end in {' or '.join(suffixes)}, or be a folder, got {out}.")
    if is_file and out.is_dir():
        raise UsageError(f"--out: {out} is a folder, not a file.")
    if not is_file and (out.exists() or out.is_symlink()) and not out.is_dir():
        raise UsageError(f"--out: {out} is not a folder.")
    with bad_input("--out"):
        check_writable(out)


def report(*rows: tuple[str, str]) -> None:
    """Print names and values."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    Console().print(table)
