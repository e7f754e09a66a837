"""What both pools are: executors that end with their block, and that coroutines can await."""

import asyncio
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from memtools._threads import call_in_own_thread
from memtools.errors import ConfigError, ScopeClosed
from memtools.pools._in_flight import InFlight, Place
from memtools.units import parse_count, parse_seconds

P = ParamSpec("P")
T = TypeVar("T")

SHUT_DOWN: Final = "it has been shut down"
_FORKED: Final = "it belongs to process {}, from which this one was forked: make a pool here"


def parse_max_workers(value: object, default: int) -> int:
    """Return how many tasks may run at once.

    Raises:
        ConfigError: for anything but a whole number of at least 1, or None for the default.
    """
    return default if value is None else parse_count(value, name="max_workers")


def parse_max_pending(value: object) -> int | None:
    """Return how many tasks may wait, or None for no bound.

    Raises:
        ConfigError: for anything but a whole number of at least 0, or None.
    """
    return None if value is None else parse_count(value, name="max_pending", minimum=0)


def parse_positive_seconds(value: object, name: str) -> float:
    """Return seconds above 0.

    Raises:
        ConfigError: for anything else.
    """
    seconds = parse_seconds(value, name=name)
    if seconds == 0:
        raise ConfigError(name, value, "seconds as a number above 0")
    return seconds


