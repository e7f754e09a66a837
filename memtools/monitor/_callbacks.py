"""What users have called at a level, and how it fares: no callback harms the monitor, or another one.

Covers: registration, the breaker, counting, the rate limit of the log, things that are held weakly.
Leaves to others: running one with a time limit, in a thread or on a loop (`_calling`).

Threads: registering, leaving and counting are safe from any thread, and from inside a callback.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, Final, Literal, TypeAlias

from memtools.errors import ConfigError
from memtools.monitor._operations import presentable
from memtools.monitor._statistics import CallbackStatistics

Moment: TypeAlias = Literal["warning", "critical", "normal", "exhausted", "recycle"]

FAILURES_IN_A_ROW: Final = 5
BROKEN_FOR_S: Final = 300.0  # then it is tried once more
LOG_EVERY_S: Final = 60.0

_log = logging.getLogger("memtools.monitor")


class Callback:
    """One registered callback. Any: what it takes is up to the moment, what it returns is awaited or dropped."""

    def __init__(self, target: Callable[[], Callable[..., Any] | None], moment: Moment, name: str) -> None:
        self.target = target
        self.moment: Moment = moment
        self.name = presentable(name)
        self.calls = 0
        self.failures = 0
        self.skipped = 0
        self._in_a_row = 0
        self._closed_until = -inf
        self._next_log_at = -inf
        self._running = threading.Lock()  # never waited for

    def begin(self, now: float) -> bool:
        """Return whether it may be called now: not while it is running, nor while its breaker is open."""
        if now < self._closed_until or not self._running.acquire(blocking=False):
            self.skipped += 1
            return False
        self.calls += 1
        return True

    def end(self, now: float, failure: BaseException | str | None = None) -> None:
        """Note how the call that has begun went: an exception, a reason in words, or well."""
        self._running.release()
        if failure is None:
            self._in_a_row = 0
            return
        self.fail(now, failure)

    def fail(self, now: float, failure: BaseException | str) -> None:
        """Count and log a failure; the fifth in a row opens the breaker."""
        self.failures += 1
        self._in_a_row += 1
        is_broken = self._in_a_row >= FAILURES_IN_A_ROW
        if is_broken:
            self._closed_until = now + BROKEN_FOR_S
        if now < self._next_log_at and self._in_a_row != FAILURES_IN_A_ROW:
            return
        self._next_log_at = now + LOG_EVERY_S
        self._tell(failure, is_broken)

    def end_late(self) -> None:
        """Note the end of a call whose failure was counted when its time was over."""
        self._running.release()

    def _tell(self, failure: BaseException | str, is_broken: bool) -> None:
        left_out = f"; it is left out for {BROKEN_FOR_S:.0f} s" if is_broken else ""
        error = failure if isinstance(failure, BaseException) else None
        with suppress(MemoryError):  # it is counted; nothing is left to tell it with
            _log.error("on_%s callback %s failed %d times: %s%s", self.moment, self.name, self.failures,
                       failure if error is None else type(error).__name__, left_out, exc_info=error)  # fmt: skip

    def renew(self) -> None:
        """Forget a running call: in a forked child its thread is gone."""
        self._running = threading.Lock()

    def statistics(self, now: float) -> CallbackStatistics:
        """Return how it fared."""
        is_broken = now < self._closed_until
        return CallbackStatistics(self.name, self.moment, self.calls, self.failures, self.skipped, is_broken)


class Callbacks:
    """The callbacks of one monitor, in order of registration."""

    def __init__(self) -> None:
        # Replaced as a whole, never changed in place: a callback may register or remove others while it runs.
        self._known: tuple[Callback, ...] = ()

    def add(self, function: object, moment: Moment) -> None:
        """Have `function` called at `moment`; a second registration closes an open breaker and does nothing else.

        Raises:
            ConfigError: for what cannot be called.
        """
        if not callable(function):
            raise ConfigError(f"on_{moment}", function, "a function or coroutine function that takes one record")
        kept = tuple(one for one in self._known if one.moment != moment or one.target() != function)
        self._known = (*kept, Callback(lambda: function, moment, _name_of(function)))

    def add_weakly(self, thing: object) -> None:
        """Have `thing.recycle()` called at the end of a ladder that was not enough, for as long as `thing` lives.

        Raises:
            ConfigError: for what cannot be weakly referenced.
        """
        try:
            reference = weakref.ref(thing)
        except TypeError:
            raise ConfigError("thing", thing, "an object that can be weakly referenced") from None

        def recycle() -> Callable[..., Any] | None:
            alive: Any = reference()
            return None if alive is None else alive.recycle

        self._known = (*self.alive(), Callback(recycle, "recycle", f"{type(thing).__qualname__}.recycle"))

    def remove(self, function: object) -> None:
        """Call `function`, or recycle the thing, no more; nothing happens where it was not registered."""
        self._known = tuple(one for one in self.alive() if not _is_of(one, function))

    def at(self, moment: Moment) -> tuple[Callback, ...]:
        """Return those to call at `moment`, at this instant."""
        return tuple(one for one in self._known if one.moment == moment)

    def is_known(self, callback: Callback) -> bool:
        """Return whether nobody has removed it meanwhile."""
        return callback in self._known

    @property
    def all(self) -> tuple[Callback, ...]:
        """All of them, in order of registration."""
        return self._known

    def alive(self) -> tuple[Callback, ...]:
        """Return all whose target is alive."""
        return tuple(one for one in self._known if one.target() is not None)


def _is_of(callback: Callback, thing: object) -> bool:
    target = callback.target()
    return target == thing or (callback.moment == "recycle" and getattr(target, "__self__", None) is thing)


def _name_of(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
