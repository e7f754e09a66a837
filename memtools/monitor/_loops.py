"""Be woken when memory is short: one epoll that a thread can wait on and a loop can watch.

Covers: the epoll of our own, reading a FIFO empty, closing, forks. Leaves to others: which file it is
(`_pressure_source`), what is done about it (`_relief`).

Trap: a pressure file counts as readable at all times. A loop that watches it directly spins (`add_reader` fired 45,987
times in 0.2 s); what it means arrives as EPOLLPRI. So it goes into an epoll of our own, and the loop watches that one.
"""

import base64
import binascii
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final, Protocol

from memtools._records import record
from memtools.readings import Headroom, LimitSource

# Where the kernel, or the service manager, says that memory is short.
#
# Covers: which file to watch, opening it the way its kind wants, what is written into it first.
# Leaves to others: waiting for it (`_pressure`).
#
# In this order: `$MEMORY_PRESSURE_WATCH` (the protocol of systemd, https://systemd.io/MEMORY_PRESSURE), the pressure file
# of the nearest cgroup above us that has a limit, /proc/pressure/memory. Linux only.

WATCH: Final = "MEMORY_PRESSURE_WATCH"
WRITE: Final = "MEMORY_PRESSURE_WRITE"
SYSTEM: Final = "/proc/pressure/memory"
# 200 ms of 2 s in which somebody waited for memory. Windows in multiples of 2 s need no privilege (Linux 6.5).
TRIGGER: Final = b"some 200000 2000000\0"
_CGROUPS2: Final = (LimitSource.CGROUP2_MAX, LimitSource.CGROUP2_HIGH)


@record
class PressureSource:
    """An open file that wakes whoever polls it when memory is short.

    Attributes:
        path: what was opened.
        fd: its descriptor; whoever opened it closes it.
        has_content: whether what arrives has to be read away (a FIFO), or the wake-up is all (the kernel's files).
    """

    path: str
    fd: int
    has_content: bool


def open_source(
    room: Headroom | None, *, environ: Mapping[str, str] = os.environ, system: str = SYSTEM
) -> PressureSource | None:
    """Return the first source that can be opened; None where there is none, or where the manager wants none."""
    for path, trigger in _candidates(room, environ, system):
        with suppress(OSError, ValueError):  # not there, not allowed, no descriptor left, a NUL in the path
            return _opened(path, trigger)
    return None


def _candidates(room: Headroom | None, environ: Mapping[str, str], system: str) -> Iterator[tuple[str, bytes]]:
    told = environ.get(WATCH, "")
    if told == "/dev/null":  # "do not watch", by the protocol
        return
    if told:
        yield told, _asked_to_write(environ)
    walls = room.levels if room is not None else ()
    ours = [wall.path for wall in walls if wall.source in _CGROUPS2 and wall.path is not None]
    yield from ((f"{os.path.dirname(path)}/memory.pressure", TRIGGER) for path in ours[:1])
    yield system, TRIGGER


