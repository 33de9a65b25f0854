"""Where results go: --out is checked before anything is computed, and what was done is printed after it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmjax.cli.errors import UsageError, bad_input
from cmjax.io.atomic import check_writable

__all__ = ["check_out", "print_rows", "report"]


def check_out(out: Path, suffixes: tuple[str, ...]) -> str:
    """Refuse an --out that cannot be written.

    Args:
      out: a file, or a folder that may be new.
      suffixes: the endings that files may have, in capitals or not.

    Returns:
      The suffix of a file; "" for a folder.

    Raises:
      UsageError: it is neither, or something of the other kind is there, or its place cannot be written.
    """
    with bad_input("--out"):  # a name may be too long even to be looked at
        is_file, there, is_folder = out.suffix.lower() in suffixes, out.exists() or out.is_symlink(), out.is_dir()
    if out.suffix and not is_file and not is_folder:
        raise UsageError(f"--out must end in {' or '.join(suffixes)}, or be a folder, got {out}.")
    if is_file and is_folder:
        raise UsageError(f"--out: {out} is a folder, not a file.")
    if not is_file and there and not is_folder:
        raise UsageError(f"--out: {out} is not a folder.")
    with bad_input("--out"):
        check_writable(out)
    return out.suffix.lower() if is_file else ""


def report(
    sources: Iterable[tuple[str, str]],
    sampler: str,
    steps: str,
    compile_seconds: float,
    speed: str,
    notes: Iterable[str],
    out: str,
) -> None:
    """Print what was drawn.

    Args:
      sources: "model" or "artifact", and which; then every "lora".
      sampler: its name.
      steps: how many steps were taken, and why.
      compile_seconds: how long compiling took.
      speed: how fast images were drawn, in the command's own terms.
      notes: what else a reader should know.
      out: where the result is.
    """
    rows = (*sources, ("sampler", sampler), ("steps", steps), ("compile", f"{compile_seconds:.2f} s"), ("speed", speed))
    print_rows((*rows, *(("note", note) for note in dict.fromkeys(notes)), ("file", out)))


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print a table of names and values."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    Console().print(table)
