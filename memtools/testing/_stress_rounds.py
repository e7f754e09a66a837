"""What is noted after each round of a stress test, in space that was taken before the first.

Covers: resident and live bytes, durations, percentiles, the line on the terminal.
Leaves to others: the rounds themselves (`_hunt`), what is made of the notes (`_stress_report`).
"""

import time
from array import array
from collections.abc import Callable
from typing import Final

from memtools.readings import resident_bytes
from memtools.testing._latencies import Latencies
from memtools.testing._progress import Progress
from memtools.testing._stress_report import StressRound
from memtools.units import format_size

_WHOLE: Final = ("calls", "resident", "live")
_SECONDS: Final = ("duration", "p50", "p95", "p99", "longest")
_PERCENTS: Final = (50.0, 95.0, 99.0)
_MORE: Final = 40  # rounds, beyond those that were asked for, where something grows


class Rounds:
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
        room = bytes(8 * (asked + _MORE + 1))
        self._whole = {name: array("q", room) for name in _WHOLE}
        self._seconds = {name: array("d", room) for name in _SECONDS}
        self._done = -1  # what there is before the first round is noted as well
        self._live_before = 0
        self._begun = self.last_end = clock()

    def note(self, done: int, calls: int, live_bytes: int) -> None:
        """Note a round that is over; told once before the first as well."""
        if done == 0:
            self._live_before = live_bytes
        self._note(done, calls, resident_bytes(), live_bytes - self._live_before)
        self._show()
        self.latencies.clear()
        self._begun = self.last_end = self._clock()

    def taken(self) -> tuple[StressRound, ...]:
        """Return the notes, what there was before the first round as number 0."""
        return tuple(self._taken(number) for number in range(self._done + 1))

    def _note(self, done: int, calls: int, resident: int, live: int) -> None:
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
        latest = self._taken(self._done)
        of = f" of {self._asked}" if self._done <= self._asked else ", until it is clear"
        self._progress.show(
            f"{self._tested}: round {self._done}{of}, {self._whole['calls'][self._done]:,} calls, "
            f"resident {format_size(latest.resident_bytes)}, live {format_size(latest.live_bytes)}, "
            f"p99 {latest.p99_s * 1000:.3g} ms"
        )

    def _taken(self, number: int) -> StressRound:
        before = self._whole["calls"][number - 1] if number else 0
        return StressRound(
            number,
            self._whole["calls"][number] - before,
            self._whole["resident"][number],
            self._whole["live"][number],
            *(self._seconds[name][number] for name in _SECONDS),
        )
