"""Several processes that draw one set of images: who is here, and what they agree on.

They meet once, through `jax.distributed`: each says what it was asked for and what it finds done. Then they part, and
each draws on its own devices alone: one that dies takes nobody with it, and one that is slow keeps nobody waiting.
"""

from __future__ import annotations

import collections
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

_MESSAGE = 32  # bytes
_REFUSED = np.full(_MESSAGE, 255, np.uint8)  # in the place of any message
_MOST, _LONGEST = 1 << 16, 86_400  # processes; seconds
_GONE = "another process has gone"


class Hosts:
    """The processes that have met; one alone, if nobody else was to come. All exchange the same, in the same order."""

    def __init__(self, wait: int, count: int, index: int):
        self._wait, self._talking = wait, count > 1
        self.count, self.index = count, index

    def largest(self, number: int) -> int:
        """The largest of the numbers, from 0, that the processes have.

        Raises:
          UsageError: another process has refused.
        """
        if self.count == 1:
            return number
        message = np.zeros(_MESSAGE, np.uint8)
        message[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
        return int(self._exchange(message)[:, :8].copy().view(np.int64).max())

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
        digests = self._exchange(np.frombuffer(digest, np.uint8))
        if others := [i for i, one in enumerate(digests) if not np.array_equal(one, digests[0])]:
            self._part()
            raise UsageError(
                f"--distributed: process {others[0]} was started with another model or other options than process 0: "
                "all but --distributed must be the same."
            )
        with _giving_up(self._wait, _GONE):
            there = multihost_utils.process_allgather(done).any(axis=0)
        self._part()
        return there

    def refuse(self) -> None:
        """Tell the others, who may be waiting, that this process will not take part; nothing where they have parted."""
        if self._talking:
            with contextlib.suppress(UsageError):
                self._exchange(_REFUSED)

    def _exchange(self, message: np.ndarray) -> np.ndarray:
        """Send 32 bytes to all, and hear theirs, u8[count, 32]."""
        with _giving_up(self._wait, _GONE):
            heard = multihost_utils.process_allgather(message)
        if refused := [i for i, one in enumerate(heard) if np.array_equal(one, _REFUSED)]:
            self._part()
            raise UsageError(f"--distributed: process {refused[0]} refused what it was asked for, and says why.")
        return heard

    def _part(self) -> None:
        """Let the others go: from here on, no process needs another."""
        self._talking = False
        with _giving_up(self._wait, _GONE):
            multihost_utils.sync_global_devices("cmjax sample")
            jax.distributed.shutdown()


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
    if wait > _LONGEST:
        raise UsageError(f"--wait must be at most {_LONGEST} s, a day, got {wait}.")
    options: dict[str, Any] = {"initialization_timeout": wait + 60, "heartbeat_timeout_seconds": wait + 60}
    options |= {"shutdown_timeout_seconds": 10}  # after a defect; who parts does so at one moment
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
            hint = " Is the port in use? Choose another." if "start RPC server" in str(error) else ""
            raise UsageError(f"--distributed: the processes cannot meet{where}: {_first_line(error)}{hint}") from error
    held = collections.Counter(device.process_index for device in jax.devices())
    if len(set(held.values())) > 1:  # every process sees that
        jax.distributed.shutdown()
        raise UsageError(
            f"--distributed: the processes have {', '.join(map(str, held.values()))} devices: each must have as many."
        )
    hosts = Hosts(wait, jax.process_count(), jax.process_index())
    try:
        if asked and hosts.count != int(asked[1]):
            raise UsageError(f"--distributed: process 0 waited for {hosts.count} processes, this one for {asked[1]}.")
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
    if not (count.isascii() and count.isdecimal() and 0 < int(count) <= _MOST):
        raise UsageError(f"--distributed: the number of processes must be from 1 to {_MOST}, got {count:.20}.")
    if not (index.isascii() and index.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--distributed: of {count} processes, one is from 0 to {int(count) - 1}, got {index:.20}.")
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
