"""Run a callback, sync or async, and be back in time.

Covers: the time limit, coroutines without a loop, callbacks that never return.
Leaves to others: whether it may run, and what its failure means (`_callbacks`).

A coroutine is cancelled at its limit. A plain function cannot be: on the monitor's own thread it runs in a thread of
its own, which is left to itself at the limit; on a loop, or inside `check()`, it runs in place (what it touches belongs
to that loop) and taking too long counts as a failure.
"""

import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard

from memtools.monitor._callbacks import Callback

if TYPE_CHECKING:
    import asyncio

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
