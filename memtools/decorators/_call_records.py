"""What is remembered of calls: one frozen record each, the newest ones, and their summary."""

from collections.abc import Iterable
from typing import Any

from memtools.records import record
from memtools.structures import BoundedList


@record
class CallRecord:
    """One call that has ended.

    Attributes:
        started: when, in seconds of `time.time()`.
        duration_s: wall time in seconds.
        outcome: `"ok"`, or the name of the exception's type.
        retained_bytes: what it left alive, in bytes.
        peak_bytes: its highest live bytes.
        resident_delta_bytes: change of the whole process's resident memory.
        exact: False where others may have leaked into the figures.
        result: what it returned, only where the decorator was told `result=True`.
    """

    started: float
    duration_s: float
    outcome: str
    retained_bytes: int
    peak_bytes: int
    resident_delta_bytes: int
    exact: bool
    result: Any = None  # Any: whatever the function returns


@record
class HistorySummary:
    """The remembered calls in numbers; durations in seconds, None where there are no calls.

    Attributes:
        count: how many calls are remembered.
        failures: how many of them did not end well.
        mean_s: mean duration.
        p50_s: the median duration.
        p95_s: the duration that 95 % of the calls did not exceed.
        p99_s: the duration that 99 % of the calls did not exceed.
        retained_bytes: the sum of what they left alive.
    """

    count: int
    failures: int
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    retained_bytes: int

    def __str__(self) -> str:
        if self.mean_s is None:
            return "no calls"
        return (
            f"{self.count} calls, {self.failures} failed, mean {self.mean_s:.4f} s, p50 {self.p50_s:.4f} s, "
            f"p95 {self.p95_s:.4f} s, p99 {self.p99_s:.4f} s"
        )


class History(BoundedList[CallRecord]):
    """The newest calls of a function, oldest first."""

    __slots__ = ()

    def summary(self) -> HistorySummary:
        """Return count, mean, percentiles (nearest rank) and failures of the calls that are remembered."""
        return summarise(self[:])


def summarise(records: Iterable[CallRecord]) -> HistorySummary:
    """Return the summary of any records."""
    calls = list(records)
    durations = sorted(call.duration_s for call in calls)
    return HistorySummary(
        count=len(calls),
        failures=sum(call.outcome != "ok" for call in calls),
        mean_s=sum(durations) / len(durations) if durations else None,
        p50_s=_percentile(durations, 50),
        p95_s=_percentile(durations, 95),
        p99_s=_percentile(durations, 99),
        retained_bytes=sum(call.retained_bytes for call in calls),
    )


def _percentile(ordered: list[float], percent: int) -> float | None:
    # Nearest rank: the smallest value that at least so many percent do not exceed (Hyndman and Fan, type 1).
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)
    return ordered[rank - 1]
