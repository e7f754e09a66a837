"""The sampling loop in a thread and in a task, and its pressure watch."""

import asyncio
import base64
import binascii
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from math import inf
from typing import Final, Protocol

from memtools._records import record
from memtools._threads import OwnThread
from memtools.readings import Headroom, LimitSource

WATCH: Final = "MEMORY_PRESSURE_WATCH"
WRITE: Final = "MEMORY_PRESSURE_WRITE"
SYSTEM: Final = "/proc/pressure/memory"
# 200 ms of stalls in 2 s. Windows in multiples of 2 s need no privilege (Linux 6.5).
TRIGGER: Final = b"some 200000 2000000\0"

_CGROUP2_SOURCES: Final = (LimitSource.CGROUP2_MAX, LimitSource.CGROUP2_HIGH)
_READ_BYTES: Final = 4096
STOP_S: Final = 10.0  # for the thread of a sampling loop to end
_PAUSE_S: Final = 0.2  # after a pressure signal: a process may write to the FIFO without end


@record
class PressureSource:
    """An open file that wakes its poller when memory is short; its opener closes it.

    Attributes:
        path: what was opened.
        fd: its descriptor.
        is_fifo: whether what arrives has to be read (a FIFO); of the kernel's files, the wake-up is all.
    """

    path: str
    fd: int
    is_fifo: bool


def open_source(
    headroom: Headroom | None, *, environ: Mapping[str, str] = os.environ, system: str = SYSTEM
) -> PressureSource | None:
    """Return the first pressure source that can be opened; None where there is none, or the service manager wants none.

    In this order: `$MEMORY_PRESSURE_WATCH` (the protocol of systemd, https://systemd.io/MEMORY_PRESSURE), the pressure
    file of the nearest cgroup with a limit, /proc/pressure/memory. Linux only.
    """
    for path, trigger in _candidates(headroom, environ, system):
        with suppress(OSError, ValueError):  # not there, not allowed, no descriptor left, a NUL in the path
            return _open(path, trigger)
    return None


def _candidates(headroom: Headroom | None, environ: Mapping[str, str], system: str) -> Iterator[tuple[str, bytes]]:
    requested = environ.get(WATCH, "")
    if requested == "/dev/null":  # "do not watch", by the protocol
        return
    if requested:
        yield requested, _trigger_from_environ(environ)
    levels = headroom.levels if headroom is not None else ()
    limits = [level.path for level in levels if level.source in _CGROUP2_SOURCES and level.path is not None]
    yield from ((f"{os.path.dirname(path)}/memory.pressure", TRIGGER) for path in limits[:1])
    yield system, TRIGGER


