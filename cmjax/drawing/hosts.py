"""Several processes that divide one set of images, or train together: who takes part, and what they agree on.

Those that draw synchronize once, at start-up, through `jax.distributed`: each says what it was asked to draw and which
shards it finds done (`agree`). Then they run independently, each on its own devices: one that dies does not stop the
others, and nobody waits for a slow one. Those that train stay together until the end (`check_same`, `wait_for_all`,
`in_step`, `part`).
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["Hosts", "Repeated", "join"]

_MESSAGE = 32  # bytes
_REFUSED = np.full(8, 255, np.uint8)  # how a message begins in the place of any other
_MOST, _LONGEST = 1 << 16, 86_400  # processes; seconds
_GONE = "another process is gone"
_LOCKS: dict[int, str] = {}  # the files that this process has locked: descriptors and paths


class Repeated(Exception):
    """Another process fails with the same words, and says them."""


def exit_process(message: str) -> NoReturn:
    """Print a sentence to standard error and end the process with status 2. JAX would end it with a stack trace."""
    print(message, file=sys.stderr, flush=True)
    os._exit(2)


class Hosts:
    """The processes that take part, from `join`; `Hosts()` is one process alone.

    All processes make the same calls, in the same order.

    Attributes:
      count: how many processes there are.
      index: which of them this is, from 0.

    Example:
      >>> hosts = Hosts()
      >>> hosts.largest(7), hosts.share(np.array([True, False, False]))
      (7, [1, 2])
    """

    def __init__(
        self, count: int = 1, index: int = 0, *, wait: int = 300, on_timeout: Callable[[str], Any] = exit_process
    ):
        self.count, self.index = count, index
        self._wait, self._on_timeout, self._connected = wait, on_timeout, count > 1

    def largest(self, number: int) -> int:
        """Find the largest of the numbers, from 0, that the processes hold.

        Raises:
          ValueError: another process has refused.
        """
        if self.count == 1:
            return number
        message = np.zeros(_MESSAGE, np.uint8)
        message[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
        return int(self._exchange(message)[:, :8].copy().view(np.int64).max())

    def agree(self, run: Mapping[str, Any], done: np.ndarray) -> np.ndarray:
        """Exchange what every process was asked to draw and what it finds done, and disconnect.

        Args:
          run: values of JSON's types, which must be the same everywhere.
          done: bool[n], what is done as far as this process can see: disks may be shared or not.

        Returns:
          bool[n], what any process sees done.

        Raises:
          ValueError: another process was asked for something else, or has refused.
        """
        if self.count == 1:
            return done
        if message := self._difference(run):
            self._disconnect()
            raise ValueError(message)
        with self._time_limit(), _quiet():
            there = multihost_utils.process_allgather(done).any(axis=0)
        self._disconnect()
        return there

    def check_same(self, run: Mapping[str, Any]) -> None:
        """Refuse processes that were asked for something else; all stay connected.

        Args:
          run: values of JSON's types, which must be the same everywhere.

        Raises:
          ValueError: another process was asked for something else, or has refused.
        """
        if self.count > 1 and (message := self._difference(run)):
            raise ValueError(message)

    def wait_for_all(self) -> None:
        """Wait until every process is here, however long that takes; JAX ends the wait if one of them dies.

        Raises:
          ValueError: another process has refused.
        """
        if self.count > 1:
            self._exchange(np.zeros(_MESSAGE, np.uint8), limited=False)

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Mark what all processes compute together: what fails in there fails in all, or ends the others."""
        connected, self._connected = self._connected, False
        yield
        self._connected = connected

    def part(self) -> None:
        """Let the others go, once all are here; from then on, no process needs another."""
        if self.count > 1:
            self._disconnect(limited=False)

    def _difference(self, run: Mapping[str, Any]) -> str | None:
        """Who was asked for something else than process 0."""
        digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).digest()
        digests = self._exchange(np.frombuffer(digest, np.uint8))
        others = [i for i, one in enumerate(digests) if not np.array_equal(one, digests[0])]
        if not others:
            return None
        return (
            f"process {others[0]} was started with another model or other options than process 0: "
            "all but the process number must be the same."
        )

    def share(self, done: np.ndarray) -> list[int]:
        """List this process's part of what is missing: every `count`-th item.

        Args:
          done: bool[n], from `agree`.
        """
        return np.flatnonzero(~done)[self.index :: self.count].tolist()

    def refuse(self, words: str = "") -> bool:
        """Tell the others, who may be waiting, that this process will not take part; once disconnected, do nothing.

        Args:
          words: why.

        Returns:
          Whether a process of a lower number refuses in the same words, so that they need not be said again.
        """
        if not self._connected:
            return False
        digest = hashlib.sha256(words.encode()).digest()
        message = np.concatenate([_REFUSED, np.frombuffer(digest, np.uint8)[len(_REFUSED) :]])
        with _time_limit(self._wait, words or _GONE, self._on_timeout), _quiet():  # others may be at work for long
            heard = np.asarray(multihost_utils.process_allgather(message))
        self._disconnect()
        return any(np.array_equal(one, message) for one in heard[: self.index])

    def _exchange(self, message: np.ndarray, *, limited: bool = True) -> np.ndarray:
        """Send 32 bytes to all, and receive theirs, u8[count, 32]."""
        heard = self._heard(message, limited=limited)
        if refused := [i for i, one in enumerate(heard) if np.array_equal(one[: len(_REFUSED)], _REFUSED)]:
            self._disconnect()
            raise ValueError(f"process {refused[0]} refused to take part; its own message says why.")
        return heard

    def _heard(self, message: np.ndarray, *, limited: bool = True) -> np.ndarray:
        with self._time_limit(limited), _quiet():
            return np.asarray(multihost_utils.process_allgather(message))

    def _disconnect(self, *, limited: bool = True) -> None:
        """Let the others go: from here on, no process needs another."""
        self._connected = False
        with self._time_limit(limited), _quiet():
            multihost_utils.sync_global_devices("cmjax drawing")
            jax.distributed.shutdown()

    def _time_limit(self, limited: bool = True) -> contextlib.AbstractContextManager[None]:
        return _time_limit(self._wait, _GONE, self._on_timeout) if limited else contextlib.nullcontext()


