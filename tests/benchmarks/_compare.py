"""Comparisons of two implementations on a machine that is busy with other work.

The shape of a benchmark: a file `bench_NAME.py` in this folder with

    from _compare import Result, compare

    def run(rounds: int = 15) -> list[Result]:
        timing = compare({"own": own, "peer": peer}, number=2_000, rounds=rounds, baseline="peer")
        return [Result("what was measured", "the peer", timing.ratio("own"), target=1.2)]

and, to be run alone, `if __name__ == "__main__": print_results(run())`. A ratio is memtools divided by the peer: less
is better, always. Seconds are not compared: they depend on the machine, ratios hardly do. pytest never collects these
files.
"""

import gc
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns


@dataclass(frozen=True, slots=True)
class Result:
    """One figure that we promise.

    Attributes:
        title: what was done.
        peer: what it was held against.
        ratio: the measured value divided by that of the peer; less is better.
        target: the most that the ratio may be.
        unit_note: what was divided, and what else a reader should know.
    """

    title: str
    peer: str
    ratio: float
    target: float
    unit_note: str = "time per call"

    @property
    def is_met(self) -> bool:
        """Whether the promise holds here."""
        return self.ratio <= self.target

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return (
            f"{self.title}: {in_words(self.ratio)} of {self.peer}, "
            f"target {in_words(self.target)}: {verdict} ({self.unit_note})"
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """What the rounds of one comparison took.

    Attributes:
        baseline: the case that the others are divided by.
        rounds_ns: for each case, nanoseconds per call, one figure per round.
    """

    baseline: str
    rounds_ns: Mapping[str, tuple[float, ...]]

    def median_ns(self, case: str) -> float:
        """Return the middle round of `case`, in nanoseconds per call."""
        return statistics.median(self.rounds_ns[case])

    def ratio(self, case: str) -> float:
        """Return the median over the rounds of `case` divided by the baseline of the same round.

        Both of a round ran within milliseconds of each other: other load slows both, and cancels out.
        """
        pairs = zip(self.rounds_ns[case], self.rounds_ns[self.baseline], strict=True)
        return statistics.median(own / peer for own, peer in pairs)


def compare(
    cases: Mapping[str, Callable[[], object]],
    *,
    number: int,
    rounds: int = 15,
    baseline: str,
    with_gc: bool = False,
    clock: Callable[[], int] = perf_counter_ns,
) -> Timing:
    """Time every case once per round, in an order that rotates from round to round.

    Args:
        cases: what to call, by name.
        number: calls of each case per round; take so many that they last a few milliseconds.
        rounds: how often, after one round that only warms up.
        baseline: the case to divide by.
        with_gc: leave the collector on, for cases whose garbage is part of their price.
        clock: the time in nanoseconds; `time.process_time_ns` where all is done in one thread that never waits, so that
            what else the machine does counts less.
    """
    if baseline not in cases:
        raise ValueError(f"baseline={baseline!r} is not one of {sorted(cases)}")
    order = list(cases)
    taken: dict[str, list[float]] = {name: [] for name in order}

    for name in order:
        _time(cases[name], max(1, number // 10), with_gc, clock)
    for _ in range(rounds):
        for name in order:
            taken[name].append(_time(cases[name], number, with_gc, clock))
        order.append(order.pop(0))
    return Timing(baseline, {name: tuple(figures) for name, figures in taken.items()})


def _time(call: Callable[[], object], number: int, with_gc: bool, clock: Callable[[], int]) -> float:
    was_enabled = gc.isenabled()
    gc.collect()  # the garbage of one case must not be collected during the next
    if not with_gc:
        gc.disable()
    try:
        began = clock()
        for _ in range(number):
            call()
        return (clock() - began) / number
    finally:
        if was_enabled:
            gc.enable()


def in_words(ratio: float) -> str:
    """Return a ratio as people say it: `1.09x`, or `1/6.6` when it is a fraction."""
    return f"1/{1 / ratio:.1f}" if 0 < ratio < 0.5 else f"{ratio:.2f}x"


def print_results(results: Iterable[Result]) -> None:
    """Print one line for each result, under the version that was measured."""
    print(f"CPython {sys.version.split()[0]}")
    for result in results:
        print(result)
