"""Samples of this process for a timeline, from a thread or from a task, for a program without a monitor."""

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Generic, Protocol, TypeVar

from memtools._safe_calls import RateLimitedLogger
from memtools._threads import OwnThread
from memtools.errors import ConfigError
from memtools.events import CleanupEnded, Event, LevelChanged, ReclaimIneffective, ScopeEnded, Subscription, subscribe
from memtools.ledger import AccountStatistics, statistics
from memtools.readings import effective_limit, resident_bytes
from memtools.units import format_size, parse_seconds

OWNERS_EVERY_S: Final = 60.0  # the accounts of a large program take a tenth of a second
_FULL_COLLECTION: Final = 2
_JOIN_S: Final = 10.0

_log = logging.getLogger("memtools.timelines")


class RecordsMemory(Protocol):
    """What takes the readings: a timeline."""

    def add(self, used_bytes: int, *, blocks: int | None = None, limit_bytes: int | None = None) -> None:
        """Add the newest reading."""
        ...

    def add_owners(self, live_bytes: Mapping[str, int]) -> None:
        """Add the live bytes of accounts."""
        ...

    def mark(self, kind: str, text: str = "") -> None:
        """Add an event."""
        ...


T = TypeVar("T", bound=RecordsMemory)


class Recording(Generic[T]):
    """Samples while its block runs, `with` by a thread and `async with` by a task; made by `Timeline.record`.

    Args:
        timeline: what takes the readings.
        interval: seconds between two of them.

    Raises:
        ConfigError: for an interval that is not above 0, and for a second block of one recording.
    """

    def __init__(self, timeline: T, interval: float) -> None:
        self._timeline = timeline
        self._interval_s = parse_seconds(interval, name="interval", above_zero=True)
        self._until_owners = 0.0
        self._subscription: Subscription | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._warnings = RateLimitedLogger(_log, interval_s=300.0)

    def __enter__(self) -> T:
        self._begin()
        self._thread = OwnThread(target=self._run, name="memtools-timeline", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._end()
            raise
        return self._timeline

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            thread.join(_JOIN_S)
        self._end()

    async def __aenter__(self) -> T:
        self._begin()
        self._task = asyncio.get_running_loop().create_task(self._run_async(), name="memtools-timeline")
        return self._timeline

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        finally:
            self._end()

    def _begin(self) -> None:
        if self._subscription is not None:
            raise ConfigError("timeline", self._timeline, "a recording that has not begun: call record() again")
        self._stopping.clear()
        self._until_owners = 0.0
        self._subscription = subscribe(self._mark_event)
        gc.callbacks.append(self._mark_collection)
        self._sample()  # a block that ends at once has a reading, too

    def _end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        subscription.close()
        if self._mark_collection in gc.callbacks:
            gc.callbacks.remove(self._mark_collection)
        self._sample()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._sample()

    async def _run_async(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._sample()

    def _sample(self) -> None:
        try:
            limit_bytes = effective_limit().value_bytes
            self._timeline.add(resident_bytes(), blocks=allocated_blocks(), limit_bytes=limit_bytes)
            self._until_owners -= self._interval_s
            if self._until_owners <= 0:
                self._until_owners = OWNERS_EVERY_S
                self._timeline.add_owners(live_by_owner(statistics().accounts))
        except Exception as error:
            self._warnings.warning("sample", "a reading for the timeline failed; the next one is taken: %s", error)

    def _mark_event(self, event: Event) -> None:
        described = describe_event(event)
        if described is not None:
            self._timeline.mark(*described)

    def _mark_collection(self, phase: str, details: dict[str, int]) -> None:
        if phase == "stop" and details.get("generation") == _FULL_COLLECTION:
            self._timeline.mark("collection", f"{details.get('collected', 0):,} objects collected")


def describe_event(event: Event) -> tuple[str, str] | None:
    """Return the kind and the text that an event has on a timeline; None for one that is not shown."""
    match event:
        case CleanupEnded():
            freed = format_size(event.before_bytes - event.after_bytes)
            return "cleanup", f"{', '.join(name for name, _, _ in event.steps)}: {freed} given back"
        case LevelChanged():
            return "alarm", f"{event.before.name} to {event.after.name} at {format_size(event.reading.used_bytes)}"
        case ReclaimIneffective():
            return "alarm", f"clean-up did not help: {format_size(event.used_bytes)} in use"
        case ScopeEnded(kind="scope"):
            return "scope", f"{event.name} ended: peak {format_size(event.peak_bytes)}"
        case _:
            return None


def live_by_owner(accounts: tuple[AccountStatistics, ...]) -> dict[str, int]:
    """Return the live bytes of each account by its path, those below it included; empty where the meter has none."""
    found: dict[str, int] = {}

    def collect(account: AccountStatistics, above: str) -> None:
        name = f"{above} > {account.name}" if above else account.name
        if account.live_bytes is not None:
            found[name] = found.get(name, 0) + max(0, account.live_bytes)
        for child in account.children:
            collect(child, name)

    for account in accounts:
        collect(account, "")
    return found


def allocated_blocks() -> int | None:
    """Return `sys.getallocatedblocks()`; None where Python uses C's malloc and does not count them."""
    get_blocks: Callable[[], int] | None = getattr(sys, "getallocatedblocks", None)  # PyPy has none
    return (get_blocks() if get_blocks is not None else 0) or None