@contextlib.contextmanager
def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    wait: int = 300,
    on_timeout: Callable[[str], Any] = exit_process,
) -> Iterator[Hosts]:
    """Meet the other processes, before anything is computed. If the body fails before they agree, the others are told.

    Args:
      coordinator: HOST:PORT of process 0; None, like the next two, on a cluster (Slurm, Open MPI, a TPU pod), which
        knows all three.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      wait: seconds until a process that does not come is given up.
      on_timeout: called with a sentence, from another thread, once that time is over. Nothing can interrupt the wait
        itself, so the default ends the process with exit status 2.

    Yields:
      The processes that take part.

    Raises:
      Repeated: the body failed, and so did that of another process, in the same words.
      ValueError: an argument makes no sense, or the processes cannot meet, or no cluster says who takes part.

    Example:
      What each of four machines runs, with its own process_id:

          with join("host0:9876", 4, process_id) as hosts:
              shards.check()
              done = hosts.agree(run, shards.done())
              shards.begin()
              draw_shards(draw, model, shards, hosts.share(done))
    """
    given = (coordinator, num_processes, process_id)
    if wait > _LONGEST or wait < 1:
        raise ValueError(f"wait must be from 1 to {_LONGEST} s, a day, got {wait}.")
    options: dict[str, Any] = {"initialization_timeout": wait + 60, "heartbeat_timeout_seconds": wait + 60}
    options |= {"shutdown_timeout_seconds": 10}  # after a defect; otherwise all disconnect at one moment
    if explicit := given != (None, None, None):
        _check(coordinator, num_processes, process_id)
        options |= dict(zip(("coordinator_address", "num_processes", "process_id"), given, strict=True))
        options |= {"cluster_detection_method": "deactivate"}
    where = f" at {coordinator}" if explicit else ""
    with contextlib.ExitStack() as stack:
        if explicit:
            stack.enter_context(_own_number(coordinator, process_id))
        hosts = _connect(options, where, explicit, wait, on_timeout)
        try:
            if num_processes not in (None, hosts.count):
                raise ValueError(f"process 0 waited for {hosts.count} processes, this one for {num_processes}.")
            yield hosts
        except Exception as error:
            if hosts.refuse(str(error)):
                raise Repeated(str(error)) from error
            raise


