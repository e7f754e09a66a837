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

from memtools.errors import ConfigError
from memtools.events._records import (
    BudgetOverrun,
    CleanupEnded,
    HighUsage,
    LevelChanged,
    PressureFelt,
    ReadingTaken,
    ReclaimIneffective,
    ScopeEnded,
    TaskAbandoned,
)
from memtools.records import record

Event: TypeAlias = (
    ScopeEnded
    | HighUsage
    | BudgetOverrun
    | TaskAbandoned
    | ReadingTaken
    | LevelChanged
    | CleanupEnded
    | ReclaimIneffective
    | PressureFelt
)

_log = logging.getLogger("memtools.events")


@record
class HubStatistics:
    """How the listeners fared.

    Attributes:
        hooks: how many listen now.
        emitted: events told to at least one hook.
        broken: calls of a hook that raised.
        skipped: events that a hook caused itself while it was being told one, and was therefore not told.
    """

    hooks: int
    emitted: int
    broken: int
    skipped: int


class Told(Enum):
    """How one hook took one event."""

    WELL = auto()
    BROKEN = auto()
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
        _hub.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Subscription({getattr(self._hook, '__qualname__', type(self._hook).__name__)})"

    def tell(self, event: Event) -> Told:
        """Call the hook; return how it went."""
        thread = threading.get_ident()
        # A hook that is itself profiled, or opens a scope, would otherwise be told of its own end without end.
        if self._closed or thread in self._threads:
            return Told.SKIPPED

        self._threads.add(thread)
        try:
            self._hook(event)
        except Exception:
            self._report(event)
            return Told.BROKEN
        finally:
            self._threads.discard(thread)
        return Told.WELL

    def _report(self, event: Event) -> None:
        if self._reported:
            return
        self._reported = True
        _log.exception("%r failed on %s; it stays subscribed, later failures are only counted", self, event)


class _Hub:
    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finaliser may emit in the middle of an emit
        # Replaced as a whole, never changed in place: a hook may subscribe or leave while an event is being told.
        self.listeners: tuple[Subscription, ...] = ()
        self._emitted = 0
        self._broken = 0
        self._skipped = 0

    def join(self, subscription: Subscription) -> None:
        with self.lock:
            self.listeners = (*self.listeners, subscription)

    def leave(self, subscription: Subscription) -> None:
        with self.lock:
            self.listeners = tuple(other for other in self.listeners if other is not subscription)

    def tell(self, event: Event) -> None:
        outcomes = [listener.tell(event) for listener in self.listeners]
        with self.lock:
            self._emitted += 1
            self._broken += outcomes.count(Told.BROKEN)
            self._skipped += outcomes.count(Told.SKIPPED)

    def statistics(self) -> HubStatistics:
        with self.lock:
            return HubStatistics(len(self.listeners), self._emitted, self._broken, self._skipped)


_hub = _Hub()


def _renew_lock() -> None:
    # A fork copies the lock as it was: held for ever, if another thread was counting at that moment.
    _hub.lock = threading.RLock()


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
    _hub.join(subscription)
    return subscription


def emit(event: Event) -> None:
    """Tell `event` to all who listen; free of charge when nobody does."""
    if _hub.listeners:
        _hub.tell(event)


def is_heard() -> bool:
    """Return whether anybody listens: for those to whom an event is dear to make."""
    return bool(_hub.listeners)


def statistics() -> HubStatistics:
    """Return how many listen, how much was told and how often a hook broke."""
    return _hub.statistics()
