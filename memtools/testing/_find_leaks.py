"""Leak tests of one function: `find_leaks`, and `assert_no_leaks`, which raises."""

import asyncio
import inspect
import logging
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial, partialmethod
from itertools import repeat
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, Unpack, cast, overload

from memtools.analysis import Verdict
from memtools.errors import ConfigError, LeakError, LeakWarning
from memtools.ledger import Meter, active_owner, track_tasks
from memtools.scopes import memory_scope
from memtools.testing._leak_report import LeakReport
from memtools.testing._leak_search import (
    BYTES_TOLERANCE,
    ENOUGH_BYTES,
    LeakSearch,
    SearchLimits,
    default_test_meter,
    metrics_of,
)
from memtools.units import parse_count, parse_seconds

if TYPE_CHECKING:
    from memtools.testing._leak_report import HolderSearch


_MAX_COUNTED_CALLS: Final = 4096  # calls between two counts of the heap
_COUNTED_S: Final = 1.0  # seconds that these calls may take
_MAX_KINDS: Final = 16  # a function may return an object of a new type with each call


@contextmanager
def _manager() -> Generator[None, None, None]:
    yield


@asynccontextmanager
async def _async_manager() -> AsyncGenerator[None, None]:
    yield


# The classes have no public name. Their generator begins only when they are entered.
_GENERATOR_CONTEXTS: Final = (type(_manager()), type(_async_manager()))

CoroutineFunction: TypeAlias = Callable[
    ..., Coroutine[Any, Any, object]
]  # Any: what a coroutine exchanges with its loop
# Called after each round, and once before the first: rounds done, calls made, live bytes of these calls.
ProgressCallback: TypeAlias = Callable[[int, int, int], object]


def parse_limits(rounds: int, calls: int, warmup: int, min_duration: float, timeout: float) -> SearchLimits:
    """Return the limits of a search.

    Raises:
        ConfigError: for invalid numbers.
    """
    return SearchLimits(
        parse_count(rounds, name="rounds"),
        parse_count(calls, name="calls"),
        parse_count(warmup, name="warmup", minimum=0),
        parse_seconds(min_duration, name="min_duration"),
        parse_seconds(timeout, name="timeout"),
    )


