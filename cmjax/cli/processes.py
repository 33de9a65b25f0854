"""`--distributed`: several processes that run one command, and which of them says what."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from cmjax.cli.errors import UsageError, bad_input
from cmjax.cli.options import SampleOptions, TrainOptions
from cmjax.drawing import Hosts, Repeated, join, use_cores_as_devices

__all__ = ["joined", "refuse"]


@contextlib.contextmanager
def joined(options: SampleOptions | TrainOptions) -> Iterator[Hosts]:
    """Meet the other processes of `--distributed`; without it, be one alone. Cores of a CPU become devices.

    Yields:
      The processes that take part.

    Raises:
      UsageError: they cannot meet, or the body failed; without words where another process says the same ones.
    """
    use_cores_as_devices()  # before JAX looks for devices
    given = options.distributed
    if given is None:
        yield Hosts()
        return
    if len(given) not in (0, 3):
        raise UsageError(
            "--distributed takes three values, HOST:PORT of process 0, the number of processes, and which of them this "
            f"is, from 0 (or none on a cluster), got {' '.join(given)}."
        )
    who: list[Any] = [int(text) if i and text.isascii() and text.isdecimal() else text for i, text in enumerate(given)]
    try:
        with contextlib.ExitStack() as stack:
            with bad_input("--distributed"):
                joining = join(*who, wait=options.wait, on_timeout=partial(_give_up, f"cmjax {options.program}"))
                hosts = stack.enter_context(joining)
            yield hosts
    except Repeated as repeated:
        raise UsageError("") from repeated


def refuse(options: SampleOptions | TrainOptions) -> None:
    """Tell the other processes that this one has a mistake in its options, rather than let them wait for it."""
    with contextlib.suppress(UsageError), joined(options) as hosts:
        hosts.refuse()


def _give_up(program: str, message: str) -> NoReturn:
    """End the process, as nothing can interrupt what waits."""
    print(f"{program}: --distributed: {message} (--wait S waits longer.)", file=sys.stderr, flush=True)
    os._exit(2)
