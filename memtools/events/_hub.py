"""Tell every listener; a listener that breaks is logged once and counted, never raised.

Threads: subscribing, leaving and emitting are safe from any thread. A hook runs in the thread that emits, so it should
return soon.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from memtools.errors import ConfigError
from memtools.events._records import BudgetOverrun, HighUsage, ScopeEnded, TaskAbandoned

Event: TypeAlias = ScopeEnded | HighUsage | BudgetOverrun | TaskAbandoned

_log = logging.getLogger("memtools.events")


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """How the listeners fared.

    Attributes:
        hooks: how many listen now.
        emitted: events told to at least one hook.
        broken: calls of a hook that raised.
    """

    hooks: int
    emitted: int
    broken: int


class Subscription:
    """One hook's place among the listeners; ends by `close()` or at the end of a `with`."""

    __slots__ = ("_hook", "_reported")

    def __init__(self, hook: Callable[[Event], object]) -> None:
        self._hook = hook
        self._reported = False

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        _hub.leave(self)

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Subscription({getattr(self._hook, '__qualname__', type(self._hook).__name__)})"

    def tell(self, event: Event) -> bool:
        """Call the hook; return whether it went well."""
        try:
            self._hook(event)
        except Exception:
            if not self._reported:
                self._reported = True
                _log.exception("%r failed on %s; it stays subscribed, later failures are only counted", self, event)
            return False
        return True


class _Hub:
    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may emit in the middle of an emit
        # Replaced as a whole, never changed in place: a hook may subscribe or leave while an event is being told.
        self.listeners: tuple[Subscription, ...] = ()
        self._emitted = 0
        self._broken = 0

    def join(self, subscription: Subscription) -> None:
        with self._lock:
            self.listeners = (*self.listeners, subscription)

    def leave(self, subscription: Subscription) -> None:
        with self._lock:
            self.listeners = tuple(other for other in self.listeners if other is not subscription)

    def tell(self, event: Event) -> None:
        broken = sum(not listener.tell(event) for listener in self.listeners)
        with self._lock:
            self._emitted += 1
            self._broken += broken

    def statistics(self) -> HubStatistics:
        with self._lock:
            return HubStatistics(hooks=len(self.listeners), emitted=self._emitted, broken=self._broken)


_hub = _Hub()


def subscribe(hook: Callable[[Event], object]) -> Subscription:
    """Have `hook` called with every event, in the thread where it happened, until the subscription is closed.

    A hook that raises is logged once and counted. `KeyboardInterrupt`, `SystemExit` and cancellation pass.

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


def statistics() -> HubStatistics:
    """Return how many listen, how much was told and how often a hook broke."""
    return _hub.statistics()
