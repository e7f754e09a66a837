"""Be woken when memory is short: one epoll that a thread can wait on and a loop can watch.

Covers: the epoll of our own, reading a FIFO empty, closing, forks. Leaves to others: which file it is
(`_pressure_source`), what is done about it (`_relief`).

Trap: a pressure file counts as readable at all times. A loop that watches it directly spins (`add_reader` fired 45,987
times in 0.2 s); what it means arrives as EPOLLPRI. So it goes into an epoll of our own, and the loop watches that one.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from memtools.monitor._pressure_source import PressureSource, open_source
from memtools.readings import Headroom

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
