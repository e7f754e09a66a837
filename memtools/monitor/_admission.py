"""Back-pressure: let work in while there is memory for it, the others in order of arrival.

Covers: who may enter, promises, waiting on loops and in threads. Leaves to others: levels and readings (`_lookout`).

Always lets one in when nobody is inside, so nothing waits for ever, and nobody who does not ask for a second keeps the
others waiting. Memory also comes back while nobody leaves, so who waits looks again every 50 ms.

Threads: any, and any number of loops, share one row.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from memtools.errors import MemtoolsError
from memtools.monitor._statistics import AdmissionStatistics
from memtools.units import format_size

if TYPE_CHECKING:
    import asyncio

LOOK_AGAIN_AFTER_S: Final = 0.05
_GIVES_WAY_AFTER_S: Final = 1.0


class AdmissionReused(MemtoolsError, RuntimeError):
    """One admission was entered a second time; ask `admit()` for each block."""

    def __str__(self) -> str:
        return "this admission was entered before: ask monitor.admit() for each block"


class AdmissionRow:
    """Who is inside and who waits.

    Args:
        use: returns the use of memory and the most that may be used, in bytes, or None where there is no room now
            whatever is asked for.
        clock: monotonic seconds.
    """

    def __init__(self, use: Callable[[], tuple[int, float] | None], clock: Callable[[], float]) -> None:
        self._use = use
        self._clock = clock
        self._lock = threading.RLock()
        self._row: deque[Admission] = deque()
        self._inside = self._promised = self._admitted = self._waited = 0
        self._used_when_empty = 0

    def ask(self, admission: "Admission") -> bool:
        """Let it in, or line it up; return whether it is in."""
        with self._lock:
            now = admission.asked_at = self._clock()
            if admission not in self._row:
                self._row.append(admission)
            if not self._is_first(admission, now) or not self._has_room(admission.size_bytes):
                return False
            self._row.remove(admission)
            self._inside += 1
            self._promised += admission.size_bytes
            self._admitted += 1
            self._wake_first()  # there may be room for the next as well
            return True

    def give_up(self, admission: "Admission") -> None:
        """Take it out of the row."""
        with self._lock:
            with suppress(ValueError):
                self._row.remove(admission)
            self._wake_first()

    def leave(self, admission: "Admission") -> None:
        """Let it out, and have the first in the row look again."""
        with self._lock:
            self._inside = max(0, self._inside - 1)
            self._promised = max(0, self._promised - admission.size_bytes)
            self._wake_first()

    def note_wait(self) -> None:
        """Count one that has to wait."""
        with self._lock:
            self._waited += 1

    def statistics(self) -> AdmissionStatistics:
        """Return who was let in so far."""
        with self._lock:
            return AdmissionStatistics(self._admitted, self._waited, self._inside, len(self._row), self._promised)

    def renew(self) -> None:
        """Empty the row: in a forked child those who wait and those inside are in the parent."""
        self._lock = threading.RLock()
        self._row = deque()
        self._inside = self._promised = 0

    def _is_first(self, admission: "Admission", now: float) -> bool:
        for other in self._row:
            if other is admission:
                return True
            # Its loop was closed, or is blocked: in its turn again when it asks again.
            if now - other.asked_at < _GIVES_WAY_AFTER_S:
                return False
        return False

    def _has_room(self, size_bytes: int) -> bool:
        found = self._use()
        if not self._inside:
            self._used_when_empty = found[0] if found is not None else 0
            return True
        if found is None:
            return False
        used, most = found
        # Of what was promised to those inside, only what has not been taken yet is still to come.
        self._used_when_empty = min(self._used_when_empty, used)
        expected = max(used, self._used_when_empty + self._promised)
        return expected + size_bytes < most

    def _wake_first(self) -> None:
        if self._row:
            self._row[0].wake()


class Admission:
    """The way in and out for one block, given by `MemoryMonitor.admit`; for `async with` and for `with`, once."""

    __slots__ = ("_entered", "_row", "asked_at", "size_bytes", "wake")

    def __init__(self, row: AdmissionRow, size_bytes: int) -> None:
        self.size_bytes: int = size_bytes
        self.asked_at: float = 0.0
        self.wake: Callable[[], object] = _nobody
        self._row = row
        self._entered = False

    async def __aenter__(self) -> Self:
        self._begin()
        if self._row.ask(self):
            return self
        import asyncio

        self._row.note_wait()
        loop = asyncio.get_running_loop()
        admitted = False
        try:
            while not admitted:
                await self._wait_on(loop)
                admitted = self._row.ask(self)
        finally:
            self.wake = _nobody
            if not admitted:
                self._row.give_up(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._row.leave(self)

    def __enter__(self) -> Self:
        self._begin()
        if self._row.ask(self):
            return self
        self._row.note_wait()
        woken = threading.Event()
        self.wake = woken.set
        admitted = False
        try:
            while not admitted:
                woken.wait(LOOK_AGAIN_AFTER_S)
                woken.clear()
                admitted = self._row.ask(self)
        finally:
            self.wake = _nobody
            if not admitted:
                self._row.give_up(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._row.leave(self)

    def __repr__(self) -> str:
        return f"<Admission of {format_size(self.size_bytes)}>"

    def _begin(self) -> None:
        if self._entered:
            raise AdmissionReused
        self._entered = True

    async def _wait_on(self, loop: "asyncio.AbstractEventLoop") -> None:
        woken = loop.create_future()

        def wake() -> None:
            with suppress(RuntimeError):  # its loop was closed meanwhile
                loop.call_soon_threadsafe(_set, woken)

        self.wake = wake
        timer = loop.call_later(LOOK_AGAIN_AFTER_S, _set, woken)
        try:
            await woken
        finally:
            timer.cancel()


def _nobody() -> None:
    return


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