def _connect(options: dict[str, Any], where: str, explicit: bool, wait: int, on_timeout: Callable[[str], Any]) -> Hosts:
    """Wait for all processes."""
    with _time_limit(wait, f"not all processes came{where}", on_timeout), _quiet():
        try:
            jax.distributed.initialize(**options)
        except (RuntimeError, ValueError) as error:
            raise ValueError(_why_not(error, where, explicit)) from error
        held = collections.Counter(device.process_index for device in jax.devices())
    if len(set(held.values())) > 1:  # every process sees that
        jax.distributed.shutdown()
        raise ValueError(
            f"the processes have {', '.join(map(str, held.values()))} devices: all must have the same number."
        )
    return Hosts(jax.process_count(), jax.process_index(), wait=wait, on_timeout=on_timeout)


def _check(coordinator: Any, num_processes: Any, process_id: Any) -> None:
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator must be HOST:PORT of process 0, got {coordinator}.")
    if type(num_processes) is not int or not 0 < num_processes <= _MOST:
        raise ValueError(f"num_processes must be a whole number from 1 to {_MOST}, got {num_processes!s:.20}.")
    if type(process_id) is not int or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id must be a whole number from 0 to {num_processes - 1}, got {process_id!s:.20}.")


def _why_not(error: Exception, where: str, given: bool) -> str:
    """Say why the processes cannot meet."""
    said = str(error)
    if not given and ("should be defined" in said or "must be defined" in said):
        return (
            "no cluster (Slurm, Open MPI, a TPU pod) says who takes part: give HOST:PORT of process 0, the number of "
            "processes, and which of them this is, from 0."
        )
    hint = " Is the port in use? Choose another." if "start RPC server" in said else ""
    return f"the processes cannot meet{where}: {said.strip().splitlines()[0].rstrip('.')[:200]}.{hint}"


@contextlib.contextmanager
def _own_number(coordinator: str | None, process_id: int | None) -> Iterator[None]:
    """Refuse to be a process that already runs on this machine: JAX would abort one of the two with a stack trace."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    name = hashlib.sha256(f"{coordinator} {process_id}".encode()).hexdigest()[:16]
    while True:
        try:
            path = os.path.join(tempfile.gettempdir(), f"cmjax-process-{name}")
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError:  # no folder, or the file of another user, whose processes we cannot know
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ValueError(
                f"process {process_id} of {coordinator} already runs on this machine: give each process its own "
                "number, or choose another port."
            ) from error
        if _is_at(lock, path):
            break
        os.close(lock)  # its holder removed it after we opened it, and another process may hold a new one
    _LOCKS[lock] = path
    try:
        yield
    finally:
        _remove_locks(lock)
        os.close(lock)


def _remove_locks(*locks: int) -> None:
    """Remove files while this process holds their locks, so that no other process can hold them."""
    for lock in locks:
        path = _LOCKS.pop(lock, None)
        with contextlib.suppress(OSError):  # an empty file that cannot be removed does no harm
            if path and _is_at(lock, path):
                os.unlink(path)


def _is_at(opened: int, path: str) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(opened), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _time_limit(wait: int, what: str, on_timeout: Callable[[str], Any]) -> Iterator[None]:
    """Call `on_timeout` if the body takes longer."""

    def give_up() -> None:
        _remove_locks(*_LOCKS)  # on_timeout may end the process
        on_timeout(f"{what}: nobody within {wait} s.")

    timer = threading.Timer(wait, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what C++ libraries print (Gloo names each connection) off standard output, which is the caller's."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # there is no standard output
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
