"""Back-pressure: blocks of work that begin when memory allows it."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import sleep
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from memtools.errors import AdmissionRefused, AdmissionReused
from memtools.monitor._statistics import AdmissionStatistics
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.cluster import Lease

RETRY_AFTER_S: Final = 0.05
_STALE_AFTER_S: Final = 1.0
_JOINING_POLL_S: Final = 0.005


class MinimumFlow:
    """Lets one piece of work through every `1 / per_s` seconds, however short memory is.

    One that comes late does not delay those after it, so that `per_s` a second do go where as many ask; two in a row
    are the most.

    Args:
        per_s: how many a second; 0 for none.
        clock: monotonic seconds.
    """

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = 1 / per_s if per_s else inf
        self._clock = clock
        self._lock = threading.Lock()
        self._next_at = -inf

    def try_take(self, since: float) -> bool:
        """Return whether one may go, and count it; the first goes one interval after `since`."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            now, due_at = self._clock(), max(self._next_at, since + self._interval_s)
            if now < due_at:
                return False
            self._next_at = max(due_at, now - self._interval_s) + self._interval_s
            return True
        finally:
            self._lock.release()

    def after_fork(self) -> None:
        """Make a new lock: in a forked child no thread will release the old one."""
        self._lock = threading.Lock()


class AdmissionQueue:
    """The active admissions, and the queue of those that wait, in order of arrival.

    One admission is always active when none is, and while memory is short the minimum flow begins as well, so no work
    waits for ever, not even behind a block that does not end. An admission whose task or thread does not
    try any more is passed over after a second. Memory also comes back without a release, so waiting admissions try
    again every 50 ms.

    Not the admission of a task scope: here the waiters are threads and tasks of any number of loops, and one can vanish
    with its loop, so each has to watch the head of the queue. A task scope has one loop, whose `asyncio.Lock` keeps the
    order, and only its first waiter looks at memory, which costs nothing for the thousands behind it.

    Threads: any, and any number of loops, share one queue.

    Args:
        use: returns the use of memory and the highest use allowed, in bytes, or None where no size may be added now.
        clock: monotonic seconds.
        may_flow: returns whether one admission of the minimum flow may begin now.
    """

    def __init__(
        self,
        use: Callable[[], tuple[int, float] | None],
        clock: Callable[[], float],
        may_flow: Callable[[], bool],
    ) -> None:
        self._use = use
        self._clock = clock
        self._may_flow = may_flow
        self.is_closed: bool = False
        self._lock = threading.RLock()  # a finaliser may release in the middle of an operation
        # Ordered by arrival, left from anywhere at the same cost.
        self._queue: OrderedDict[Admission, None] = OrderedDict()
        self._active = self._reserved_bytes = self._admitted = self._delayed = 0
        self._used_when_empty = 0
        self._generation = object()

    def try_acquire(self, admission: "Admission") -> bool:
        """Make it active, or put it into the queue; return whether it is active.

        Raises:
            AdmissionRefused: when the queue is closed.
        """
        if self.is_closed:
            raise AdmissionRefused
        with self._lock:
            now = admission.last_try_at = self._clock()
            self._queue.setdefault(admission)
            if not self._is_first(admission, now) or not self._fits(admission.size_bytes):
                return False
            del self._queue[admission]
            self._active += 1
            self._reserved_bytes += admission.size_bytes
            admission.generation = self._generation
            self._admitted += 1
            self._wake_first()  # the next one may fit as well
            return True

    def cancel(self, admission: "Admission") -> None:
        """Take it out of the queue."""
        with self._lock:
            self._queue.pop(admission, None)
            self._wake_first()

    def release(self, admission: "Admission") -> None:
        """End it, and have the first in the queue try again."""
        with self._lock:
            if admission.generation is not self._generation:
                return  # of a process that this one was forked from: it is not among the active ones here
            self._active -= 1
            self._reserved_bytes -= admission.size_bytes
            self._wake_first()

    def close(self) -> None:
        """Refuse all that try from now on, those that wait included; the active ones go on."""
        self.is_closed = True
        with self._lock:
            for admission in tuple(self._queue):
                admission.wake()

    def count_wait(self) -> None:
        """Count an admission that has to wait."""
        with self._lock:
            self._delayed += 1

    def statistics(self) -> AdmissionStatistics:
        """Return the counts so far."""
        with self._lock:
            return AdmissionStatistics(
                self._admitted, self._delayed, self._active, len(self._queue), self._reserved_bytes
            )

    def after_fork(self) -> None:
        """Empty the queue: the admissions of the parent are not those of a forked child."""
        self._lock = threading.RLock()
        self.is_closed = False
        self._queue = OrderedDict()
        self._generation = object()
        self._active = self._reserved_bytes = 0

    def _is_first(self, admission: "Admission", now: float) -> bool:
        for other in self._queue:
            if other is admission:
                return True
            # A stale one has lost its loop, or is blocked; when it tries again it has its place again.
            if now - other.last_try_at < _STALE_AFTER_S:
                return False
        return False

    def _fits(self, size_bytes: int) -> bool:
        found = self._use()
        if not self._active:
            self._used_when_empty = found[0] if found is not None else 0
            return True
        if found is None:
            return self._may_flow()
        used, allowed = found
        # Of the reserved bytes, only those that the active blocks have not taken yet are still to come.
        self._used_when_empty = min(self._used_when_empty, used)
        expected = max(used, self._used_when_empty + self._reserved_bytes)
        return expected + size_bytes < allowed

    def _wake_first(self) -> None:
        first = next(iter(self._queue), None)
        if first is not None:
            first.wake()


