"""Several processes that draw one set of images: who is here, and what they agree on.

They meet once, through `jax.distributed`: each says what it was asked for and what it finds done. Then they part, and
each draws on its own devices alone: one that dies takes nobody with it, and one that is slow keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cmjax.cli.errors import UsageError

__all__ = ["Hosts", "meet"]

_REFUSED = np.zeros(32, np.uint8)  # in the place of what was asked for


class Hosts:
    """The processes that have met; one alone, if nobody else was to come."""

    def __init__(self, wait: int, count: int, index: int):
        self._wait, self._undecided = wait, count > 1
        self.count, self.index = count, index

    def agree(self, said: Mapping[str, Any], done: np.ndarray) -> np.ndarray:
        """Exchange what every process was asked for, and what it finds done; then part.

        Args:
          said: what must be the same everywhere.
          done: bool[n], what is done as far as this process can see; discs may be shared or not.

        Returns:
          bool[n], what any process sees done.

        Raises:
          UsageError: another process was asked for something else, or has refused.
        """
        if self.count == 1:
            return done
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
        self._compare(np.frombuffer(digest, np.uint8))
        with _giving_up(self._wait, "another process has gone"):
            there = multihost_utils.process_allgather(done).any(axis=0)
            multihost_utils.sync_global_devices("cmjax sample")
            jax.distributed.shutdown()
        return there

    def refuse(self) -> None:
        """Tell the others, who may be waiting, that this process will not take part."""
        if self._undecided:
            with contextlib.suppress(UsageError):
                self._compare(_REFUSED)

    def _compare(self, digest: np.ndarray) -> None:
        self._undecided = False
        if jax.device_count() != self.count * jax.local_device_count():
            raise UsageError(
                f"--distributed: this process has {jax.local_device_count()} devices of {jax.device_count()} in all: "
                f"each of {self.count} processes must have as many."
            )
        with _giving_up(self._wait, "another process has gone"):
            digests = multihost_utils.process_allgather(digest)
            if not (digests == digests[0]).all():
                multihost_utils.sync_global_devices("cmjax sample, not")
                jax.distributed.shutdown()
        if refused := [i for i, one in enumerate(digests) if np.array_equal(one, _REFUSED)]:
            raise UsageError(f"--distributed: process {refused[0]} refused what it was asked for, and says why.")
        if others := [i for i, one in enumerate(digests) if not np.array_equal(one, digests[0])]:
            raise UsageError(
                f"--distributed: process {others[0]} was started with another model or other options than process 0: "
                "all but --distributed must be the same."
            )


@contextlib.contextmanager
def meet(asked: Sequence[str] | None, wait: int) -> Iterator[Hosts]:
    """Meet the other processes, before anything is computed; if the body is refused before they agree, they are told.

    Args:
      asked: HOST:PORT of the first process, how many there are, and which this is; nothing where the cluster (Slurm,
        Open MPI, a TPU pod) says so itself; None to be alone.
      wait: seconds until a process that does not come is given up.

    Yields:
      The processes that are here.

    Raises:
      UsageError: a value makes no sense, or no cluster says who takes part.
    """
    if asked is None:
        yield Hosts(wait, 1, 0)
        return
    options: dict[str, Any] = {"initialization_timeout": wait + 60}
    if asked:
        address, count, index = _read(asked)
        options |= {"coordinator_address": address, "num_processes": count, "process_id": index}
        options |= {"cluster_detection_method": "deactivate"}
    where = f" at {asked[0]}" if asked else ""
    with _giving_up(wait, f"not all processes came{where}"):
        try:
            jax.distributed.initialize(**options)
        except (RuntimeError, ValueError) as error:
            if not asked and ("should be defined" in str(error) or "must be defined" in str(error)):
                raise UsageError(
                    "--distributed: no cluster (Slurm, Open MPI, a TPU pod) says who takes part: "
                    "give HOST:PORT of the first process, the number of processes, and which one this is, from 0."
                ) from error
            raise UsageError(f"--distributed: the processes cannot meet{where}: {_first_line(error)}") from error
    hosts = Hosts(wait, jax.process_count(), jax.process_index())
    try:
        yield hosts
    except UsageError:
        hosts.refuse()
        raise


def _read(asked: Sequence[str]) -> tuple[str, int, int]:
    if len(asked) != 3:
        raise UsageError(
            "--distributed takes HOST:PORT, the number of processes, and which one this is, from 0 "
            f"(or nothing on a cluster), got {' '.join(asked)}."
        )
    address, count, index = asked
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--distributed: the first value must be HOST:PORT of the first process, got {address}.")
    if not count.isdecimal() or not index.isdecimal() or not int(index) < int(count):
        raise UsageError(f"--distributed: of {count} processes, one is from 0 to that number less one, got {index}.")
    return address, int(count), int(index)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:200] + "."


@contextlib.contextmanager
def _giving_up(wait: int, what: str) -> Iterator[None]:
    """End the process, with a sentence, if the body takes longer: JAX's own time-outs end it with a stack trace."""

    def give_up() -> None:
        print(f"cmjax sample: --distributed: {what}: nobody within {wait} s (--wait).", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(wait, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
