"""Run an operation in rounds, and show what it does to memory and how long it takes.

Covers: what can be chosen, taking the time of each call, plain and coroutine functions.
Leaves to others: the calls (`_case`), rounds and verdict (`_hunt`, `memtools.analysis`), the notes (`_stress_rounds`).
"""

import math
import time
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, overload

from memtools.errors import ConfigError
from memtools.readings import resident_bytes
from memtools.testing._find_leaks import CoroutineFunction, CallTarget, Progress, parse_limits
from memtools.testing._leak_report import LeakReport
from memtools.testing._leak_search import BYTES_TOLERANCE
from memtools.testing._stress_report import StressReport, StressRound
from memtools.units import format_size, parse_count, parse_size

# How long calls take, in bounded space.
#
# Covers: keeping enough of them for percentiles, evenly spread over the round.
# Leaves to others: taking the time (`_stress_test`).

_MAX_KEPT: Final = 8192  # even: every second is dropped when it is full


class Latencies:
    """The calls of one round; nothing is allocated for a call that stays."""

    def __init__(self) -> None:
        self._kept = array("d", bytes(8 * _MAX_KEPT))
        self.clear()

    def clear(self) -> None:
        """Begin a round."""
        self._kept_count = self._seen = 0
        self._stride = 1
        self.longest_s = 0.0

    def add(self, duration_s: float) -> None:
        """Remember that a call took `duration_s`."""
        if duration_s > self.longest_s:
            self.longest_s = duration_s
        place, rest = divmod(self._seen, self._stride)
        self._seen += 1
        if rest:
            return
        if place == _MAX_KEPT:
            self._downsample()
        self._kept[self._kept_count] = duration_s
        self._kept_count += 1

    def percentile(self, percent: float) -> float:
        """Return what that share of the calls did not take longer than, in seconds (nearest rank); 0 without calls."""
        if not self._kept_count:
            return 0.0
        kept = sorted(self._kept[: self._kept_count])
        return kept[max(math.ceil(self._kept_count * percent / 100), 1) - 1]

    def _downsample(self) -> None:
        self._kept_count //= 2
        self._stride *= 2
        self._kept[: self._kept_count] = self._kept[: self._kept_count * 2 : 2]


# What is noted after each round of a stress test, in space that was taken before the first.
#
# Covers: resident and live bytes, durations, percentiles, the line on the terminal.
# Leaves to others: the rounds themselves (`_hunt`), what is made of the notes (`_stress_report`).

_WHOLE: Final = ("calls", "resident", "live")
_SECONDS: Final = ("duration", "p50", "p95", "p99", "longest")
_PERCENTS: Final = (50.0, 95.0, 99.0)
_EXTRA_ROUNDS: Final = 40  # rounds, beyond those that were asked for, where something grows


