"""The callbacks of a monitor: registration, time limit, circuit breaker.

No callback can harm the monitor or another callback. Registering, removing and counting are safe from any thread, and
from inside a callback.
"""

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeGuard

from memtools._safe_calls import RETRY_AFTER_S, AbandonableCall, CircuitBreaker, RateLimitedLogger
from memtools._text import printable
from memtools.errors import ConfigError
from memtools.monitor._statistics import MAX_NAME_LENGTH, CallbackStatistics

Trigger: TypeAlias = Literal["warning", "critical", "normal", "exhausted", "recycle"]
Failure: TypeAlias = BaseException | str | None  # None: the call went well

_LOG_INTERVAL_S: Final = 60.0
_CANCEL_GRACE_S: Final = 1.0  # for a cancelled coroutine to clean up
_LEFT_BY_FOREIGN_ERROR: Final = "an exception such as KeyboardInterrupt ended the call"

_log = logging.getLogger("memtools.monitor")


class Callback:
    """One registered callback.

    Args:
        get_function: returns the function, or None once its object is gone. Any: what it takes depends on the trigger,
            what it returns is awaited or dropped.
        trigger: when it is called.
        name: what logs and statistics call it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        get_function: Callable[[], Callable[..., Any] | None],
        trigger: Trigger,
        name: str,
        clock: Callable[[], float],
    ) -> None:
        self.get_function = get_function
        self.trigger: Trigger = trigger
        self.name = printable(name, MAX_NAME_LENGTH)
        self.calls = 0
        self.failures = 0
        self.skipped = 0
        self._clock = clock
        self._breaker = CircuitBreaker()
        self._warnings = RateLimitedLogger(_log, interval_s=_LOG_INTERVAL_S, clock=clock)
        self._running = threading.Lock()  # never waited for

    def begin(self) -> bool:
        """Return whether it may be called now: not while it is running, nor while its breaker is open."""
        if self._breaker.is_open(self._clock()) or not self._running.acquire(blocking=False):
            self.skipped += 1
            return False
        self.calls += 1
        return True

    def end(self, failure: Failure) -> None:
        """Record the outcome of the call that has begun: an exception, a reason, or None for success."""
        self._release()
        if failure is None:
            self._breaker.record_success()
        else:
            self.fail(failure)

    def fail(self, failure: BaseException | str) -> None:
        """Count and log a failure; the fifth in a row opens the breaker."""
        now = self._clock()
        self.failures += 1
        self._breaker.record_failure(now)
        is_open = self._breaker.is_open(now)
        skipping = f"; it is not called for {RETRY_AFTER_S:.0f} s" if is_open else ""
        error = failure if isinstance(failure, BaseException) else None
        reason = failure if error is None else type(error).__name__
        # The failure that opens the breaker has a key of its own, so that it is logged in any case.
        self._warnings.error(
            is_open, "on_%s callback %s failed (%d failures): %s%s",
            self.trigger, self.name, self.failures, reason, skipping, error=error,
        )  # fmt: skip

    def end_late(self) -> None:
        """Record the end of a call whose failure was counted when its time was over."""
        self._release()

    def _release(self) -> None:
        # It is a new lock, which is free, in a child that the callback itself has forked.
        with suppress(RuntimeError):
            self._running.release()

    def after_fork(self) -> None:
        """Forget a running call: its thread does not exist in a forked child."""
        self._running = threading.Lock()

    def statistics(self) -> CallbackStatistics:
        """Return the counts so far."""
        is_broken = self._breaker.is_open(self._clock())
        return CallbackStatistics(self.name, self.trigger, self.calls, self.failures, self.skipped, is_broken)


class Callbacks:
    """The callbacks of one monitor, in order of registration."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Replaced as a whole, never changed in place: a callback may register or remove others while it runs.
        self._registered: tuple[Callback, ...] = ()

    def add(self, function: object, trigger: Trigger) -> None:
        """Register `function` for `trigger`; a second registration closes an open breaker and does nothing else.

        Raises:
            ConfigError: for an object that cannot be called.
        """
        if not callable(function):
            raise ConfigError(f"on_{trigger}", function, "a function or coroutine function that takes one record")
        kept = tuple(each for each in self._registered if each.trigger != trigger or each.get_function() != function)
        self._registered = (*kept, Callback(lambda: function, trigger, _name_of(function), self._clock))

    def add_weak(self, target: object) -> None:
        """Register `target.recycle()` for `"recycle"`, for as long as `target` lives.

        Raises:
            ConfigError: for an object that cannot be weakly referenced.
        """
        try:
            reference = weakref.ref(target)
        except TypeError:
            raise ConfigError("target", target, "an object that can be weakly referenced") from None

        def get_recycle() -> Callable[..., Any] | None:
            alive: Any = reference()
            return None if alive is None else alive.recycle

        name = f"{type(target).__qualname__}.recycle"
        self._registered = (*self.alive(), Callback(get_recycle, "recycle", name, self._clock))

    def add_recyclables(self, targets: Iterable[object]) -> None:
        """Register `recycle()` of those that are not registered: the pools, which register themselves."""
        for target in targets:
            if not any(_matches(each, target) for each in self.for_trigger("recycle")):
                self.add_weak(target)

    def remove(self, target: object) -> None:
        """Remove a function, or an object with `recycle()`; nothing happens where it is not registered."""
        self._registered = tuple(each for each in self.alive() if not _matches(each, target))

    def for_trigger(self, trigger: Trigger) -> tuple[Callback, ...]:
        """Return those to call for `trigger`, as registered at this moment."""
        return tuple(each for each in self._registered if each.trigger == trigger)

    def is_registered(self, callback: Callback) -> bool:
        """Return whether it has not been removed meanwhile."""
        return callback in self._registered

    def alive(self) -> tuple[Callback, ...]:
        """Return all whose function is alive."""
        return tuple(each for each in self._registered if each.get_function() is not None)

    def after_fork(self) -> None:
        """Forget the running calls."""
        for callback in self._registered:
            callback.after_fork()


