"""When a worker process is to be replaced, and whose turn it is.

A worker is replaced for what it has grown since it was warm: a limit for its size alone replaces workers that are large
and healthy again and again. Only one worker of a server goes at a time, and only while all the others serve.
"""

import contextlib
import os
import random
import struct
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Final

from memtools._records import record
from memtools.errors import ConfigError, MemtoolsError, ReadingError
from memtools.integrations._requests import HasLevel
from memtools.monitor._report import notable_owners
from memtools.readings import Level, read_process
from memtools.readings._shares import process_start
from memtools.scopes._budgets import parse_budget
from memtools.units import format_size, parse_count

if sys.platform != "win32":
    import fcntl

INTERVAL_S: Final = 0.25
ASK_AGAIN_S: Final = 30.0
DEFAULT_WARM_UP: Final = 50
DEFAULT_JITTER: Final = 0.1

_WARM_UP_S: Final = 300.0  # for a worker that gets few requests
_SETTLED_S: Final = 300.0  # a replacement that is not there by then is not to come, as after gunicorn's SIGTTOU
_LOGGED_OWNERS: Final = 3
_CRITICAL_SHARE: Final = 4  # while memory is critical, a quarter of the growth suffices


@record
class RecyclingOptions:
    """When a worker is to be replaced.

    Attributes:
        growth_bytes: at this growth over its size when it was warm.
        limit_bytes: at this size; None for no limit.
        monitor: while its level is `CRITICAL`, at a quarter of the growth; None for no monitor.
        warm_up: requests or tasks after which a worker is warm.
        jitter: the share of the growth by which the growth of each worker differs, at most.
    """

    growth_bytes: int
    limit_bytes: int | None
    monitor: HasLevel | None
    warm_up: int
    jitter: float


def make_options(
    growth: int | str, limit: int | str | None, monitor: HasLevel | None, warm_up: int, jitter: float
) -> RecyclingOptions:
    """Return checked options.

    Raises:
        ConfigError: for an argument that makes no sense.
    """
    growth_bytes = parse_budget(growth, name="growth")
    limit_bytes = None if limit is None else parse_budget(limit, name="limit")
    if limit_bytes is not None and limit_bytes <= growth_bytes:
        raise ConfigError("limit", limit, f"a size above growth={growth!r}, or None")
    if monitor is not None and not hasattr(monitor, "level"):
        raise ConfigError("monitor", monitor, "a MemoryMonitor, or another object with a level")
    if not _is_share(jitter):
        raise ConfigError("jitter", jitter, "a share from 0 to 1, such as 0.1")
    return RecyclingOptions(
        growth_bytes, limit_bytes, monitor, parse_count(warm_up, name="warm_up", minimum=0), float(jitter)
    )


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def private_bytes() -> int:
    """Return the resident memory of this process without that of files and shared memory, where the system tells."""
    memory = read_process()
    return memory.resident_bytes - (memory.shared_bytes or 0)