def _asked_to_write(environ: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(environ.get(WRITE, ""), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _opened(path: str, trigger: bytes) -> PressureSource:
    # Read and write: a FIFO that was opened for reading alone ends with its first writer.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        has_content = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if trigger:
            os.write(fd, trigger)
    except BaseException:
        os.close(fd)
        raise
    return PressureSource(path, fd, has_content)


_READ_BYTES: Final = 4096

if sys.platform == "linux":
    import select

    class PressureWatch:
        """An open source, a bell, and the epoll around them.

        Args:
            source: an open source; closed with the watch.

        Raises:
            OSError: when no descriptor is left, or the file cannot be polled; the source is closed then.
        """

        def __init__(self, source: PressureSource) -> None:
            self.path = source.path
            self._source = source
            self._lock = threading.Lock()  # a bell that rang after closing would write into somebody else's file
            self._descriptors = [source.fd]
            try:
                self._epoll = select.epoll()
                self._descriptors.append(self._epoll.fileno())
                self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._descriptors.append(self._bell)
                self._epoll.register(self._bell, select.EPOLLIN)
                self._epoll.register(source.fd, select.EPOLLIN if source.has_content else select.EPOLLPRI)
            except OSError:
                self.close()
                raise

        def fileno(self) -> int:
            """Return the descriptor to watch for reading."""
            return self._epoll.fileno()

        def wait(self, seconds: float) -> bool:
            """Wait so long at most; return whether memory was said to be short, and forget that it was."""
            try:
                events = dict(self._epoll.poll(seconds, 2))
            except (OSError, ValueError):  # closed by somebody who closes all descriptors
                return False
            if self._bell in events:
                with suppress(OSError):
                    os.eventfd_read(self._bell)
            event = events.get(self._source.fd, 0)
            if event and self._source.has_content:
                self._drain()
            # A cgroup that was removed, or a socket that was hung up, says so for ever: enough of it.
            is_over = bool(event & (select.EPOLLERR | select.EPOLLHUP))
            if is_over:
                with suppress(OSError, ValueError):
                    self._epoll.unregister(self._source.fd)
            return bool(event) and not is_over

        def ring(self) -> None:
            """End a `wait` in another thread."""
            with self._lock, suppress(OSError):
                if self._descriptors:
                    os.eventfd_write(self._bell, 1)

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

        def renew_lock(self) -> None:
            """Make a new lock: in a forked child nobody will release the old one."""
            self._lock = threading.Lock()

        def _drain(self) -> None:
            with suppress(OSError):
                while len(os.read(self._source.fd, _READ_BYTES)) == _READ_BYTES:
                    pass

else:

    class PressureWatch:
        """Nothing to wait for: only Linux says when memory is short."""

        path = ""

        def __init__(self, source: PressureSource) -> None:
            raise OSError(0, "no pressure files on this system", source.path)

        def fileno(self) -> int:
            """Return no descriptor."""
            return -1

        def wait(self, seconds: float) -> bool:
            """Sleep; nothing is said here."""
            time.sleep(seconds)
            return False

        def ring(self) -> None:
            """Do nothing."""

        def close(self) -> None:
            """Do nothing."""

        def renew_lock(self) -> None:
            """Do nothing."""


def open_watch(room: Headroom | None) -> PressureWatch | None:
    """Return a watch on the best source there is; None where there is none, or no descriptor is left."""
    if sys.platform != "linux":
        return None
    source = open_source(room)
    if source is None:
        return None
    try:
        return PressureWatch(source)
    except OSError:
        return None


# The beat as a task: look, act, sleep, on the loop that it was started on.
#
# Covers: starting, being woken from any thread, its end, a loop that was closed without it.
# Leaves to others: what a beat does (`Beaten`), pressure files (`_pressure`).

_PAUSE_S: Final = 0.2  # after a signal of pressure: whoever writes to the FIFO may write without end


class BeatenOnLoop(Protocol):
    """What a beat drives."""

    async def beat_on_loop(self) -> float:
        """Look, act, and return the seconds until the next beat; never raises an `Exception`."""
        ...

    def feel(self, source: str) -> None:
        """Note that memory was said to be short."""
        ...


class TaskBeat:
    """A beat in a task of the running loop."""

    kind = "task"

    def __init__(self, name: str, driven: BeatenOnLoop, watch: Callable[[], PressureWatch | None]) -> None:
        import asyncio

        self._name = name
        self._driven = driven
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._open: PressureWatch | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> bool:
        """Start; return True."""
        self._task = self._loop.create_task(self._run(), name=f"memtools-{self._name}")
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it still beats: its task may have been cancelled by others, its loop closed."""
        return self._task is not None and not self._task.done() and not self._loop.is_closed()

    def wake(self) -> None:
        """Have it look now; from any thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._woken.set)

    async def stop(self) -> None:
        """End it, and wait until it has ended."""
        import asyncio

        task = self._task
        if task is None or task.done() or task is asyncio.current_task():
            return
        if self._loop is not asyncio.get_running_loop():
            self.abandon()
            return
        task.cancel()
        await asyncio.wait({task})

    def abandon(self) -> None:
        """Have it end by itself, where its loop still runs."""
        task = self._task
        if task is not None and not task.done():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)

    def forget(self) -> None:
        """Close what a forked child has inherited of it; the loop is the parent's, and is not touched."""
        watch, self._open = self._open, None
        if watch is not None:
            watch.renew_lock()
            watch.close()

    async def _run(self) -> None:
        self._open = self._watch()
        self._listen()
        try:
            while True:
                seconds = await self._driven.beat_on_loop()
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

    def _listen(self) -> None:
        self._resume = None
        if self._open is None:
            return
        try:
            self._loop.add_reader(self._open.fileno(), self._feel)
        except (NotImplementedError, OSError, ValueError):  # a loop without descriptors, or the file is closed
            self._open.close()
            self._open = None

    def _feel(self) -> None:
        watch = self._open
        if watch is None:
            return
        has_come = watch.wait(0)
        self._loop.remove_reader(watch.fileno())
        self._resume = self._loop.call_later(_PAUSE_S, self._listen)
        if has_come:
            self._driven.feel(watch.path)
            self._woken.set()

    def _close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        watch, self._open = self._open, None
        if watch is not None:
            with suppress(RuntimeError, OSError, ValueError, NotImplementedError):  # the loop is closed already
                self._loop.remove_reader(watch.fileno())
            watch.close()