class PoolScope(Executor):
    """The half of a pool that does not depend on whether threads or processes do the work.

    A subclass says how a call starts (`_start_call`), how the pool is closed and ended early (`_close`, `_abort`), and
    how long its workers are waited for (`_wait_ended`).
    """

    _name: str
    _grace_s: float
    _in_flight: InFlight
    _pid: int
    _closed_reason: str = ""

    @property
    def name(self) -> str:
        """The name in reports, logs and errors."""
        return self._name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have a worker call `fn(*args, **kwargs)`; return its future at once.

        Raises:
            ScopeClosed: after the end of the pool, and in a child that the process has forked.
            ScopeFull: when `max_pending` tasks are waiting; `run` and `map` wait instead.
        """
        self._check_open()
        self._in_flight.reserve()
        return self._start_reserved(fn, args, kwargs)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Have a worker call `fn(*args, **kwargs)`, and return its result.

        While `max_pending` tasks are waiting, it waits for a place first: back-pressure. If it is cancelled, a call
        that has not started never does; a call that has started goes on, and its result is dropped.

        Raises:
            ScopeClosed: as `submit`, also during the wait for a place.
        """
        self._check_open()
        if self._in_flight.capacity is None:
            self._in_flight.reserve()
        else:
            await self._wait_for_place()
        future: asyncio.Future[T] = asyncio.wrap_future(self._start_reserved(fn, args, kwargs))
        try:
            return await future
        finally:
            del future  # exception, traceback and this frame would keep each other alive

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` with one item of each iterable; return an iterator over the results, in order.

        With `max_pending` or `buffersize` only so many calls are in the pool at once, and the next starts when a result
        is taken. Otherwise all are submitted at once. What is left of the calls is cancelled when the iterator ends.

        Args:
            fn: the function.
            iterables: what its arguments are taken from; the shortest decides.
            timeout: seconds, from this call, after which the iterator raises `TimeoutError`.
            chunksize: how many calls a process gets at once; threads get them one by one.
            buffersize: how many results or running calls there may be that have not been taken.

        Raises:
            ConfigError: for an invalid argument.
            ScopeClosed: as `submit`.
        """
        end_at = None if timeout is None else time.monotonic() + timeout
        size = self._chunk_size(parse_count(chunksize, name="chunksize"))
        window = self._in_flight.capacity
        if buffersize is not None:
            window = min(parse_count(buffersize, name="buffersize"), window or buffersize)
        calls = iter(zip(*iterables, strict=False))
        if size == 1:
            return self._results(((fn, *arguments) for arguments in calls), window, end_at)
        chunks = iter(lambda: tuple(islice(calls, size)), ())
        parts = self._results(((call_each, fn, chunk) for chunk in chunks), window, end_at)
        return (result for part in parts for result in part)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks, and end the workers after the last one.

        Args:
            wait: whether to return only when the workers have ended. This blocks: in a coroutine use `async with`.
            cancel_futures: whether tasks that have not started are cancelled.
        """
        self._close(cancel_futures=cancel_futures)
        if wait:
            try:
                self._wait_ended()
            except BaseException:
                self._abort()
                raise

    async def aclose(self) -> None:
        """End the pool: tasks that wait are cancelled, running ones are waited for, off the event loop.

        If it is cancelled meanwhile, running tasks are ended, too, and the cancellation propagates.
        """
        self._close(cancel_futures=True)
        await self._wait_off_loop()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    # None, and not bool as in the base class: no exception is suppressed.
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.shutdown(wait=True)
            return
        self._abort()
        self._wait_ended()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close(cancel_futures=False)
        else:
            self._abort()
        if not isinstance(error, GeneratorExit):  # the coroutine is being closed, where it must not await
            await self._wait_off_loop()

    def __del__(self, _warn: Callable[..., None] = warnings.warn, _getpid: Callable[[], int] = os.getpid) -> None:
        # These are arguments because the modules may be gone before the object at interpreter exit.
        if getattr(self, "_pid", None) != _getpid() or self._closed_reason or not self._has_started():
            return
        unfinished = self._in_flight.unfinished
        self._abort()
        _warn(
            f"{self._name} was never shut down: use it in a `with` or `async with`, or call shutdown(); "
            f"{unfinished} tasks were lost",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise ScopeClosed(self._name, _FORKED.format(self._pid))
        if self._closed_reason:
            raise ScopeClosed(self._name, self._closed_reason)

    def _start_reserved(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "Future[T]":  # Any: what the program hands to its own function
        # The place is held already.
        place = Place(self._in_flight)
        self._in_flight.count("submitted")
        try:
            if not callable(fn):
                raise ConfigError("fn", fn, "a function or another callable")
            future = self._start_call(fn, args, kwargs, place)
        except BaseException:
            self._in_flight.count("refused")
            self._in_flight.release()
            raise
        future.add_done_callback(place.end_with)
        return future

    async def _wait_for_place(self) -> None:
        waiter = self._in_flight.reserve_later()
        try:
            await asyncio.wrap_future(waiter)
        except BaseException:
            self._in_flight.stop_waiting(waiter)
            raise

    def _results(self, calls: Iterator[tuple[Any, ...]], window: int | None, end_at: float | None) -> Iterator[Any]:
        futures = deque(self._start_after_wait(call, end_at) for call in islice(calls, window))

        def iterate() -> Iterator[Any]:
            try:
                while futures:
                    yield _result_of(futures, end_at)
                    futures.extend(self._start_after_wait(call, end_at) for call in islice(calls, 1))
            finally:
                for future in futures:
                    future.cancel()

        return iterate()

    def _start_after_wait(self, call: tuple[Any, ...], end_at: float | None) -> "Future[Any]":
        self._check_open()
        waiter = self._in_flight.reserve_later()
        try:
            waiter.result(_seconds_until(end_at))
        except BaseException:
            self._in_flight.stop_waiting(waiter)
            raise
        return self._start_reserved(call[0], call[1:], {})

    async def _wait_off_loop(self) -> None:
        """Wait for the workers in a thread; a cancellation ends them, and is raised when they have ended."""
        ended = call_in_own_thread(lambda: self._wait_ended(), name=f"memtools {self._name} shutdown")
        cancelled: asyncio.CancelledError | None = None
        try:
            while not ended.done():
                try:
                    await asyncio.wait({ended})
                except asyncio.CancelledError as error:
                    cancelled = error
                    self._abort()  # bounds the wait
            if cancelled is not None:
                raise cancelled
            ended.result()
        finally:
            del cancelled, ended

    def _chunk_size(self, chunksize: int) -> int:  # noqa: ARG002  # threads get calls one by one
        return 1

    def _has_started(self) -> bool:
        """Return whether there is a worker that has to be ended."""
        raise NotImplementedError

    def _start_call(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], place: Place
    ) -> "Future[T]":
        raise NotImplementedError

    def _close(self, *, cancel_futures: bool) -> None:
        """Accept no more tasks, and have the workers end after the last one; return at once."""
        raise NotImplementedError

    def _abort(self) -> None:
        """Cancel what waits, and end what runs as far as possible; return at once. Never raises."""
        raise NotImplementedError

    def _wait_ended(self) -> None:
        """Wait until the workers have ended; after `_abort` no longer than the grace and some seconds."""
        raise NotImplementedError


def call_each(fn: Callable[..., T], chunk: tuple[tuple[Any, ...], ...]) -> list[T]:
    """Return the results of several calls: one task of a `map` with `chunksize`."""
    return [fn(*arguments) for arguments in chunk]


def _result_of(futures: "deque[Future[Any]]", end_at: float | None) -> Any:
    # The future leaves the queue first, and no variable holds it: nothing of an ended task is kept.
    try:
        return futures[0].result(_seconds_until(end_at))
    finally:
        futures.popleft().cancel()


def _seconds_until(end_at: float | None) -> float | None:
    return None if end_at is None else max(0.0, end_at - time.monotonic())
