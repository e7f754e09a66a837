"""Tell every listener; a listener that breaks is logged once and counted, never raised.

Threads: subscribing, leaving and emitting are safe from any thread. A hook runs in the thread that emits, so it should
return soon.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import Self, TypeAlias

from memtools._records import record
from memtools.errors import ConfigError
from memtools.readings import Level, Reading

__all__ = [
    "BudgetOverrun",
    "CleanupEnded",
    "DispatchStatistics",
    "Event",
    "HighUsage",
    "LevelChanged",
    "MemorySampled",
    "PressureSignal",
    "ReclaimIneffective",
    "ScopeEnded",
    "Subscription",
    "TaskAbandoned",
    "emit",
    "has_listeners",
    "statistics",
    "subscribe",
]


# The facts that memtools tells, one frozen record each.
#
# Leaves to others: who listens (`memtools.events.subscribe`). Records hold numbers and names, never live objects, so that
# a hook that keeps them keeps nothing else alive.


@record
class ScopeEnded:
    """A scope, a decorated call or a task has ended, and this is what it used.

    Attributes:
        name: the owner's name.
        kind: `"scope"`, `"call"` or `"task"`.
        path: names from the outermost owner down to this one.
        retained_bytes: bytes that it allocated and that were alive at its end.
        peak_bytes: its highest simultaneous live bytes.
        resident_delta_bytes: change of the resident memory of the whole process.
        duration_s: wall time in seconds.
        meter: which meter took the figures.
        exact: False where others may have leaked into the figures.
        failed: whether it ended with an exception.
    """

    name: str
    kind: str
    path: tuple[str, ...]
    retained_bytes: int
    peak_bytes: int
    resident_delta_bytes: int
    duration_s: float
    meter: str
    exact: bool
    failed: bool


@record
class HighUsage:
    """An owner passed its warning size; the guide's "High memory increase".

    Attributes:
        name: the owner's name.
        kind: `"scope"`, `"call"` or `"task"`.
        used_bytes: what it used.
        warn_bytes: the size that it passed.
        largest: up to three of its children with the highest peaks, as (name, peak in bytes).
    """

    name: str
    kind: str
    used_bytes: int
    warn_bytes: int
    largest: tuple[tuple[str, int], ...]


@record
class BudgetOverrun:
    """An owner used more than its budget; told whether or not an exception follows.

    Attributes:
        name: the owner's name.
        kind: `"scope"`, `"call"` or `"task"`.
        used_bytes: what it used when this was seen.
        budget_bytes: what it was allowed.
        measure: `"peak"`, `"retained"` or `"rss"`.
        in_flight: True when it was seen before the owner ended.
    """

    name: str
    kind: str
    used_bytes: int
    budget_bytes: int
    measure: str
    in_flight: bool


@record
class TaskAbandoned:
    """A task scope ended while a task of it went on in spite of being cancelled.

    Attributes:
        scope: the name of the task scope.
        task: the name of the task.
        grace_s: how long it was waited for after the cancellation, in seconds.
    """

    scope: str
    task: str
    grace_s: float


@record
class MemorySampled:
    """The monitor has looked at the process.

    Attributes:
        reading: what it saw.
        level: how short memory is, by the monitor's thresholds and its hysteresis.
    """

    reading: Reading
    level: Level


@record
class LevelChanged:
    """The monitor moved from one level to another; the way back to `NORMAL` is told as well.

    Attributes:
        before: the level that was left.
        after: the level that was entered.
        reading: the reading that decided.
        threshold_bytes: the threshold that was passed, as used bytes; going down, the one that was left behind.
    """

    before: Level
    after: Level
    reading: Reading
    threshold_bytes: int


@record
class CleanupEnded:
    """Memory was given back on purpose, or that was tried.

    Attributes:
        level: how short memory was.
        before_bytes: resident memory before the first step.
        after_bytes: resident memory after the last step.
        steps: the steps that were taken, as (name, bytes given back as far as known, seconds).
        duration_s: wall time of them all.
    """

    level: Level
    before_bytes: int
    after_bytes: int
    steps: tuple[tuple[str, int, float], ...]
    duration_s: float


@record
class ReclaimIneffective:
    """Every step was taken, and the process is still above the exit of its level; told once, until it has got below.

    Attributes:
        level: how short memory is.
        used_bytes: what is in use after the last step.
        target_bytes: what it would have had to get below.
        largest: up to three owners with the most live bytes, as (name, bytes).
    """

    level: Level
    used_bytes: int
    target_bytes: int
    largest: tuple[tuple[str, int], ...]


@record
class PressureSignal:
    """The kernel, or whoever writes to `$MEMORY_PRESSURE_WATCH`, says that memory is short.

    Attributes:
        source: the file that said so.
    """

    source: str


Event: TypeAlias = (
    ScopeEnded
    | HighUsage
    | BudgetOverrun
    | TaskAbandoned
    | MemorySampled
    | LevelChanged
    | CleanupEnded
    | ReclaimIneffective
    | PressureSignal
)

_log = logging.getLogger("memtools.events")


@record
class DispatchStatistics:
    """How the listeners fared.

    Attributes:
        hooks: how many listen now.
        emitted: events told to at least one hook.
        broken: calls of a hook that raised.
        skipped: events that a hook caused itself while it was being told one, and was therefore not told.
    """

    hooks: int
    emitted: int
    failed: int
    skipped: int


class _HookResult(Enum):
    """How one hook took one event."""

    CALLED = auto()
    FAILED = auto()
    SKIPPED = auto()


class Subscription:
    """One hook's place among the listeners, given by `subscribe`; ends by `close()` or at the end of a `with`."""

    __slots__ = ("_closed", "_hook", "_reported", "_threads")

    def __init__(self, hook: Callable[[Event], object]) -> None:
        self._hook = hook
        self._closed = False
        self._reported = False
        self._threads: set[int] = set()  # those in which the hook runs now

    def close(self) -> None:
        """Stop listening; a second call does nothing. A call that has begun in another thread still ends."""
        self._closed = True
        _dispatcher.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Subscription({getattr(self._hook, '__qualname__', type(self._hook).__name__)})"

    def _call(self, event: Event) -> _HookResult:
        """Call the hook; return how it went."""
        thread = threading.get_ident()
        # A hook that is itself profiled, or opens a scope, would otherwise be told of its own end without end.
        if self._closed or thread in self._threads:
            return _HookResult.SKIPPED

        self._threads.add(thread)
        try:
            self._hook(event)
        except Exception:
            self._report(event)
            return _HookResult.FAILED
        finally:
            self._threads.discard(thread)
        return _HookResult.CALLED

    def _report(self, event: Event) -> None:
        if self._reported:
            return
        self._reported = True
        _log.exception("%r failed on %s; it stays subscribed, later failures are only counted", self, event)