class Admission:
    """The context of one block of work, returned by `MemoryMonitor.admit`; for `async with` and for `with`, once."""

    __slots__ = ("_is_used", "_queue", "generation", "last_try_at", "size_bytes", "wake")

    def __init__(self, queue: AdmissionQueue, size_bytes: int) -> None:
        self.size_bytes: int = size_bytes
        self.last_try_at: float = 0.0
        self.generation: object = None  # of the queue, when this one became active
        self.wake: Callable[[], object] = _do_nothing
        self._queue = queue
        self._is_used = False

    async def __aenter__(self) -> Self:
        self._mark_used()
        if self._queue.try_acquire(self):
            return self
        self._queue.count_wait()
        loop = asyncio.get_running_loop()
        is_active = False
        try:
            while not is_active:
                await self._wait_on(loop)
                is_active = self._queue.try_acquire(self)
        finally:
            self.wake = _do_nothing
            if not is_active:
                self._queue.cancel(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.release(self)

    def __enter__(self) -> Self:
        self._mark_used()
        if self._queue.try_acquire(self):
            return self
        self._queue.count_wait()
        woken = threading.Event()
        self.wake = woken.set
        is_active = False
        try:
            while not is_active:
                woken.wait(RETRY_AFTER_S)
                woken.clear()
                is_active = self._queue.try_acquire(self)
        finally:
            self.wake = _do_nothing
            if not is_active:
                self._queue.cancel(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.release(self)

    def __repr__(self) -> str:
        return f"<Admission of {format_size(self.size_bytes)}>"

    def _mark_used(self) -> None:
        if self._is_used:
            raise AdmissionReused
        self._is_used = True

    async def _wait_on(self, loop: asyncio.AbstractEventLoop) -> None:
        woken = loop.create_future()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_resolve, woken)

        self.wake = wake
        timer = loop.call_later(RETRY_AFTER_S, _resolve, woken)
        try:
            await woken
        finally:
            timer.cancel()


class LeaseSource(Protocol):
    """The pool of processes that a monitor is in."""

    @property
    def is_joining(self) -> bool:
        """Whether it is still being joined; for some seconds at most."""
        ...

    def lease(self, size_bytes: int) -> "Lease | None":
        """Return a lease to enter, which waits as long as it takes; None where this process is not in the pool."""
        ...


class LeasedAdmission(Admission):
    """An admission that also waits for a lease of the process's pool, and gives it back.

    Where the carrier of the pool does not answer in time, it asks again: the pool knows by then, and the process grants
    its share by itself.
    """

    __slots__ = ("_lease", "_source")

    def __init__(self, queue: AdmissionQueue, size_bytes: int, source: LeaseSource) -> None:
        super().__init__(queue, size_bytes)
        self._source = source
        self._lease: Lease | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            while self._source.is_joining:  # noqa: ASYNC110  # a thread does it, for some seconds at most
                await asyncio.sleep(_JOINING_POLL_S)
            while (lease := self._source.lease(self.size_bytes)) is not None:
                with suppress(TimeoutError):
                    await lease.__aenter__()
                    self._lease = lease
                    break
        except BaseException:
            self._queue.release(self)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lease is not None:
                await self._lease.__aexit__(kind, error, trace)
        finally:
            self._queue.release(self)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            while self._source.is_joining:
                sleep(_JOINING_POLL_S)
            while (lease := self._source.lease(self.size_bytes)) is not None:
                with suppress(TimeoutError):
                    lease.__enter__()
                    self._lease = lease
                    break
        except BaseException:
            self._queue.release(self)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lease is not None:
                self._lease.__exit__(kind, error, trace)
        finally:
            self._queue.release(self)


def _do_nothing() -> None:
    return


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