class CallbackRunner:
    """Runs callbacks, plain or async, with a time limit.

    A coroutine is cancelled at the limit. A plain function cannot be: called by the monitor's own thread, it runs in a
    thread of its own, which is abandoned at the limit; on a loop, and in `check()`, it runs in place (the objects that
    it uses belong to that loop), and taking too long counts as a failure.

    Args:
        timeout_s: seconds that one call may take.
        clock: monotonic seconds.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        # Coroutines of callbacks that a `check()` inside a running loop has started: the loop itself keeps no task.
        self._background: set[asyncio.Task[None]] = set()

    def run(self, callback: Callback, arguments: tuple[object, ...], *, in_thread: bool = False) -> None:
        """Call it in place, or in a thread of its own; return when it has ended or its time is over."""
        function = callback.get_function()
        if function is None or not callback.begin():
            return
        if in_thread and self._run_in_thread(callback, function, arguments):
            return

        failure: Failure = _LEFT_BY_FOREIGN_ERROR
        try:
            failure = self._call_limited(callback, function, arguments)
        finally:
            callback.end(failure)

    async def run_async(self, callback: Callback, arguments: tuple[object, ...]) -> None:
        """Call it on the running loop; return when it has ended or its time is over."""
        function = callback.get_function()
        if function is None or not callback.begin():
            return

        started = self._clock()
        failure: Failure = _LEFT_BY_FOREIGN_ERROR
        try:
            failure, result = _call(function, arguments)
            if _is_coroutine(result):
                failure = await self._await_limited(result)
            if failure is None and self._clock() - started > self._timeout_s:
                failure = self._too_long()
        finally:
            callback.end(failure)

    def after_fork(self) -> None:
        """Forget the coroutines on the loop of the parent."""
        self._background = set()

    async def cancel_background(self) -> None:
        """Cancel the coroutines that `check()` has started on the running loop, and wait for them."""
        if not self._background:
            return
        loop = asyncio.get_running_loop()
        tasks = {task for task in self._background if task.get_loop() is loop}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_GRACE_S)

    def _run_in_thread(self, callback: Callback, function: Callable[..., Any], arguments: tuple[object, ...]) -> bool:
        """Return False where no thread can be started; the call has to be made in place then, without a limit."""
        call = AbandonableCall(
            partial(self._call_limited, callback, function, arguments),
            name=f"memtools-callback-{callback.name}",
            on_late_end=callback.end_late,
        )
        try:
            call.start()
        except (RuntimeError, MemoryError):
            return False
        # A coroutine is cancelled at its limit from within; only a call that does not return even then is abandoned.
        if not call.wait(self._timeout_s + 2 * _CANCEL_GRACE_S) and call.abandon():
            callback.fail(self._too_long())
            return True
        callback.end(call.value if call.error is None else call.error)
        if call.thread is not None:
            call.thread.join(_CANCEL_GRACE_S)  # it is about to end: no thread is left when the monitor has stopped
        return True

    def _call_limited(self, callback: Callback, function: Callable[..., Any], arguments: tuple[object, ...]) -> Failure:
        started = self._clock()
        failure, result = _call(function, arguments)
        if _is_coroutine(result):
            failure = self._run_coroutine(callback, result)
        if failure is None and self._clock() - started > self._timeout_s:
            return self._too_long()
        return failure

    def _run_coroutine(self, callback: Callback, coroutine: Coroutine[Any, Any, object]) -> Failure:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._await_limited(coroutine))
        # A running loop cannot be waited for from inside: the coroutine runs as a task, which counts its own failure.
        task = loop.create_task(self._await_in_background(callback, coroutine), name="memtools-callback")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return None

    async def _await_in_background(self, callback: Callback, coroutine: Coroutine[Any, Any, object]) -> None:
        failure = await self._await_limited(coroutine)
        if failure is not None:
            callback.fail(failure)

    async def _await_limited(self, coroutine: Coroutine[Any, Any, object]) -> Failure:
        task = asyncio.ensure_future(coroutine)
        try:
            # Not wait_for, which waits for ever for a task that suppresses its cancellation.
            await asyncio.wait({task}, timeout=self._timeout_s)
        finally:
            is_late = not task.done()
            if is_late:
                task.cancel()
                await asyncio.wait({task}, timeout=_CANCEL_GRACE_S)
        if is_late:
            return self._too_long()
        return "it was cancelled" if task.cancelled() else task.exception()

    def _too_long(self) -> str:
        return f"it took longer than callback_timeout={self._timeout_s:g} s"


def _call(function: Callable[..., Any], arguments: tuple[object, ...]) -> tuple[Failure, object]:
    try:
        return None, function(*arguments)
    except Exception as error:
        return error, None
    except asyncio.CancelledError:
        # Raised by a plain function, a cancellation is a failure of the callback: the monitor's task was not cancelled.
        return "it raised CancelledError", None


def _is_coroutine(result: object) -> TypeGuard[Coroutine[Any, Any, object]]:
    return isinstance(result, Coroutine)


def _matches(callback: Callback, target: object) -> bool:
    function = callback.get_function()
    return function == target or (callback.trigger == "recycle" and getattr(function, "__self__", None) is target)


def _name_of(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
