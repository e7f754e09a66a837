"""Find out whether a function leaks: call it, count, call it more.

Covers: what can be chosen, the report; `assert_no_leaks`, which raises.
Leaves to others: the calls (`_case`), how often (`_hunt`), what is counted (`_signals`), who holds it (`_culprits`).
"""

import asyncio
import inspect
import logging
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from types import CoroutineType
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


# One function under test: what was asked about it, its calls, the report.
#
# Covers: checking what was asked, plain and coroutine functions, calls one after another and at once, the account that
# they are charged to, the search for who holds what grows.
# Leaves to others: how often it is called (`_hunt`), what is counted (`_signals`), who holds it (`_culprits`).

_MAX_COUNTED_CALLS: Final = 4096  # between two counts of the heap
_COUNTED_S: Final = 1.0  # that they may take

CoroutineFunction: TypeAlias = Callable[
    ..., Coroutine[Any, Any, object]
]  # Any: what a coroutine exchanges with its loop
# Told after each round, and once before the first: how many are done, how many calls were made, what is alive of them.
ProgressCallback: TypeAlias = Callable[[int, int, int], object]


def parse_limits(rounds: int, calls: int, warmup: int, min_duration: float, timeout: float) -> SearchLimits:
    """Return how long a hunt goes on.

    Raises:
        ConfigError: for numbers that make no sense.
    """
    return SearchLimits(
        parse_count(rounds, name="rounds"),
        parse_count(calls, name="calls"),
        parse_count(warmup, name="warmup", minimum=0),
        parse_seconds(min_duration, name="min_duration"),
        parse_seconds(timeout, name="timeout"),
    )


class CallTarget:
    """One function under test, with everything that was asked about it, checked.

    Args:
        function: a plain function or a coroutine function.
        args: its positional arguments.
        kwargs: its named arguments.
        pace: how long it is called.
        tolerance: bytes per call that are no growth.
        meter: the name of who counts, None for the most exact one.
        max_bytes: growth after which it is called no more.
        concurrency: how many calls of a coroutine function run at the same time.

    Raises:
        ConfigError: for what cannot be called, or makes no sense.
    """

    def __init__(
        self,
        function: Callable[..., object],
        args: Sequence[object],
        kwargs: Mapping[str, object] | None,
        pace: SearchLimits,
        tolerance: float,
        meter: str | None,
        *,
        max_bytes: int = ENOUGH_BYTES,
        concurrency: int = 1,
    ) -> None:
        if not callable(function):
            raise ConfigError("function", function, "a function or a coroutine function")
        self.function = function
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.name = str(getattr(function, "__qualname__", type(function).__qualname__))
        self.tolerance = parse_seconds(tolerance, name="tolerance")
        self.limits = pace
        self.meter = default_test_meter(meter)
        self.max_bytes = max_bytes
        self.concurrency = concurrency
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            vars(type(function)).get("__call__")
        )
        self._search: LeakSearch | None = None
        self._begun = 0.0

    def run(self, on_progress: ProgressCallback | None) -> LeakReport:
        """Call a plain function until it is clear what it leaves behind."""
        self._begun = time.perf_counter()
        with memory_scope(self.name, meter=self.meter.name):
            self._call(self._call_counts(on_progress))
        culprits = self._holder_search()
        if culprits is not None:
            self._call(culprits.call_counts())
        return self._report(culprits)

    async def run_async(self, on_progress: ProgressCallback | None) -> LeakReport:
        """Call a coroutine function until it is clear what it leaves behind."""
        self._begun = time.perf_counter()
        with _tracked(self.meter):
            # Decorated: a scope that is opened inside a coroutine is followed from Python 3.12 on only.
            await memory_scope(self.name, meter=self.meter.name)(self._await_calls)(
                lambda: self._call_counts(on_progress)
            )
        # No longer followed: counting the heap while tracemalloc traces takes ten times as long.
        culprits = self._holder_search()
        if culprits is not None:
            await self._await_calls(culprits.call_counts)
        return self._report(culprits)

    def _call_counts(self, on_progress: ProgressCallback | None) -> Iterator[int]:
        owner = active_owner()
        assert owner is not None  # whoever runs this has opened one
        self._search = LeakSearch(metrics_of(owner, self.tolerance, self.max_bytes), self.limits, on_progress)
        yield from self._search.call_counts()

    def _call(self, plan: Iterator[int]) -> None:
        function, args, kwargs = self.function, self.args, self.kwargs
        for calls in plan:
            for _ in repeat(None, calls):
                result = function(*args, **kwargs)
                if type(result) is CoroutineType:
                    result.close()
                    raise ConfigError("function", function, "a coroutine function: this one only returns a coroutine")
                del result

    async def _await_calls(self, plan: Callable[[], Iterator[int]]) -> None:
        for calls in plan():
            turns = repeat(None, calls)
            if self.concurrency == 1:
                await self._await_each(turns)
                continue
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, calls)):
                    group.create_task(self._await_each(turns))

    async def _await_each(self, turns: Iterator[None]) -> None:
        function, args, kwargs = cast("CoroutineFunction", self.function), self.args, self.kwargs
        for _ in turns:
            await function(*args, **kwargs)

    def _holder_search(self) -> "HolderSearch | None":
        assert self._search is not None  # the plan has been run
        if self._search.is_clean:
            return None
        calls = self._search.calls
        per_second = calls / max(time.perf_counter() - self._begun, 1e-3)
        from memtools.testing._leak_report import HolderSearch  # it loads the heap: only where something grows

        return HolderSearch(max(self.limits.calls, min(_MAX_COUNTED_CALLS, calls, int(per_second * _COUNTED_S))))

    def _report(self, culprits: "HolderSearch | None") -> LeakReport:
        assert self._search is not None  # as above
        from memtools.testing._leak_report import build_report  # as above

        return build_report(self.name, self._search, culprits, self.meter.name, time.perf_counter() - self._begun)


