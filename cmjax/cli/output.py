"""Where results go: --out is looked at before anything is computed; what was done is told after it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmjax.cli.drawing import Run
from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.open_model import SamplerSetup
from cmjax.io.atomic import check_writable

__all__ = ["check_out", "print_rows", "report"]


def check_out(out: Path, suffixes: tuple[str, ...]) -> str:
    """Refuse what cannot be written.

    Args:
      out: a file, or a folder that may be new.
      suffixes: what files may end in, in capitals or not.

    Returns:
      The suffix of a file, or nothing for a folder.

    Raises:
      UsageError: it is neither, or of another kind than what is there, or its place cannot be written.
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


def report(args: argparse.Namespace, setup: SamplerSetup, run: Run, speed: str, notes: Iterable[str] = ()) -> None:
    """Print what was done.

    Args:
      args: with `model` and `out`.
      setup: what was run.
      run: what came of it.
      speed: of drawing, in the command's own terms.
      notes: what else is to be said of it.
    """
    rows = (
        ("artifact", args.artifact) if getattr(args, "artifact", None) else ("model", args.model),
        ("sampler", setup.sampler),
        ("steps", f"{setup.state.num_steps - int(setup.state.index)}{setup.note}"),
        ("compile", f"{run.compile_seconds:.2f} s"),
        ("speed", speed),
        *(("note", note) for note in dict.fromkeys(notes)),
        ("file", args.out),
    )
    print_rows(rows)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and what belongs to each."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    Console().print(table)