def _trigger_from_environ(environ: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(environ.get(WRITE, ""), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _open(path: str, trigger: bytes) -> PressureSource:
    # Read and write: a FIFO that was opened for reading alone ends with its first writer.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        is_fifo = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if trigger:
            os.write(fd, trigger)
    except BaseException:
        os.close(fd)
        raise
    return PressureSource(path, fd, is_fifo)


if sys.platform == "linux":
    import select

    class PressureWatch:
        """An open source and an eventfd in one epoll, which a thread can wait on and an event loop can watch.

        An event loop must not watch a pressure file itself: it counts as readable at all times, so the loop spins
        (`add_reader` fired 45,987 times in 0.2 s). The signal arrives as EPOLLPRI, which the epoll can wait for.

        Args:
            source: an open source; closed with the watch.

        Raises:
            OSError: when no descriptor is left, or the file cannot be polled; the source is closed then.
        """

        def __init__(self, source: PressureSource) -> None:
            self.path = source.path
            self._source = source
            self._lock = threading.Lock()  # a wake after closing would write into a file that has the number since
            self._descriptors = [source.fd]
            try:
                self._epoll = select.epoll()
                self._descriptors.append(self._epoll.fileno())
                self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._descriptors.append(self._eventfd)
                self._epoll.register(self._eventfd, select.EPOLLIN)
                self._epoll.register(source.fd, select.EPOLLIN if source.is_fifo else select.EPOLLPRI)
            except OSError:
                self.close()
                raise

        def fileno(self) -> int:
            """Return the descriptor to watch for reading."""
            return self._epoll.fileno()

        def wait(self, seconds: float) -> bool:
            """Wait for at most `seconds`; return whether there was a signal of pressure, and clear it."""
            try:
                events = dict(self._epoll.poll(seconds, 2))
            except (OSError, ValueError):  # closed by a program that closes all descriptors
                return False
            if self._eventfd in events:
                with suppress(OSError):
                    os.eventfd_read(self._eventfd)
            event = events.get(self._source.fd, 0)
            if event and self._source.is_fifo:
                self._drain()
            # A cgroup that was removed, or a socket that was hung up, would wake every poll from now on.
            is_over = bool(event & (select.EPOLLERR | select.EPOLLHUP))
            if is_over:
                with suppress(OSError, ValueError):
                    self._epoll.unregister(self._source.fd)
            return bool(event) and not is_over

        def wake(self) -> None:
            """End a `wait` in another thread."""
            with self._lock, suppress(OSError):
                if self._descriptors:
                    os.eventfd_write(self._eventfd, 1)

        def close(self) -> None:
            """Close all descriptors; a second call does nothing."""
            with self._lock:
                descriptors, self._descriptors = self._descriptors, []
            for descriptor in descriptors[:1] + descriptors[2:]:
                with suppress(OSError):
                    os.close(descriptor)
            if len(descriptors) > 1:
                with suppress(OSError):
                    self._epoll.close()

        def after_fork(self) -> None:
            """Make a new lock: in a forked child no thread will release the old one."""
            self._lock = threading.Lock()

        def _drain(self) -> None:
            with suppress(OSError):
                while len(os.read(self._source.fd, _READ_BYTES)) == _READ_BYTES:
                    pass

else:

    class PressureWatch:
        """A watch without a source: only Linux reports memory pressure."""

        path = ""

        def __init__(self, source: PressureSource) -> None:
            raise OSError(0, "no pressure files on this system", source.path)

        def fileno(self) -> int:
            """Return no descriptor."""
            return -1

        def wait(self, seconds: float) -> bool:
            """Sleep; there are no signals."""
            time.sleep(seconds)
            return False

        def wake(self) -> None:
            """Do nothing."""

        def close(self) -> None:
            """Do nothing."""

        def after_fork(self) -> None:
            """Do nothing."""


def open_watch(headroom: Headroom | None) -> PressureWatch | None:
    """Return a watch on the best source; None where there is none, or nothing to wait with."""
    if sys.platform != "linux" or not hasattr(select, "epoll"):
        return None  # gevent and eventlet take it away, because to wait in it would stop every greenlet
    source = open_source(headroom)
    if source is None:
        return None
    try:
        return PressureWatch(source)
    except OSError:
        return None


class Ticker(Protocol):
    """What a sampling loop drives."""

    def tick(self) -> float:
        """Sample, act, and return the seconds until the next tick; never raises an `Exception`."""
        ...

    async def tick_async(self) -> float:
        """Do the same on the running loop."""
        ...

    def look(self) -> float:
        """Look for a question from outside; return the seconds to the next look, infinite for none."""
        ...

    def on_pressure(self, source: str) -> None:
        """Take a signal of pressure into account."""
        ...


class ThreadLoop:
    """A sampling loop in a daemon thread, which the end of the interpreter does not wait for.

    Args:
        name: the monitor's name.
        ticker: what is driven.
        open_watch: opens the pressure watch, in the thread; returns None for none.
    """

    mode = "thread"

    def __init__(self, name: str, ticker: Ticker, open_watch: Callable[[], PressureWatch | None]) -> None:
        self._ticker = ticker
        self._open_watch = open_watch
        self._woken = threading.Event()
        self._is_stopping = False
        self._watch: PressureWatch | None = None
        self._thread = OwnThread(target=self._run, name=f"memtools-{name}", daemon=True)

    def start(self) -> bool:
        """Start; return False where no thread can be started."""
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):  # no memory for a stack, too many threads, the interpreter is ending
            return False
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it is running."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Have it tick now."""
        self._woken.set()
        watch = self._watch
        if watch is not None:
            watch.wake()

    def stop(self) -> bool:
        """Stop it, and wait until it has ended, unless the calling thread is its own; return whether it has ended.

        A clean-up step or a callback of the program may hang in it: after 10 s the thread is left to itself, and ends
        when that returns.
        """
        self.request_stop()
        if self._thread is threading.current_thread():
            return True
        self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def request_stop(self) -> None:
        """Stop it without waiting."""
        self._is_stopping = True
        self.wake()

    def after_fork(self) -> None:
        """Close what a forked child has inherited of it.

        Its thread does not exist there, unless a callback in this thread has forked: then it is to end.
        """
        self._is_stopping = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.after_fork()
            watch.close()

    def _run(self) -> None:
        self._watch = watch = self._open_watch()
        try:
            while not self._is_stopping:
                self._wait(watch, self._ticker.tick())
        finally:
            self._watch = None
            if watch is not None:
                watch.close()

    def _wait(self, watch: PressureWatch | None, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            before = time.monotonic()
            part = min(end - before, self._ticker.look())
            # `wake` sets the event first and writes to the eventfd then; so the event is looked at first here.
            if watch is None or self._woken.is_set():
                self._woken.wait(part)
            elif watch.wait(part):
                self._ticker.on_pressure(watch.path)
                self._woken.wait(_PAUSE_S)
                break
            now = time.monotonic()
            # Where the program has closed all descriptors, the watch does not wait.
            if self._woken.is_set() or now >= end or now - before < part / 2:
                break
        self._woken.clear()


class AsyncioLoop:
    """A sampling loop in a task of the running event loop.

    Args:
        name: the monitor's name.
        ticker: what is driven.
        open_watch: opens the pressure watch, in the task; returns None for none.
    """

    mode = "task"

    def __init__(self, name: str, ticker: Ticker, open_watch: Callable[[], PressureWatch | None]) -> None:
        self._name = name
        self._ticker = ticker
        self._open_watch = open_watch
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._watch: PressureWatch | None = None
        self._resume_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._is_forked = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> bool:
        """Start; return True."""
        self._task = self._loop.create_task(self._run(), name=f"memtools-{self._name}")
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it is running: the program may have cancelled its task, or closed its loop."""
        return self._task is not None and not self._task.done() and not self._loop.is_closed()

    def wake(self) -> None:
        """Have it tick now; from any thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._woken.set)

    async def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        task = self._task
        if task is None or task.done() or task is asyncio.current_task():
            return
        if self._loop is not asyncio.get_running_loop():
            self.request_stop()
            return
        task.cancel()
        await asyncio.wait({task})

    def request_stop(self) -> None:
        """Stop it without waiting, where its loop still runs."""
        task = self._task
        if task is not None and not task.done():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)

    def after_fork(self) -> None:
        """Close what a forked child has inherited of it; the loop is the parent's, and is not touched."""
        self._is_forked = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.after_fork()
            watch.close()

    async def _run(self) -> None:
        self._watch = self._open_watch()
        self._add_reader()
        self._look()
        try:
            while not self._is_forked:
                seconds = await self._ticker.tick_async()
                await self._sleep(seconds)
        finally:
            self._close()

    async def _sleep(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
        self._woken.clear()

    def _look(self) -> None:
        # A timer of its own: the time to the next tick may be longer.
        seconds = inf if self._is_forked else self._ticker.look()
        self._look_timer = None if seconds == inf else self._loop.call_later(seconds, self._look)

    def _add_reader(self) -> None:
        self._resume_timer = None
        if self._watch is None:
            return
        try:
            self._loop.add_reader(self._watch.fileno(), self._on_readable)
        except (NotImplementedError, OSError, ValueError):  # a loop without descriptors, or the file is closed
            self._watch.close()
            self._watch = None

    def _on_readable(self) -> None:
        watch = self._watch
        if watch is None:
            return
        is_short = watch.wait(0)
        self._loop.remove_reader(watch.fileno())
        self._resume_timer = self._loop.call_later(_PAUSE_S, self._add_reader)
        if is_short:
            self._ticker.on_pressure(watch.path)
            self._woken.set()

    def _close(self) -> None:
        for timer in (self._resume_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        watch, self._watch = self._watch, None
        if watch is not None:
            with suppress(RuntimeError, OSError, ValueError, NotImplementedError):  # the loop is closed already
                self._loop.remove_reader(watch.fileno())
            watch.close()