# The beat in a thread: look, act, wait; until it is told to stop.
#
# Covers: starting, being woken, a system that gives no thread, no descriptor or no reading.
# Leaves to others: what a beat does (`Beaten`), pressure files (`_pressure`).
#
# The thread is a daemon: an interpreter that ends does not wait for it.


class Beaten(Protocol):
    """What a beat drives."""

    def beat(self) -> float:
        """Look, act, and return the seconds until the next beat; never raises an `Exception`."""
        ...

    def feel(self, source: str) -> None:
        """Note that memory was said to be short."""
        ...


class ThreadBeat:
    """A beat in a daemon thread."""

    kind = "thread"

    def __init__(self, name: str, driven: Beaten, watch: Callable[[], PressureWatch | None]) -> None:
        self._driven = driven
        self._watch = watch
        self._woken = threading.Event()
        self._is_over = False
        self._open: PressureWatch | None = None
        self._thread = threading.Thread(target=self._run, name=f"memtools-{name}", daemon=True)

    def start(self) -> bool:
        """Start; return False where no thread can be had."""
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):  # no memory for a stack, too many threads, the interpreter is ending
            return False
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it still beats."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Have it look now."""
        self._woken.set()
        watch = self._open
        if watch is not None:
            watch.ring()

    def stop(self) -> None:
        """End it, and wait until it has ended, unless it is the one that asks."""
        self.abandon()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """Have it end by itself."""
        self._is_over = True
        self.wake()

    def forget(self) -> None:
        """Close what a forked child has inherited of it; the thread stayed in the parent."""
        watch, self._open = self._open, None
        if watch is not None:
            watch.renew_lock()
            watch.close()

    def _run(self) -> None:
        self._open = watch = self._watch()
        try:
            while not self._is_over:
                self._wait(watch, self._driven.beat())
        finally:
            self._open = None
            if watch is not None:
                watch.close()

    def _wait(self, watch: PressureWatch | None, seconds: float) -> None:
        # Whoever wakes sets the event first and rings then; who waits looks at the event first.
        if watch is None or self._woken.is_set():
            self._woken.wait(seconds)
        elif watch.wait(seconds):
            self._driven.feel(watch.path)
            self._woken.wait(_PAUSE_S)
        self._woken.clear()