class _Dispatcher:
    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finaliser may emit in the middle of an emit
        # Replaced as a whole, never changed in place: a hook may subscribe or leave while an event is being told.
        self.subscriptions: tuple[Subscription, ...] = ()
        self._emitted = 0
        self._broken = 0
        self._skipped = 0

    def add(self, subscription: Subscription) -> None:
        with self.lock:
            self.subscriptions = (*self.subscriptions, subscription)

    def remove(self, subscription: Subscription) -> None:
        with self.lock:
            self.subscriptions = tuple(other for other in self.subscriptions if other is not subscription)

    def dispatch(self, event: Event) -> None:
        outcomes = [listener._call(event) for listener in self.subscriptions]
        with self.lock:
            self._emitted += 1
            self._broken += outcomes.count(_HookResult.FAILED)
            self._skipped += outcomes.count(_HookResult.SKIPPED)

    def statistics(self) -> DispatchStatistics:
        with self.lock:
            return DispatchStatistics(len(self.subscriptions), self._emitted, self._broken, self._skipped)


_dispatcher = _Dispatcher()


def _renew_lock() -> None:
    # A fork copies the lock as it was: held for ever, if another thread was counting at that moment.
    _dispatcher.lock = threading.RLock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_lock)


def subscribe(hook: Callable[[Event], object]) -> Subscription:
    """Have `hook` called with every event, in the thread where it happened, until the subscription is closed.

    A hook that raises is logged once and counted. `KeyboardInterrupt`, `SystemExit` and cancellation pass. Events that
    a hook causes itself while it runs (by opening a scope, say) are told to the others, not to it.

    Raises:
        ConfigError: if `hook` cannot be called.
    """
    if not callable(hook):
        raise ConfigError("hook", hook, "a callable that takes one event")
    subscription = Subscription(hook)
    _dispatcher.add(subscription)
    return subscription


def emit(event: Event) -> None:
    """Tell `event` to all who listen; free of charge when nobody does."""
    if _dispatcher.subscriptions:
        _dispatcher.dispatch(event)


def has_listeners() -> bool:
    """Return whether anybody listens: for those to whom an event is dear to make."""
    return bool(_dispatcher.subscriptions)


def statistics() -> DispatchStatistics:
    """Return how many listen, how much was told and how often a hook broke."""
    return _dispatcher.statistics()
