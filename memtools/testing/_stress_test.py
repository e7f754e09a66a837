"""Run an operation in rounds, and show what it does to memory and how long it takes.

Covers: what can be chosen, taking the time of each call, plain and coroutine functions.
Leaves to others: the calls (`_case`), rounds and verdict (`_hunt`, `memtools.analysis`), the notes (`_stress_rounds`).
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, overload

from memtools.errors import ConfigError
from memtools.testing._case import Asked, Case, parse_pace
from memtools.testing._progress import Progress
from memtools.testing._reports import LeakReport
from memtools.testing._signals import BYTES_TOLERANCE
from memtools.testing._stress_report import StressReport
from memtools.testing._stress_rounds import Rounds
from memtools.units import parse_count, parse_size

Ran = TypeVar("Ran", StressReport, Coroutine[Any, Any, StressReport])

_MOST: Final = "1 GiB"


class StressChoices(TypedDict, total=False):
    """What can be chosen about a stress test; see `StressTest`."""

    args: Sequence[object]
    kwargs: Mapping[str, object] | None
    rounds: int
    calls: int
    warmup: int
    at_once: int
    tolerance: float
    most_bytes: int | str
    patience_s: float
    deadline_s: float
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
        at_once: how many calls of a coroutine function run at the same time.
        tolerance: bytes per call that are no growth.
        most_bytes: growth after which nothing more is called, once three rounds are over: bytes, or `"512 MiB"`.
        patience_s: seconds that it goes on at least once something grows, or 20,000 calls.
        deadline_s: seconds after which no further round is added to those that were asked for.
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
        operation: Asked,  # pyright: ignore[reportOverlappingOverload]
        **choices: Unpack[StressChoices],
    ) -> None: ...

    @overload
    def __init__(
        self: "StressTest[StressReport]", operation: Callable[..., object], **choices: Unpack[StressChoices]
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
        at_once: int = 1,
        tolerance: float = BYTES_TOLERANCE,
        most_bytes: int | str = _MOST,
        patience_s: float = 1.0,
        deadline_s: float = 30.0,
        meter: str | None = None,
        progress: bool = True,
    ) -> None:
        self._case = Case(
            operation,
            args,
            kwargs,
            parse_pace(rounds, calls, warmup, patience_s, deadline_s),
            tolerance,
            meter,
            most_bytes=parse_size(most_bytes, name="most_bytes"),
            at_once=parse_count(at_once, name="at_once"),
        )
        if at_once > 1 and not self._case.is_async:
            raise ConfigError("at_once", at_once, "1 for a plain function: only coroutines run at the same time here")
        self._operation = operation
        self._progress = progress

    def run(self) -> Ran:
        """Run it; a second time begins anew.

        Raises:
            Exception: whatever the operation raises; of several calls at once an `ExceptionGroup`.
        """
        ran: Any = self._run_async() if self._case.is_async else self._run()
        return cast("Ran", ran)

    def _run(self) -> StressReport:
        shown, rounds = self._begin()
        self._case.function = _timed(self._operation, rounds)
        try:
            return self._report(self._case.run(rounds.note), rounds)
        finally:
            shown.end()

    async def _run_async(self) -> StressReport:
        shown, rounds = self._begin()
        self._case.function = _timed_async(cast("Asked", self._operation), rounds)
        try:
            return self._report(await self._case.run_async(rounds.note), rounds)
        finally:
            shown.end()

    def _begin(self) -> tuple[Progress, Rounds]:
        shown = Progress(is_wanted=self._progress)
        return shown, Rounds(self._case.name, self._case.pace.rounds, shown)

    def _report(self, verdict: LeakReport, rounds: Rounds) -> StressReport:
        return StressReport(verdict, rounds.taken(), self._case.at_once)


def _timed(operation: Callable[..., object], rounds: Rounds) -> Callable[..., object]:
    add = rounds.latencies.add

    def timed(*args: object, **kwargs: object) -> object:
        begun = perf_counter()
        result = operation(*args, **kwargs)
        rounds.last_end = perf_counter()
        add(rounds.last_end - begun)
        return result

    return timed


def _timed_async(operation: Asked, rounds: Rounds) -> Asked:
    add = rounds.latencies.add

    async def timed(*args: object, **kwargs: object) -> None:
        begun = perf_counter()
        await operation(*args, **kwargs)
        rounds.last_end = perf_counter()
        add(rounds.last_end - begun)

    return timed