class CallTarget:
    """The function under test, with its arguments and the options of the search.

    Args:
        function: a plain function or a coroutine function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        limits: when the calls end.
        tolerance: bytes per call that count as no growth.
        meter: the name of the meter, None for the most exact one.
        max_bytes: growth in bytes after which the calls stop.
        concurrency: how many calls of a coroutine function run concurrently.

    Raises:
        ConfigError: for an object that cannot be called, and for invalid options.
    """

    def __init__(
        self,
        function: Callable[..., object],
        args: Sequence[object],
        kwargs: Mapping[str, object] | None,
        limits: SearchLimits,
        tolerance: float,
        meter: str | None,
        *,
        max_bytes: int = ENOUGH_BYTES,
        concurrency: int = 1,
    ) -> None:
        if not callable(function):
            raise ConfigError("function", function, "a function or a coroutine function")
        _reject_generator_function(function)
        self.function = function
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.name = str(getattr(function, "__qualname__", type(function).__qualname__))
        self.tolerance = parse_seconds(tolerance, name="tolerance")
        self.limits = limits
        self.meter = default_test_meter(meter)
        self.max_bytes = max_bytes
        self.concurrency = concurrency
        self.is_async = any(inspect.iscoroutinefunction(one) for one in _called_by(function))
        self.called: object = function  # `function` may be replaced by a wrapper
        self._kinds: set[type] = set()  # types of results that are known to be harmless
        self._search: LeakSearch | None = None
        self._started_at = 0.0

    def run(self, on_progress: ProgressCallback | None) -> LeakReport:
        """Call a plain function until it is clear whether it leaks."""
        __tracebackhide__ = True
        self._started_at = time.perf_counter()
        with memory_scope(self.name, meter=self.meter.name):
            self._call(self._call_counts(on_progress))
        holders = self._holder_search()
        if holders is not None:
            self._call(holders.call_counts())
        return self._report(holders)

    async def run_async(self, on_progress: ProgressCallback | None) -> LeakReport:
        """Call a coroutine function until it is clear whether it leaks."""
        __tracebackhide__ = True
        self._started_at = time.perf_counter()
        with _track_tasks(self.meter):
            # As a decorator: a scope that a coroutine opens with `with` is tracked only from Python 3.12 on.
            await memory_scope(self.name, meter=self.meter.name)(self._await_calls)(
                lambda: self._call_counts(on_progress)
            )
        # Outside the tracking: counting the heap while tracemalloc traces takes ten times as long.
        holders = self._holder_search()
        if holders is not None:
            await self._await_calls(holders.call_counts)
        return self._report(holders)

    def _call_counts(self, on_progress: ProgressCallback | None) -> Iterator[int]:
        owner = active_owner()
        assert owner is not None  # both callers have opened a scope
        self._search = LeakSearch(metrics_of(owner, self.tolerance, self.max_bytes), self.limits, on_progress)
        yield from self._search.call_counts()

    def _call(self, counts: Iterator[int]) -> None:
        __tracebackhide__ = True
        function, args, kwargs, kinds = self.function, self.args, self.kwargs, self._kinds
        for calls in counts:
            for _ in repeat(None, calls):
                result = function(*args, **kwargs)
                if type(result) not in kinds:
                    self._check_result(result, is_awaited=False)
                del result

    async def _await_calls(self, counts: Callable[[], Iterator[int]]) -> None:
        for calls in counts():
            remaining = repeat(None, calls)
            if self.concurrency == 1:
                await self._await_each(remaining)
                continue
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, calls)):
                    group.create_task(self._await_each(remaining))

    async def _await_each(self, remaining: Iterator[None]) -> None:
        __tracebackhide__ = True
        function, args, kwargs, kinds = cast("CoroutineFunction", self.function), self.args, self.kwargs, self._kinds
        for _ in remaining:
            result = await function(*args, **kwargs)
            if type(result) not in kinds:
                self._check_result(result, is_awaited=True)
            del result

    def _check_result(self, result: object, *, is_awaited: bool) -> None:
        # A clean verdict on code that has not run would be a lie.
        __tracebackhide__ = True
        kind: Any = type(result)
        missing = _not_run(kind, is_awaited=is_awaited)
        if missing:
            if kind in (CoroutineType, GeneratorType):
                cast("Any", result).close()  # no warning that it was never awaited
            raise ConfigError("function", self.called, f"a function whose call runs its code: this one {missing}")
        if len(self._kinds) < _MAX_KINDS:
            self._kinds.add(kind)

    def _holder_search(self) -> "HolderSearch | None":
        assert self._search is not None  # the calls have been made
        if self._search.is_clean:
            return None
        calls = self._search.calls
        per_second = calls / max(time.perf_counter() - self._started_at, 1e-3)
        from memtools.testing._leak_report import HolderSearch  # it loads the heap: only if something grows

        return HolderSearch(max(self.limits.calls, min(_MAX_COUNTED_CALLS, calls, int(per_second * _COUNTED_S))))

    def _report(self, holders: "HolderSearch | None") -> LeakReport:
        assert self._search is not None  # as above
        from memtools.testing._leak_report import build_report  # as above

        return build_report(self.name, self._search, holders, self.meter.name, time.perf_counter() - self._started_at)


def _called_by(function: object) -> Iterator[object]:
    # The function itself, what a `functools.partial` calls, and `__call__` of an object, inherited or its own.
    while isinstance(function, partial):
        function = function.func
    yield function
    if not isinstance(function, type):
        method = getattr(type(function), "__call__", None)  # noqa: B004  # whether it is callable was checked before
        while isinstance(method, partial | partialmethod):
            method = method.func
        yield method