class WorkerSize:
    """The size of a worker over time, and the reason to replace it.

    Made in the worker itself, not before a fork. Used by one thread or task.

    Args:
        options: when it is to be replaced.
        unit: what it serves, for the log: requests or tasks.
        read: the private memory of this process, in bytes.
        clock: monotonic seconds.
        draw: a random number from 0 to 1.

    Attributes:
        grown_bytes: what it had grown at the last look; all of it, where it is over the limit.
    """

    def __init__(
        self,
        options: RecyclingOptions,
        *,
        unit: str = "requests",
        read: Callable[[], int] = private_bytes,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._options = options
        self._unit = unit
        self._read = read
        self._clock = clock
        # Not the generator of the process, which forked workers share the state of, and programs seed.
        draw = draw or random.SystemRandom().random
        self._growth_bytes = round(options.growth_bytes * (1 + options.jitter * draw()))
        self._started = clock()
        self._warm_bytes: int | None = None
        self.grown_bytes = 0

    def reason_to_recycle(self, served: int) -> str | None:
        """Look at the size; return why the worker is to be replaced, None if it is not.

        Args:
            served: how many requests or tasks it has served so far.
        """
        options = self._options
        try:
            size = self._read()
        except ReadingError:
            return None  # there may be a descriptor for it at the next look
        if options.limit_bytes is not None and size > options.limit_bytes:
            self.grown_bytes = size
            return self._describe(size, served, f"limit={format_size(options.limit_bytes)}")
        if self._warm_bytes is None:
            if served >= options.warm_up or self._clock() - self._started > _WARM_UP_S:
                self._warm_bytes = size
            return None
        growth = self.grown_bytes = size - self._warm_bytes
        if growth > self._growth_bytes:
            return self._describe(size, served, f"growth={format_size(self._growth_bytes)} with jitter")
        if growth > self._growth_bytes / _CRITICAL_SHARE and is_critical(options.monitor):
            return self._describe(
                size, served, f"a quarter of growth={format_size(self._growth_bytes)}, level CRITICAL"
            )
        return None

    def _describe(self, size: int, served: int, limit: str) -> str:
        grown = (
            "" if self._warm_bytes is None else f", {format_size(size - self._warm_bytes)} more than when it was warm"
        )
        owners = ", ".join(f"{name} {format_size(live)}" for name, live in notable_owners(_LOGGED_OWNERS)[0])
        return (
            f"worker {os.getpid()} is to be replaced: it holds {format_size(size)}{grown} ({limit}) "
            f"after {served:,} {self._unit}; largest owners: {owners or 'unknown'}"
        )


def is_critical(monitor: HasLevel | None) -> bool:
    """Return whether there is a monitor, and memory is critical."""
    return monitor is not None and monitor.level >= Level.CRITICAL


_TURN: Final = 0
_MEMBERSHIP: Final = 1
_FIRST_SLOT: Final = 2
_SLOTS: Final = 1024
# Beside the locks: what a worker that asks for the turn has grown, and when it asked, by the clock of the system.
_REQUEST: Final = struct.Struct("<qd")
_ASKED_S: Final = 4 * INTERVAL_S


class WorkerTurns:
    """The workers of one server that serve, and the one that may be replaced now.

    Each byte of a file that all of them have open is a lock. A worker keeps one from the moment it serves until it
    dies; the lock of the first byte is the turn. The locks are those of POSIX: they belong to a process, no forked
    child inherits them, and the kernel releases them when it dies, however it dies. So there is no record that a
    worker which was killed could leave behind, and nothing to be repaired.

    Args:
        workers: how many there are to be.
        path: of the file, for workers that inherit no descriptor; None for a file without a name, made now.
        clock: monotonic seconds.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, workers: int, *, path: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        if sys.platform == "win32" and workers > 1:
            raise MemtoolsError("workers can take turns only where there are POSIX locks: not on Windows")
        self._workers = workers
        self._path = path
        self._clock = clock
        self._slot: int | None = None
        self._others = -1
        self._others_since = clock()
        self._fd = -1
        self._open()

    def expect(self, workers: int) -> None:
        """Say how many there are to be, where that was not known when this was made; before `join`."""
        self._workers = workers

    def join(self) -> None:
        """Count this process among those that serve."""
        if self._slot is not None:
            return
        self._await(_MEMBERSHIP)
        while True:
            self._slot = next((slot for slot in _slots() if self._lock(slot)), None)
            self._tell(0)
            if self._path is None or _is_file_at(self._fd, self._path):
                break
            self.close()  # the last worker has removed it meanwhile; this releases all locks
            self._open()
            self._await(_MEMBERSHIP)
        self._unlock(_MEMBERSHIP)

    def try_take(self, grown_bytes: int = 0) -> bool:
        """Take the turn, and keep it until death.

        Another worker may have it, or one of the others may not serve: then this returns False, and is to be called
        again soon. Of those that call it, the one that has grown most goes first.

        Args:
            grown_bytes: how much this worker has grown.
        """
        self._tell(grown_bytes)
        if not self._lock(_TURN):
            self._others = -1
            return False
        others = self._others_that_serve()
        now = self._clock()
        if len(others) != self._others:
            self._others, self._others_since = len(others), now
        self._workers = max(self._workers, len(others) + 1)  # more than at the start, as after gunicorn's SIGTTIN
        is_settled = bool(others) and now - self._others_since >= _SETTLED_S
        if is_settled:
            self._workers = len(others) + 1
        if len(others) >= self._workers - 1 and all(self._asked_bytes(slot) <= grown_bytes for slot in others):
            return True
        self._unlock(_TURN)
        return False

    def leave(self) -> None:
        """Give the slot back at the end of a worker, and the last one removes a file that has a name; keep the turn."""
        if self._slot is None or not self._await(_MEMBERSHIP):
            return
        with contextlib.suppress(OSError):
            self._unlock(self._slot)
            self._slot = None
            if self._path is not None and not self._others_that_serve() and _is_file_at(self._fd, self._path):
                os.unlink(self._path)
        self._unlock(_MEMBERSHIP)

    def close(self) -> None:
        """Close the file, and with it give the turn and the slot back."""
        self._close()

    def _open(self) -> None:
        if self._path is None:
            with tempfile.TemporaryFile("wb", buffering=0) as file:
                self._fd = os.dup(file.fileno())
        else:
            # Not through a link that another user may have put there.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
            self._fd = os.open(self._path, flags, 0o600)
        # gunicorn drops a configuration when it has read it again.
        self._close = weakref.finalize(self, os.close, self._fd)
        self._close.atexit = False

    def _others_that_serve(self) -> list[int]:
        # A lock that can be had is not another worker's. Only the holder of the turn, or of the membership, looks.
        others: list[int] = []
        for slot in _slots():
            if slot != self._slot:
                if self._lock(slot):
                    self._unlock(slot)
                else:
                    others.append(slot)
        return others

    def _tell(self, grown_bytes: int) -> None:
        if self._slot is not None and sys.platform != "win32":
            os.pwrite(self._fd, _REQUEST.pack(grown_bytes, time.monotonic()), self._slot * _REQUEST.size)

    def _asked_bytes(self, slot: int) -> int:
        """Return what another worker has grown, if it has asked for the turn a moment ago."""
        if sys.platform == "win32":
            return 0
        found = os.pread(self._fd, _REQUEST.size, slot * _REQUEST.size)
        if len(found) < _REQUEST.size:
            return 0
        grown_bytes, asked_at = _REQUEST.unpack(found)
        return int(grown_bytes) if time.monotonic() - asked_at < _ASKED_S else 0

    def _await(self, byte: int) -> bool:
        deadline = self._clock() + 1.0
        while not self._lock(byte):
            if self._clock() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _lock(self, byte: int) -> bool:
        if sys.platform != "win32":
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError:
                return False
        return True

    def _unlock(self, byte: int) -> None:
        if sys.platform != "win32":
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)


def _slots() -> range:
    return range(_FIRST_SLOT, _FIRST_SLOT + _SLOTS)


def _is_file_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def path_for_siblings() -> str:
    """Return the path of a file that the processes with this parent, and no others, agree upon."""
    parent = os.getppid()
    started = process_start(parent)
    namespace = "0"
    with contextlib.suppress(OSError):  # Linux
        # Containers may share a folder, and in each the parent may have the same number.
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    user = os.getuid() if sys.platform != "win32" else 0
    return os.path.join(tempfile.gettempdir(), f"memtools-workers-{user}-{parent}-{started}-{namespace}")