class RoundRecorder:
    """The notes of one stress test.

    Args:
        tested: the name of what is called.
        asked: rounds that were asked for.
        progress: the line on the terminal.
        clock: seconds that go on; a test passes its own.
    """

    def __init__(
        self, tested: str, asked: int, progress: Progress, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._tested = tested
        self._asked = asked
        self._progress = progress
        self._clock = clock
        self.latencies = Latencies()
        room = bytes(8 * (asked + _EXTRA_ROUNDS + 1))
        self._whole = {name: array("q", room) for name in _WHOLE}
        self._seconds = {name: array("d", room) for name in _SECONDS}
        self._done = -1  # what there is before the first round is noted as well
        self._live_before = 0
        self._begun = self.last_end = clock()

    def record(self, done: int, calls: int, live_bytes: int) -> None:
        """Note a round that is over; told once before the first as well."""
        if done == 0:
            self._live_before = live_bytes
        self._store(done, calls, resident_bytes(), live_bytes - self._live_before)
        self._show()
        self.latencies.clear()
        self._begun = self.last_end = self._clock()

    def rounds(self) -> tuple[StressRound, ...]:
        """Return the notes, what there was before the first round as number 0."""
        return tuple(self._round(number) for number in range(self._done + 1))

    def _store(self, done: int, calls: int, resident: int, live: int) -> None:
        self._done = done
        self._whole["calls"][done] = calls
        self._whole["resident"][done] = resident
        self._whole["live"][done] = live
        if done == 0:
            return  # the warm-up took what it took
        self._seconds["duration"][done] = max(self.last_end - self._begun, 0.0)
        for name, percent in zip(_SECONDS[1:], _PERCENTS, strict=False):
            self._seconds[name][done] = self.latencies.percentile(percent)
        self._seconds["longest"][done] = self.latencies.longest_s

    def _show(self) -> None:
        if not self._progress.is_shown:
            return
        latest = self._round(self._done)
        of = f" of {self._asked}" if self._done <= self._asked else ", until it is clear"
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
    """What can be chosen about a stress test; see `StressTest`."""

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
    """Runs an operation in rounds; then says whether it leaks, and shows memory and latency per round.

    The verdict is that of `find_leaks`: where something grows after the last round, further rounds of twice as many
    calls each tell a leak from a cache that fills up.

    ```python
    from memtools.testing import StressTest

    report = StressTest(lambda: sorted(range(1_000)), rounds=5, calls=100).run()
    assert not report.is_leak, report
    ```

    Args:
        operation: a plain function, or a coroutine function: then the result of `run()` is to be awaited.
        args: its positional arguments.
        kwargs: its named arguments.
        rounds: how many rounds.
        calls: calls in each of them.
        warmup: calls before anything is noted.
        concurrency: how many calls of a coroutine function run at the same time.
        tolerance: bytes per call that are no growth.
        max_bytes: growth after which nothing more is called, once three rounds are over: bytes, or `"512 MiB"`.
        min_duration: seconds that it goes on at least once something grows, or 20,000 calls.
        timeout: seconds after which no further round is added to those that were asked for.
        meter: who counts the bytes; by default native where it was built, else traced.
        progress: whether to show the progress where standard error is a terminal.

    Raises:
        ConfigError: for arguments that make no sense.

    Cost: two readings of the clock a call, a full collection and some readings a round.
    """

    # A coroutine function is a function that returns a coroutine: the first form that fits is meant.
    @overload
    def __init__(
        self: "StressTest[Coroutine[Any, Any, StressReport]]",
        operation: CoroutineFunction,  # pyright: ignore[reportOverlappingOverload]
        **choices: Unpack[StressOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: "StressTest[StressReport]", operation: Callable[..., object], **choices: Unpack[StressOptions]
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
                "concurrency", concurrency, "1 for a plain function: only coroutines run at the same time here"
            )
        self._operation = operation
        self._progress = progress

    def run(self) -> Ran:
        """Run it; a second time begins anew.

        Raises:
            Exception: whatever the operation raises; of several calls at once an `ExceptionGroup`.
        """
        ran: Any = self._run_async() if self._target.is_async else self._run()
        return cast("Ran", ran)

    def _run(self) -> StressReport:
        shown, rounds = self._begin()
        self._target.function = _timed(self._operation, rounds)
        try:
            return self._report(self._target.run(rounds.record), rounds)
        finally:
            shown.end()

    async def _run_async(self) -> StressReport:
        shown, rounds = self._begin()
        self._target.function = _timed_async(cast("CoroutineFunction", self._operation), rounds)
        try:
            return self._report(await self._target.run_async(rounds.record), rounds)
        finally:
            shown.end()

    def _begin(self) -> tuple[Progress, RoundRecorder]:
        shown = Progress(is_wanted=self._progress)
        return shown, RoundRecorder(self._target.name, self._target.limits.rounds, shown)

    def _report(self, verdict: LeakReport, rounds: RoundRecorder) -> StressReport:
        return StressReport(verdict, rounds.rounds(), self._target.concurrency)


def _timed(operation: Callable[..., object], rounds: RoundRecorder) -> Callable[..., object]:
    add = rounds.latencies.add

    def timed(*args: object, **kwargs: object) -> object:
        begun = perf_counter()
        result = operation(*args, **kwargs)
        rounds.last_end = perf_counter()
        add(rounds.last_end - begun)
        return result

    return timed


def _timed_async(operation: CoroutineFunction, rounds: RoundRecorder) -> CoroutineFunction:
    add = rounds.latencies.add

    async def timed(*args: object, **kwargs: object) -> None:
        begun = perf_counter()
        await operation(*args, **kwargs)
        rounds.last_end = perf_counter()
        add(rounds.last_end - begun)

    return timed