def _tracked(meter: Meter) -> AbstractContextManager[object]:
    try:
        return track_tasks(meter=meter.name)  # tasks that the function starts are its own
    except ConfigError:
        return nullcontext()  # the loop is followed already


# How far it is, on a terminal: one line that is written over, and gone at the end.

_CLEAR: Final = "\r\x1b[K"  # to the begin of the line, and nothing after it


class Progress:
    """One line on standard error; nothing where that is no terminal.

    Args:
        is_wanted: False for nothing at all.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        stream = sys.stderr
        self._stream = stream if is_wanted and stream is not None and stream.isatty() else None

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it."""
        return self._stream is not None

    def show(self, text: str) -> None:
        """Show `text` in place of what was there."""
        if self._stream is not None:
            self._write(f"{_CLEAR}{text} ")

    def end(self) -> None:
        """Leave an empty line."""
        if self._stream is not None:
            self._write(_CLEAR)
            self._stream = None

    def _write(self, text: str) -> None:
        assert self._stream is not None  # both callers have asked
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # the terminal is gone, the work goes on


_log = logging.getLogger("memtools.testing")


class SearchOptions(TypedDict, total=False):
    """What can be chosen about a hunt; see `find_leaks`."""

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


# A coroutine function is a function that returns a coroutine: the first form that fits is meant.
@overload
def find_leaks(  # type: ignore[overload-overlap]
    function: CoroutineFunction,  # pyright: ignore[reportOverlappingOverload]
    **choices: Unpack[SearchOptions],
) -> Coroutine[Any, Any, LeakReport]: ...


@overload
def find_leaks(function: Callable[..., object], **choices: Unpack[SearchOptions]) -> LeakReport: ...


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
    """Call `function` again and again, and report what grows with each call and who holds it.

    Bytes are counted for this function alone, tasks, threads, descriptors and native memory for the process. A clean
    function is called `warmup + rounds * calls` times. Where something grows, the calls go on in ever longer rounds
    until it has stopped, or is a leak.

    Args:
        function: a plain function, or a coroutine function: then the result is to be awaited.
        args: its positional arguments.
        kwargs: its named arguments.
        rounds: rounds before the first verdict.
        calls: calls in each of them.
        warmup: calls before anything is counted.
        tolerance: bytes per call that are no growth.
        min_duration: seconds that it goes on at least once something grows, or 20,000 calls: a cache may fill up.
        timeout: seconds after which what is not clear is inconclusive.
        meter: who counts the bytes; by default native where it was built, else tracemalloc.
        progress: whether to show the progress where standard error is a terminal.

    Raises:
        ConfigError: for arguments that make no sense, before anything is called.
        Exception: whatever `function` raises.
    """
    pace = parse_limits(rounds, calls, warmup, min_duration, timeout)
    case = CallTarget(function, args, kwargs, pace, tolerance, meter)
    return _find_async(case, progress) if case.is_async else _find(case, progress)


def _find(case: CallTarget, progress: bool) -> LeakReport:
    shown = Progress(is_wanted=progress)
    try:
        return case.run(_progress_callback(case, shown))
    finally:
        shown.end()


async def _find_async(case: CallTarget, progress: bool) -> LeakReport:
    shown = Progress(is_wanted=progress)
    try:
        return await case.run_async(_progress_callback(case, shown))
    finally:
        shown.end()


def _progress_callback(case: CallTarget, shown: Progress) -> ProgressCallback | None:
    if not shown.is_shown:
        return None
    return lambda rounds, calls, _: shown.show(f"{case.name}: round {rounds}, {calls:,} calls")


@overload
def assert_no_leaks(  # type: ignore[overload-overlap]  # as above
    function: CoroutineFunction,  # pyright: ignore[reportOverlappingOverload]
    **choices: Unpack[SearchOptions],
) -> Coroutine[Any, Any, LeakReport]: ...


@overload
def assert_no_leaks(function: Callable[..., object], **choices: Unpack[SearchOptions]) -> LeakReport: ...


def assert_no_leaks(
    function: Callable[..., object], **choices: Unpack[SearchOptions]
) -> LeakReport | Coroutine[Any, Any, LeakReport]:
    """Call `function` again and again, and raise if something grows with each call.

    What cannot be told from a leak in the time is a `LeakWarning`, and logged, as warnings of its kind are hidden.

    Args:
        function: as for `find_leaks`; for a coroutine function the result is to be awaited.
        choices: the named arguments of `find_leaks`.

    Raises:
        LeakError: what grew, per call, and who holds it.
        ConfigError: for arguments that make no sense, before anything is called.
        Exception: whatever `function` raises.
    """
    found: LeakReport | Coroutine[Any, Any, LeakReport] = cast("Any", find_leaks)(function, **choices)
    return _raise_if_leak(found) if isinstance(found, LeakReport) else _raise_if_leak_async(found)


async def _raise_if_leak_async(hunt: Coroutine[Any, Any, LeakReport]) -> LeakReport:
    return _raise_if_leak(await hunt)


def _raise_if_leak(report: LeakReport) -> LeakReport:
    if report.is_leak:
        raise LeakError(report.tested, report.lines())
    if report.answer is Verdict.INCONCLUSIVE:
        _log.warning("%s", report)
        warnings.warn(str(report), LeakWarning, stacklevel=3)
    return report