def _reject_generator_function(function: object) -> None:
    if any(inspect.isgeneratorfunction(one) for one in _called_by(function)):
        accepted = "a function whose call runs its code, no generator function: iterate in a function of your own"
        raise ConfigError("function", function, accepted)
    if any(inspect.isasyncgenfunction(one) for one in _called_by(function)):
        accepted = (
            "a function whose call runs its code, no generator function: iterate in a coroutine function of your own"
        )
        raise ConfigError("function", function, accepted)


def _not_run(kind: type, *, is_awaited: bool) -> str:
    if kind is CoroutineType:
        return "only returns a coroutine; pass a coroutine function that awaits it"
    if kind in (GeneratorType, AsyncGeneratorType):
        return "only returns a generator; iterate over it in the function"
    if kind in (map, filter) or kind.__module__ == "itertools":
        return f"only returns {kind.__name__}(), which has called nothing yet; iterate over it in the function"
    if issubclass(kind, _GENERATOR_CONTEXTS):
        return "only returns a context manager; enter it in the function"
    if not is_awaited and any("__await__" in vars(base) for base in kind.__mro__):
        return "only returns an awaitable; pass a coroutine function that awaits it"
    return ""


def _track_tasks(meter: Meter) -> AbstractContextManager[object]:
    try:
        return track_tasks(meter=meter.name)  # tasks that the function starts are charged to it
    except ConfigError:
        return nullcontext()  # the tasks of this loop are tracked already


_CLEAR: Final = "\r\x1b[K"  # return to the start of the line and erase it


