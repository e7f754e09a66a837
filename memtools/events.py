"""Events of memtools, and hooks that are called with them.

A hook that raises is logged once and counted; the exception never reaches the code that emits the event. Subscribing,
closing and emitting are safe from any thread. A hook runs in the thread that emits, so it should return soon.
"""

import logging
import threading
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import Self, TypeAlias

from memtools._forks import register_after_fork
from memtools._records import record
from memtools._text import printable
from memtools.errors import ConfigError
from memtools.readings import Headroom, Level, Reading
from memtools.units import format_duration, format_size

__all__ = [
    "BlackBoxFound",
    "BudgetOverrun",
    "CleanupEnded",
    "DispatchStatistics",
    "Event",
    "HighUsage",
    "LevelChanged",
    "LimitForecast",
    "MemorySampled",
    "PressureSignal",
    "ReclaimIneffective",
    "ScopeEnded",
    "Subscription",
    "TaskAbandoned",
    "statistics",
    "subscribe",
]

_log = logging.getLogger("memtools.events")

# The records hold numbers and names, never live objects: a hook that stores events keeps no other object alive.


@record
class ScopeEnded:
    """A scope, a decorated call or a task has ended; these are its figures.

    Attributes:
        name: the name of the scope, call or task.
        kind: `"scope"`, `"call"` or `"task"`.
        path: the names from the outermost scope to this one.
        retained_bytes: bytes that it allocated and that were alive at its end.
        peak_bytes: its highest simultaneous live bytes.
        resident_delta_bytes: change of the resident memory of the whole process.
        duration_s: wall time in seconds.
        meter: the meter that measured the figures.
        exact: False if the figures may include allocations of other code.
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
    """A scope, a call or a task used more than its warning size.

    Attributes:
        name: the name of the scope, call or task.
        kind: `"scope"`, `"call"` or `"task"`.
        used_bytes: the memory that it used.
        warn_bytes: the warning size.
        largest: up to three of its children with the highest peaks, as (name, peak in bytes).
    """

    name: str
    kind: str
    used_bytes: int
    warn_bytes: int
    largest: tuple[tuple[str, int], ...]


@record
class BudgetOverrun:
    """A scope, a call or a task used more than its budget; emitted whether or not an exception follows.

    Attributes:
        name: the name of the scope, call or task.
        kind: `"scope"`, `"call"` or `"task"`.
        used_bytes: the memory that it used when this was found.
        budget_bytes: its budget.
        measure: `"peak"`, `"retained"` or `"rss"`.
        in_flight: True if this was found before it ended.
        exact: False where others may have used some of it: by default the budget then only warns.
    """

    name: str
    kind: str
    used_bytes: int
    budget_bytes: int
    measure: str
    in_flight: bool
    exact: bool = True


@record
class TaskAbandoned:
    """A task scope ended while one of its tasks still ran, although it had been cancelled.

    Attributes:
        scope: the name of the task scope.
        task: the name of the task.
        grace_s: how long the scope waited for it after the cancellation, in seconds.
    """

    scope: str
    task: str
    grace_s: float


@record
class MemorySampled:
    """The monitor has taken a sample.

    Attributes:
        reading: memory in use, and the limit.
        level: how short memory is, by the monitor's thresholds and its hysteresis.
        monitor: the name of the monitor.
        headroom: what is left below the nearest limit, where that decides the level (`free=`); None where use does.
    """

    reading: Reading
    level: Level
    monitor: str = ""
    headroom: Headroom | None = None


@record
class LevelChanged:
    """The monitor moved from one level to another; going back to `NORMAL` is an event, too.

    Attributes:
        before: the level before.
        after: the level now.
        reading: the reading that decided.
        threshold_bytes: the threshold that was crossed, as used bytes.
        monitor: the name of the monitor.
        headroom: what was left below the nearest limit, where that decided (`free=`); None where use did.
        free_bytes: the threshold that was crossed, as headroom; None where use decided.
        rate: how fast use grew over the last minute, in bytes a second; negative where it fell, None where that is not
            known.
        largest: on the way up, up to three scopes, calls or tasks with the most live bytes, as (name, bytes).
        growing: on the way up, up to three of those whose every call leaves something behind, as (name, bytes per
            call); empty where the meter does not know it.
    """

    before: Level
    after: Level
    reading: Reading
    threshold_bytes: int
    monitor: str = ""
    headroom: Headroom | None = None
    free_bytes: int | None = None
    rate: float | None = None
    largest: tuple[tuple[str, int], ...] = ()
    growing: tuple[tuple[str, int], ...] = ()


@record
class CleanupEnded:
    """A reclaim pass has ended, in which at least one step ran.

    Attributes:
        level: how short memory was.
        before_bytes: memory in use before the first step.
        after_bytes: memory in use after the last step.
        steps: the steps that ran, as (name, freed bytes as far as known, seconds).
        duration_s: wall time of the pass.
    """

    level: Level
    before_bytes: int
    after_bytes: int
    steps: tuple[tuple[str, int, float], ...]
    duration_s: float


@record
class ReclaimIneffective:
    """All clean-up steps ran, and usage is still above the target.

    Emitted once for each level that memory rises to, until the level has fallen.

    Attributes:
        level: how short memory is.
        used_bytes: memory in use after the last step.
        target_bytes: usage should be below this.
        largest: up to three scopes, calls or tasks with the most live bytes, as (name, bytes).
        monitor: the name of the monitor.
        headroom: what is left below the nearest limit, where that decides the level (`free=`); None where use does.
        free_bytes: more than this should be left; None where use decides.
    """

    level: Level
    used_bytes: int
    target_bytes: int
    largest: tuple[tuple[str, int], ...]
    monitor: str = ""
    headroom: Headroom | None = None
    free_bytes: int | None = None


@record
class LimitForecast:
    """The lowest use of memory rises, and is going to reach the limit; or it does not rise any more.

    Emitted by a monitor with `forecast=True` when that begins, when the counters confirm a leak, once an hour while it
    goes on, and when it is over.

    Attributes:
        monitor: the name of the monitor.
        reading: memory in use, and the limit.
        kind: what leaks, where the counters confirm a leak: `"python"`, `"native"` or `"fragmentation"`; else empty.
        rate_bytes_per_s: how fast the floor rises.
        seconds_to_limit: seconds until the limit is reached; None where that cannot be told.
        earliest_s: probably not before; None as above.
        latest_s: probably before; None as above.
        reason: the evidence, as a sentence.
        growing: up to three accounts whose live bytes rise, as (name, bytes per hour), the fastest first.
        is_over: whether it does not rise any more; the other figures are then the last ones.
    """

    monitor: str
    reading: Reading
    kind: str
    rate_bytes_per_s: float
    seconds_to_limit: float | None
    earliest_s: float | None
    latest_s: float | None
    reason: str
    growing: tuple[tuple[str, int], ...] = ()
    is_over: bool = False

    def __str__(self) -> str:
        if self.is_over:
            return "memory does not rise towards its limit any more"
        parts = [] if self.seconds_to_limit is None else [f"limit in about {format_duration(self.seconds_to_limit)}"]
        if self.earliest_s is not None:
            parts = [f"{parts[0]}, probably not before {format_duration(self.earliest_s)}"]
        word = "leaks" if self.kind else "grows by"
        for name, rate in self.growing[:1] or (("memory", round(self.rate_bytes_per_s * 3600)),):
            verb = word if name == "memory" else "grows by"
            parts.append(f"{printable(name, 200)} {verb} {format_size(rate)}/h")
        return "; ".join(parts)


@record
class PressureSignal:
    """The kernel reports memory pressure, or a program wrote to `$MEMORY_PRESSURE_WATCH`.

    Attributes:
        source: the file that reported it.
    """

    source: str


@record
class BlackBoxFound:
    """At its start, this program has found what an earlier process of the same name left when it was killed.

    Attributes:
        path: the file, for `memtools.black_box.read_black_box` and `python -m memtools postmortem`.
        verdict: how it ended; see `memtools.black_box.PostMortem`.
        summary: what happened and which owner held the most, in one line.
    """

    path: str
    verdict: str
    summary: str


Event: TypeAlias = (
    ScopeEnded
    | HighUsage
    | BudgetOverrun
    | TaskAbandoned
    | MemorySampled
    | LevelChanged
    | LimitForecast
    | CleanupEnded
    | ReclaimIneffective
    | PressureSignal
    | BlackBoxFound
)


@record
class DispatchStatistics:
    """Counters of events and hooks.

    Attributes:
        hooks: the hooks that are subscribed now.
        emitted: events for which at least one hook was subscribed.
        failed: calls of a hook that raised.
        skipped: events that a hook caused while it ran, and that were not passed to this hook.
    """

    hooks: int
    emitted: int
    failed: int
    skipped: int


def subscribe(hook: Callable[[Event], object]) -> "Subscription":
    """Call `hook` with every event, in the thread that emits it, until the subscription is closed.

    A hook that raises is logged once and counted. `KeyboardInterrupt`, `SystemExit` and cancellation propagate. An
    event that the hook itself causes while it runs (by opening a scope, say) is passed to the other hooks only.

    ```python
    from memtools.events import BudgetOverrun, subscribe

    with subscribe(lambda event: print(event) if isinstance(event, BudgetOverrun) else None):
        ...
    ```

    Raises:
        ConfigError: if `hook` cannot be called.
    """
    if not callable(hook):
        raise ConfigError("hook", hook, "a callable that takes one event")
    subscription = Subscription(hook)
    _dispatcher.add(subscription)
    return subscription


class Subscription:
    """A hook that is subscribed to events, made by `subscribe`; it ends by `close()` or with its `with` block."""

    __slots__ = ("_closed", "_hook", "_is_logged", "_threads")

    def __init__(self, hook: Callable[[Event], object]) -> None:
        self._hook = hook
        self._closed = False
        self._is_logged = False
        self._threads: set[int] = set()  # the threads in which the hook runs now

    def close(self) -> None:
        """Stop calling the hook; a second call does nothing. A call that runs in another thread is not interrupted."""
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

    def deliver(self, event: Event) -> "_HookResult":
        """Call the hook with `event`; the dispatcher does that for each subscription."""
        thread = threading.get_ident()
        # Without this a hook that is profiled, or that opens a scope, would be called with its own events for ever.
        if self._closed or thread in self._threads:
            return _HookResult.SKIPPED

        self._threads.add(thread)
        try:
            self._hook(event)
        except Exception:
            self._log_once(event)
            return _HookResult.FAILED
        finally:
            self._threads.discard(thread)
        return _HookResult.CALLED

    def _log_once(self, event: Event) -> None:
        if self._is_logged:
            return
        self._is_logged = True
        _log.exception("%r failed on %s; it stays subscribed, later failures are only counted", self, event)


def emit(event: Event) -> None:
    """Call every subscribed hook with `event`; without hooks this costs nothing."""
    if _dispatcher.subscriptions:
        _dispatcher.dispatch(event)


def has_listeners() -> bool:
    """Return whether a hook is subscribed, so that code can skip making an expensive event."""
    return bool(_dispatcher.subscriptions)


def statistics() -> DispatchStatistics:
    """Return the counters of all events and hooks so far."""
    return _dispatcher.statistics()


class _HookResult(Enum):
    CALLED = auto()
    FAILED = auto()
    SKIPPED = auto()


class _Dispatcher:
    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finaliser may emit while an event is being dispatched
        # Replaced as a whole, never changed: a hook may subscribe or close while an event is being dispatched.
        self.subscriptions: tuple[Subscription, ...] = ()
        self._emitted = 0
        self._failed = 0
        self._skipped = 0

    def add(self, subscription: Subscription) -> None:
        with self.lock:
            self.subscriptions = (*self.subscriptions, subscription)

    def remove(self, subscription: Subscription) -> None:
        with self.lock:
            self.subscriptions = tuple(other for other in self.subscriptions if other is not subscription)

    def dispatch(self, event: Event) -> None:
        results = [subscription.deliver(event) for subscription in self.subscriptions]
        with self.lock:
            self._emitted += 1
            self._failed += results.count(_HookResult.FAILED)
            self._skipped += results.count(_HookResult.SKIPPED)

    def statistics(self) -> DispatchStatistics:
        with self.lock:
            return DispatchStatistics(len(self.subscriptions), self._emitted, self._failed, self._skipped)

    def renew_lock(self) -> None:
        # A fork copies the lock as it was: held for ever, if another thread was counting at that moment.
        self.lock = threading.RLock()


_dispatcher = _Dispatcher()
register_after_fork(_dispatcher.renew_lock)
