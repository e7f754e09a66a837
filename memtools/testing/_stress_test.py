"""Stress tests: an operation in rounds, with memory and latency per round."""

import math
import time
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, overload

from memtools.errors import ConfigError
from memtools.readings import resident_bytes
from memtools.testing._find_leaks import CallTarget, CoroutineFunction, Progress, parse_limits
from memtools.testing._leak_report import LeakReport
from memtools.testing._leak_search import BYTES_TOLERANCE
from memtools.testing._stress_report import StressReport, StressRound
from memtools.units import format_size, parse_count, parse_size

_MAX_KEPT: Final = 8192  # even: every second value is dropped when it is full


class Latencies:
    """The latencies of one round, in a fixed array, evenly spread over the round; a call allocates nothing."""

    def __init__(self) -> None:
        self._kept = array("d", bytes(8 * _MAX_KEPT))
        self.clear()

    def clear(self) -> None:
        """Start a round."""
        self._kept_count = self._seen = 0
        self._stride = 1
        self.longest_s = 0.0

    def add(self, duration_s: float) -> None:
        """Add a call that took `duration_s`."""
        if duration_s > self.longest_s:
            self.longest_s = duration_s
        index, rest = divmod(self._seen, self._stride)
        self._seen += 1
        if rest:
            return
        if index == _MAX_KEPT:
            self._downsample()
        self._kept[self._kept_count] = duration_s
        self._kept_count += 1

    def percentile(self, percent: float) -> float:
        """Return the percentile of the latencies in seconds (nearest rank); 0 without calls."""
        if not self._kept_count:
            return 0.0
        kept = sorted(self._kept[: self._kept_count])
        return kept[max(math.ceil(self._kept_count * percent / 100), 1) - 1]

    def _downsample(self) -> None:
        self._kept_count //= 2
        self._stride *= 2
        self._kept[: self._kept_count] = self._kept[: self._kept_count * 2 : 2]


_WHOLE: Final = ("calls", "resident", "live")
_SECONDS: Final = ("duration", "p50", "p95", "p99", "longest")
_PERCENTS: Final = (50.0, 95.0, 99.0)
_EXTRA_ROUNDS: Final = 40  # rounds beyond the requested ones, if something grows


