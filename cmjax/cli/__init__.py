"""The command `cmjax sample | edit | train | evaluate | export | inspect | lora | convert`, and how it takes mistakes.

`options` declares the options of every command, `parser` reads them, and the module of a command's name runs it.
Options are read before JAX is imported, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from cmjax.cli.errors import UsageError, as_typed
from cmjax.cli.parser import parse, parse_distributed

__all__ = ["main", "parse"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: the arguments without the program's name; None for those of the process.

    Returns:
      The exit status: 0; 2 for a mistake in what was asked, after one sentence on standard error; 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else [str(argument) for argument in argv]
    try:
        options = parse(argv)
    except SystemExit as stop:  # --help, --version, or a mistake: argparse has said all
        if stop.code == 2 and (distributed := parse_distributed(argv)) is not None:
            processes = importlib.import_module("cmjax.cli.processes")
            processes.refuse(distributed)  # the others would wait for this one
        return int(stop.code or 0)
    name = f"cmjax {options.program}"
    try:
        with _without_garbage_collector():
            command = importlib.import_module(f"cmjax.cli.{options.command}")
        command.run(options)
        sys.stdout.flush()
    except UsageError as error:
        if said := as_typed(str(error), options):  # else another process says it
            print(f"{name}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output is gone: no more of it, and no complaint at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        print(f"{name}: writing failed: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return 0


@contextlib.contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Switch the collector of cyclic garbage off during imports, where it would look through a million new objects.

    These objects stay until the process ends. `gc.freeze` keeps them out of later collections, and out of the last one
    at exit: this saves a sixth of the processor time of a command that draws a few pictures. A process that has
    imported JAX already belongs to another program, and nothing changes there.
    """
    if "jax" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    atexit.register(gc.freeze)  # registered before JAX's functions, so it runs after them
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