class Progress:
    """A progress line on standard error, if that is a terminal.

    Args:
        is_enabled: False disables it.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        stream = sys.stderr
        self._stream = stream if is_enabled and stream is not None and stream.isatty() else None

    @property
    def is_shown(self) -> bool:
        """Whether the line is displayed."""
        return self._stream is not None

    def show(self, text: str) -> None:
        """Replace the line by `text`."""
        if self._stream is not None:
            self._write(f"{_CLEAR}{text} ")

    def end(self) -> None:
        """Erase the line."""
        if self._stream is not None:
            self._write(_CLEAR)
            self._stream = None

    def _write(self, text: str) -> None:
        assert self._stream is not None  # both callers have checked
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # the terminal is gone, the search goes on


_log = logging.getLogger("memtools.testing")


class SearchOptions(TypedDict, total=False):
    """The options of a leak search; see `find_leaks`."""

    args: Sequence[object]
    kwargs: Mapping[str, object] | None
    rounds: int
    calls: int
    warmup: int
    tolerance: float
    min_duration: float
    timeout: float
    meter: str | None
    progress: bool


# A coroutine function is also a function that returns an object: type checkers take the first overload that fits.
@overload
def find_leaks(  # type: ignore[overload-overlap]
    function: CoroutineFunction,  # pyright: ignore[reportOverlappingOverload]
    **options: Unpack[SearchOptions],
) -> Coroutine[Any, Any, LeakReport]: ...


@overload
def find_leaks(function: Callable[..., object], **options: Unpack[SearchOptions]) -> LeakReport: ...


def find_leaks(
    function: Callable[..., object],
    *,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    rounds: int = 5,
    calls: int = 50,
    warmup: int = 2,
    tolerance: float = BYTES_TOLERANCE,
    min_duration: float = 1.0,
    timeout: float = 30.0,
    meter: str | None = None,
    progress: bool = True,
) -> LeakReport | Coroutine[Any, Any, LeakReport]:
    """Call `function` repeatedly, and report what grows with each call and what holds it.

    Bytes are counted for this function alone; tasks, threads, descriptors and native memory for the process. A clean
    function is called `warmup + rounds * calls` times. If something grows, the calls go on in ever longer rounds until
    the growth has stopped, or is a leak.

    ```python
    from memtools.testing import find_leaks

    assert not find_leaks(sorted, args=([3, 1, 2],)).is_leak
    ```

    Args:
        function: a plain function, or a coroutine function: then await the result. What only makes a generator, a
            coroutine or a context manager is refused: its code would never run.
        args: its positional arguments.
        kwargs: its keyword arguments.
        rounds: rounds before the first verdict.
        calls: calls per round.
        warmup: calls before the first measurement.
        tolerance: bytes per call that count as no growth.
        min_duration: seconds that the calls go on at least once something grows, or 20,000 calls: a cache may fill up.
        timeout: seconds after which an unclear result is inconclusive.
        meter: the name of the meter; by default native where it was built, else tracemalloc.
        progress: whether to show a progress line if standard error is a terminal.

    Raises:
        ConfigError: for invalid arguments, before the first call; after the first call that returns code which has not
            run: a generator, a coroutine, an awaitable, a context manager, `map()`.
        Exception: every exception that `function` raises.
    """
    __tracebackhide__ = True
    limits = parse_limits(rounds, calls, warmup, min_duration, timeout)
    target = CallTarget(function, args, kwargs, limits, tolerance, meter)
    return _find_async(target, progress) if target.is_async else _find(target, progress)


def _find(target: CallTarget, progress: bool) -> LeakReport:
    __tracebackhide__ = True
    progress_line = Progress(is_enabled=progress)
    try:
        return target.run(_progress_callback(target, progress_line))
    finally:
        progress_line.end()


async def _find_async(target: CallTarget, progress: bool) -> LeakReport:
    __tracebackhide__ = True
    progress_line = Progress(is_enabled=progress)
    try:
        return await target.run_async(_progress_callback(target, progress_line))
    finally:
        progress_line.end()


def _progress_callback(target: CallTarget, progress_line: Progress) -> ProgressCallback | None:
    if not progress_line.is_shown:
        return None
    return lambda rounds, calls, _: progress_line.show(f"{target.name}: round {rounds}, {calls:,} calls")


@overload
def assert_no_leaks(  # type: ignore[overload-overlap]  # as above
    function: CoroutineFunction,  # pyright: ignore[reportOverlappingOverload]
    **options: Unpack[SearchOptions],
) -> Coroutine[Any, Any, LeakReport]: ...


@overload
def assert_no_leaks(function: Callable[..., object], **options: Unpack[SearchOptions]) -> LeakReport: ...


def assert_no_leaks(
    function: Callable[..., object], **options: Unpack[SearchOptions]
) -> LeakReport | Coroutine[Any, Any, LeakReport]:
    """Call `function` repeatedly, and raise if something grows with each call.

    An inconclusive result is a `LeakWarning`, and is logged, since Python hides some warnings by default.

    Args:
        function: as for `find_leaks`; for a coroutine function, await the result.
        options: the keyword arguments of `find_leaks`.

    Raises:
        LeakError: what grew, per call, and what holds it.
        ConfigError: for invalid arguments, before the first call.
        Exception: every exception that `function` raises.
    """
    __tracebackhide__ = True
    found: LeakReport | Coroutine[Any, Any, LeakReport] = cast("Any", find_leaks)(function, **options)
    return _raise_if_leak(found) if isinstance(found, LeakReport) else _raise_if_leak_async(found)


async def _raise_if_leak_async(search: Coroutine[Any, Any, LeakReport]) -> LeakReport:
    __tracebackhide__ = True
    return _raise_if_leak(await search)


def _raise_if_leak(report: LeakReport) -> LeakReport:
    __tracebackhide__ = True
    if report.is_leak:
        raise LeakError(report.tested, report.lines())
    if report.answer is Verdict.INCONCLUSIVE:
        _log.warning("%s", report)
        warnings.warn(str(report), LeakWarning, stacklevel=3)
    return report
