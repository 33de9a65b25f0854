"""The command `cmjax sample | edit | train | evaluate | export | inspect | convert`, and how its mistakes are answered.

Arguments are parsed before JAX is imported, so `--help` and mistakes are answered at once. Each command is one module
beside this one, with a function `run(args)`.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from cmjax.cli.errors import UsageError, as_typed
from cmjax.cli.options import parser

__all__ = ["main", "parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: the arguments without the program's name; None for those of the process.

    Returns:
      The exit status: 0; 2 for a mistake in what was asked, after one sentence on standard error; 130 when interrupted.
    """
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:  # --help, --version, or a mistake: argparse has said all
        return int(stop.code or 0)
    name = f"cmjax {args.command} {args.task}" if args.command == "edit" else f"cmjax {args.command}"
    try:
        importlib.import_module(f"cmjax.cli.{args.command}").run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"{name}: {as_typed(str(error), args)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone: no more of it, and no complaint at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        print(f"{name}: nothing more can be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return 0
