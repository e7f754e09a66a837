"""What the calls of one function used, in bounded space: sums, maxima and the last one."""

import threading

from memtools.decorators._line_memory import FunctionLines
from memtools.ledger import Figures, Owner, Usage, figures_of, open_owners
from memtools.records import record
from memtools.units import format_size


@record
class FunctionStatistics:
    """What the measured calls of one function used together.

    Attributes:
        name: the function's name in reports.
        calls: how many measured calls have ended.
        failures: how many of them ended with an exception.
        active: how many measured calls are running.
        mean_peak_bytes: the mean of their peaks.
        max_peak_bytes: the highest of their peaks.
        retained_bytes: the sum of what they left alive when they ended.
        retained_per_call_bytes: the same for one call.
        live_bytes: what the running calls hold now.
        duration_s: the sum of their wall times, in seconds.
        exact: False when one of them was not exact.
    """

    name: str
    calls: int
    failures: int
    active: int
    mean_peak_bytes: int
    max_peak_bytes: int
    retained_bytes: int
    retained_per_call_bytes: int
    live_bytes: int
    duration_s: float
    exact: bool

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.calls} calls, {self.failures} failed, peak mean {format_size(self.mean_peak_bytes)} "
            f"max {format_size(self.max_peak_bytes)}, retained {format_size(self.retained_bytes)} "
            f"({format_size(self.retained_per_call_bytes)} a call){'' if self.exact else ', not exact'}"
        )


class FunctionMemory:
    """The running account of one function: `f.memory`. Safe from any thread.

    Attributes:
        lines: what its lines did to the process's memory, with `profile_memory(lines=True)`, else None.
    """

    def __init__(self, name: str, lines: FunctionLines | None = None) -> None:
        self._name = name
        self.lines = lines
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._last: Figures | None = None
        self._exact = True
        self._calls = self._failures = self._peak_sum = self._peak_max = self._retained = 0
        self._duration_s = 0.0

    @property
    def last(self) -> Usage | None:
        """What the measured call that ended last used, or None."""
        last = self._last
        return None if last is None else Usage(*last)

    def record(self, owner: Owner, error: BaseException | None) -> None:
        """Add a call that has ended, by that exception or by None."""
        figures = figures_of(owner)
        _, retained, peak, _, _, _, duration_s, _, _, exact, _ = figures
        with self._lock:
            self._last = figures
            self._calls += 1
            self._failures += error is not None
            self._peak_sum += peak
            if peak > self._peak_max:
                self._peak_max = peak
            self._retained += retained
            self._duration_s += duration_s
            self._exact = self._exact and exact

    def statistics(self) -> FunctionStatistics:
        """Return the sums and maxima up to now."""
        running = [owner for owner in open_owners() if owner.kind == "call" and owner.name == self._name]
        with self._lock:
            calls = self._calls or 1
            return FunctionStatistics(
                name=self._name,
                calls=self._calls,
                failures=self._failures,
                active=len(running),
                mean_peak_bytes=self._peak_sum // calls,
                max_peak_bytes=self._peak_max,
                retained_bytes=self._retained,
                retained_per_call_bytes=self._retained // calls,
                live_bytes=sum(owner.live_bytes for owner in running),
                duration_s=self._duration_s,
                exact=self._exact,
            )

    def clear(self) -> None:
        """Forget what was recorded."""
        with self._lock:
            self._begin()
        if self.lines is not None:
            self.lines.clear()

    def __repr__(self) -> str:
        return f"<FunctionMemory {self._name} calls={self._calls} max_peak={format_size(self._peak_max)}>"
