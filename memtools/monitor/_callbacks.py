"""What users have called at a level, and how it fares: no callback harms the monitor, or another one.

Covers: registration, the breaker, counting, the rate limit of the log, things that are held weakly.
Leaves to others: running one with a time limit, in a thread or on a loop (`_calling`).

Threads: registering, leaving and counting are safe from any thread, and from inside a callback.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeGuard

from memtools.errors import ConfigError
from memtools.monitor._statistics import CallbackStatistics, presentable

if TYPE_CHECKING:
    import asyncio

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


# Run a callback, sync or async, and be back in time.
#
# Covers: the time limit, coroutines without a loop, callbacks that never return.
# Leaves to others: whether it may run, and what its failure means (`_callbacks`).
#
# A coroutine is cancelled at its limit. A plain function cannot be: on the monitor's own thread it runs in a thread of
# its own, which is left to itself at the limit; on a loop, or inside `check()`, it runs in place (what it touches belongs
# to that loop) and taking too long counts as a failure.

Failure: TypeAlias = BaseException | str | None  # None: it went well

_GRACE_S: Final = 1.0  # for a cancelled coroutine to clean up


class Caller:
    """Calls callbacks with a time limit.

    Args:
        timeout_s: seconds that one call may take.
        clock: monotonic seconds.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        # Coroutines of callbacks that a `check()` inside a running loop has started: the loop itself keeps no task.
        self._adrift: set[asyncio.Task[None]] = set()

    def call(self, callback: Callback, argument: tuple[object, ...], *, aside: bool = False) -> None:
        """Call it in place, or `aside` in a thread of its own; return when it is done or its time is over."""
        function = callback.target()
        if function is None or not callback.begin(self._clock()):
            return

        call = _Call(callback, partial(self._run, callback, function, argument), self._clock)
        if not aside:
            call.run()
            return

        thread = threading.Thread(target=call.run, name=f"memtools-callback-{callback.name}", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no thread can be had: then in place, without a limit
            call.run()
            return
        # A coroutine is stopped at its limit from within; only what does not return then is given up.
        thread.join(self.timeout_s + 2 * _GRACE_S)
        if thread.is_alive():
            call.give_up(self._too_long())

    async def call_on_loop(self, callback: Callback, argument: tuple[object, ...]) -> None:
        """Call it on the running loop; return when it is done or its time is over."""
        function = callback.target()
        if function is None or not callback.begin(self._clock()):
            return

        began = self._clock()
        failure: Failure = "it was left by an exception that is not its own"
        try:
            failure, result = _outcome(function, argument)
            if _is_coroutine(result):
                failure = await self._wait_for(result)
            if failure is None and self._clock() - began > self.timeout_s:
                failure = self._too_long()
        finally:
            callback.end(self._clock(), failure)

    async def _wait_for(self, coroutine: Coroutine[Any, Any, object]) -> Failure:
        import asyncio  # loaded by whoever runs a loop

        task = asyncio.ensure_future(coroutine)
        try:
            # Not wait_for: that waits for ever for a task that will not be cancelled.
            await asyncio.wait({task}, timeout=self.timeout_s)
        finally:
            is_late = not task.done()
            if is_late:
                task.cancel()
                await asyncio.wait({task}, timeout=_GRACE_S)
        if is_late:
            return self._too_long()
        return "it was cancelled" if task.cancelled() else task.exception()

    def _run(self, callback: Callback, function: Callable[..., Any], argument: tuple[object, ...]) -> Failure:
        began = self._clock()
        failure, result = _outcome(function, argument)
        if _is_coroutine(result):
            failure = self._finish(callback, result)
        if failure is None and self._clock() - began > self.timeout_s:
            return self._too_long()
        return failure

    def _finish(self, callback: Callback, coroutine: Coroutine[Any, Any, object]) -> Failure:
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._wait_for(coroutine))
        # Inside a running loop nobody can wait for it: it goes on as a task, which counts its own failure.
        task = loop.create_task(self._count_for(callback, coroutine), name="memtools-callback")
        self._adrift.add(task)
        task.add_done_callback(self._adrift.discard)
        return None

    async def _count_for(self, callback: Callback, coroutine: Coroutine[Any, Any, object]) -> None:
        failure = await self._wait_for(coroutine)
        if failure is not None:
            callback.fail(self._clock(), failure)

    async def cancel_adrift(self) -> None:
        """Cancel what `check()` has started on the running loop, and wait for it."""
        import asyncio

        loop = asyncio.get_running_loop()
        tasks = {task for task in self._adrift if task.get_loop() is loop}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE_S)

    def _too_long(self) -> str:
        return f"it took longer than {self.timeout_s:g} s"


class _Call:
    """One call that may be given up while it goes on; its end is noted once, by whoever comes first."""

    def __init__(self, callback: Callback, work: Callable[[], Failure], clock: Callable[[], float]) -> None:
        self._callback = callback
        self._work = work
        self._clock = clock
        self._noted = threading.Lock()

    def run(self) -> None:
        """Do the work and note how it went."""
        failure: Failure = "it was left by an exception that is not its own"
        try:
            failure = self._work()
        finally:
            if self._noted.acquire(blocking=False):
                self._callback.end(self._clock(), failure)
            else:
                self._callback.end_late()

    def give_up(self, reason: str) -> None:
        """Count it as failed, unless it has just ended; until its end it will not be called again."""
        if self._noted.acquire(blocking=False):
            self._callback.fail(self._clock(), reason)


def _outcome(function: Callable[..., Any], argument: tuple[object, ...]) -> tuple[Failure, object]:
    try:
        return None, function(*argument)
    except Exception as error:
        return error, None
    except BaseException as error:
        # Raised by a plain function, a cancellation is the callback's own affair, and not that of who calls it.
        if type(error).__name__ != "CancelledError":
            raise
        return "it raised CancelledError", None


def _is_coroutine(result: object) -> TypeGuard[Coroutine[Any, Any, object]]:
    return isinstance(result, Coroutine)