class RoundRecorder:
    """The figures of each round of a stress test, in arrays allocated before the first round.

    Args:
        tested: the name of the operation.
        requested: rounds that were requested.
        progress: the progress line.
        clock: monotonic seconds.
    """

    def __init__(
        self, tested: str, requested: int, progress: Progress, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._tested = tested
        self._requested = requested
        self._progress = progress
        self._clock = clock
        self.latencies = Latencies()
        zeros = bytes(8 * (requested + _EXTRA_ROUNDS + 1))
        self._whole = {name: array("q", zeros) for name in _WHOLE}
        self._seconds = {name: array("d", zeros) for name in _SECONDS}
        self._done = -1  # round 0 holds the figures before the first round
        self._live_before = 0
        self._started_at = self.last_end = clock()

    def record(self, done: int, calls: int, live_bytes: int) -> None:
        """Record a round that has ended; called once before the first, too."""
        if done == 0:
            self._live_before = live_bytes
        self._store(done, calls, resident_bytes(), live_bytes - self._live_before)
        self._show()
        self.latencies.clear()
        self._started_at = self.last_end = self._clock()

    def rounds(self) -> tuple[StressRound, ...]:
        """Return the rounds; number 0 has the figures before the first."""
        return tuple(self._round(number) for number in range(self._done + 1))

    def _store(self, done: int, calls: int, resident: int, live: int) -> None:
        self._done = done
        self._whole["calls"][done] = calls
        self._whole["resident"][done] = resident
        self._whole["live"][done] = live
        if done == 0:
            return  # the duration of the warm-up does not count
        self._seconds["duration"][done] = max(self.last_end - self._started_at, 0.0)
        for name, percent in zip(_SECONDS[1:], _PERCENTS, strict=False):
            self._seconds[name][done] = self.latencies.percentile(percent)
        self._seconds["longest"][done] = self.latencies.longest_s

    def _show(self) -> None:
        if not self._progress.is_shown:
            return
        latest = self._round(self._done)
        of = f" of {self._requested}" if self._done <= self._requested else ", until the verdict is clear"
        self._progress.show(
            f"{self._tested}: round {self._done}{of}, {self._whole['calls'][self._done]:,} calls, "
            f"resident {format_size(latest.resident_bytes)}, live {format_size(latest.live_bytes)}, "
            f"p99 {latest.p99_s * 1000:.3g} ms"
        )

    def _round(self, number: int) -> StressRound:
        before = self._whole["calls"][number - 1] if number else 0
        return StressRound(
            number,
            self._whole["calls"][number] - before,
            self._whole["resident"][number],
            self._whole["live"][number],
            *(self._seconds[name][number] for name in _SECONDS),
        )


Ran = TypeVar("Ran", StressReport, Coroutine[Any, Any, StressReport])

_DEFAULT_MAX_BYTES: Final = "1 GiB"


class StressOptions(TypedDict, total=False):
    """The options of a stress test; see `StressTest`."""

    args: Sequence[object]
    kwargs: Mapping[str, object] | None
    rounds: int
    calls: int
    warmup: int
    concurrency: int
    tolerance: float
    max_bytes: int | str
    min_duration: float
    timeout: float
    meter: str | None
    progress: bool


class StressTest(Generic[Ran]):
    """Run an operation in rounds; report whether it leaks, and memory and latency per round.

    The verdict is that of `find_leaks`: if something grows after the last round, further rounds of twice as many calls
    each tell a leak from a cache that fills up.

    ```python
    from memtools.testing import StressTest

    report = StressTest(lambda: sorted(range(1_000)), rounds=5, calls=100).run()
    assert not report.is_leak, report
    ```

    Args:
        operation: a plain function, or a coroutine function: then await the result of `run()`. What only makes a
            generator, a coroutine or a context manager is refused, at the latest after its first call.
        args: its positional arguments.
        kwargs: its keyword arguments.
        rounds: how many rounds.
        calls: calls per round.
        warmup: calls before the first measurement.
        concurrency: how many calls of a coroutine function run concurrently.
        tolerance: bytes per call that count as no growth.
        max_bytes: growth after which the calls stop, once three rounds are over: bytes, or `"512 MiB"`.
        min_duration: seconds that the calls go on at least once something grows, or 20,000 calls.
        timeout: seconds after which no further round is added to the requested ones.
        meter: the name of the meter; by default native where it was built, else tracemalloc.
        progress: whether to show a progress line if standard error is a terminal.

    Raises:
        ConfigError: for invalid arguments.

    Cost: two readings of the clock per call, a full collection and some readings per round.
    """

    # A coroutine function is also a function that returns an object: type checkers take the first overload that fits.
    @overload
    def __init__(
        self: "StressTest[Coroutine[Any, Any, StressReport]]",
        operation: CoroutineFunction,  # pyright: ignore[reportOverlappingOverload]
        **options: Unpack[StressOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: "StressTest[StressReport]", operation: Callable[..., object], **options: Unpack[StressOptions]
    ) -> None: ...

    def __init__(
        self,
        operation: Callable[..., object],
        *,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        rounds: int = 10,
        calls: int = 100,
        warmup: int = 10,
        concurrency: int = 1,
        tolerance: float = BYTES_TOLERANCE,
        max_bytes: int | str = _DEFAULT_MAX_BYTES,
        min_duration: float = 1.0,
        timeout: float = 30.0,
        meter: str | None = None,
        progress: bool = True,
    ) -> None:
        self._target = CallTarget(
            operation,
            args,
            kwargs,
            parse_limits(rounds, calls, warmup, min_duration, timeout),
            tolerance,
            meter,
            max_bytes=parse_size(max_bytes, name="max_bytes"),
            concurrency=parse_count(concurrency, name="concurrency"),
        )
        if concurrency > 1 and not self._target.is_async:
            raise ConfigError(
                "concurrency", concurrency, "1 for a plain function: only coroutines run concurrently here"
            )
        self._operation = operation
        self._progress = progress

    def run(self) -> Ran:
        """Run the test; each call starts from the beginning.

        Raises:
            Exception: every exception that the operation raises; an `ExceptionGroup` with concurrent calls.
        """
        __tracebackhide__ = True
        ran: Any = self._run_async() if self._target.is_async else self._run()
        return cast("Ran", ran)

    def _run(self) -> StressReport:
        __tracebackhide__ = True
        progress_line, rounds = self._start()
        self._target.function = _timed(self._operation, rounds)
        try:
            return self._report(self._target.run(rounds.record), rounds)
        finally:
            progress_line.end()

    async def _run_async(self) -> StressReport:
        __tracebackhide__ = True
        progress_line, rounds = self._start()
        self._target.function = _timed_async(cast("CoroutineFunction", self._operation), rounds)
        try:
            return self._report(await self._target.run_async(rounds.record), rounds)
        finally:
            progress_line.end()

    def _start(self) -> tuple[Progress, RoundRecorder]:
        progress_line = Progress(is_enabled=self._progress)
        return progress_line, RoundRecorder(self._target.name, self._target.limits.rounds, progress_line)

    def _report(self, verdict: LeakReport, rounds: RoundRecorder) -> StressReport:
        return StressReport(verdict, rounds.rounds(), self._target.concurrency)


def _timed(operation: Callable[..., object], rounds: RoundRecorder) -> Callable[..., object]:
    add = rounds.latencies.add

    def timed(*args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        started = perf_counter()
        result = operation(*args, **kwargs)
        rounds.last_end = perf_counter()
        add(rounds.last_end - started)
        return result

    return timed


def _timed_async(operation: CoroutineFunction, rounds: RoundRecorder) -> CoroutineFunction:
    add = rounds.latencies.add

    async def timed(*args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        started = perf_counter()
        result = await operation(*args, **kwargs)
        rounds.last_end = perf_counter()
        add(rounds.last_end - started)
        return result

    return timed
