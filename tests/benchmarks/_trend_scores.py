"""Scores of leak detectors, forecasts and thresholds on the traces."""

import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from _detectors import BLOCK_MINUTES, SKIPPED, Detector
from _traces import DAY, STEP_S, Trace

from memtools.analysis import HeadroomRule, TrendDetector, forecast

LIMIT = 1 << 30


class Alarm(Protocol):
    """Whether an alarm is raised, minute by minute."""

    def observe(self, trace: Trace, minute: int) -> bool: ...


class TrendAlarm:
    """The alarm of a monitor with `forecast=True`; with owners, only what the counters confirm counts."""

    def __init__(self, sensitivity: str, *, with_owners: bool = False) -> None:
        self.detector = TrendDetector(sensitivity)
        self._with_owners = with_owners

    def observe(self, trace: Trace, minute: int) -> bool:
        known: dict[str, float] = {}
        if self._with_owners:
            known = {"owned_bytes": trace.blocks[minute] * LIMIT, "left_bytes": trace.left[minute] * LIMIT}
        self.detector.observe(
            minute * STEP_S,
            trace.used[minute] * LIMIT,
            limit_bytes=LIMIT,
            blocks=trace.blocks[minute] * 1e7,
            malloc_bytes=trace.blocks[minute] * LIMIT * 0.3,
            **known,
        )
        rising = self.detector.rising
        return rising is not None and (rising.is_leak or not self._with_owners)


class BaselineAlarm:
    """A baseline, which is fed the floor of each five minutes; its alarm ends when half of the rise has receded."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._blocks = 0
        self._valley = self._floor = 2.0
        self._over_below: float | None = None

    def observe(self, trace: Trace, minute: int) -> bool:
        self._floor = min(self._floor, trace.used[minute])
        if (minute + 1) % BLOCK_MINUTES:
            return self._over_below is not None
        floor, self._floor = self._floor, 2.0
        self._blocks += 1
        if self._blocks <= SKIPPED:
            return False
        self._valley = min(self._valley, floor)
        suspects = self._detector.update(floor, trace.used[minute])
        if self._over_below is not None and floor < self._over_below:
            self._over_below, self._valley = None, floor
        elif suspects and self._over_below is None:
            self._over_below = (floor + self._valley) / 2
        return self._over_below is not None


@dataclass
class Score:
    """How well an alarm tells leaks from healthy programs."""

    found: int = 0
    found_at_half_life: int = 0
    missed: int = 0
    false_traces: int = 0
    false_alarms: int = 0
    healthy_days: float = 0.0
    by_family: dict[str, list[int]] = field(default_factory=dict)  # traces, alarmed, at half life

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.false_traces)

    @property
    def recall(self) -> float:
        return self.found / max(1, self.found + self.missed)

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def half_life(self) -> float:
        return self.found_at_half_life / max(1, self.found + self.missed)

    @property
    def alarms_a_day(self) -> float:
        return self.false_alarms / max(self.healthy_days, 1e-9)

    def add(self, trace: Trace, alarm: Alarm) -> None:
        """Run an alarm over a trace. An alarm before the onset is a false one, and the leak counts as missed."""
        first, was, false = None, False, 0
        for minute in range(len(trace.used)):
            raised = alarm.observe(trace, minute)
            if raised and not was:
                if trace.onset is not None and minute >= trace.onset:
                    first = minute
                    break
                false += 1
            was = raised
        family = self.by_family.setdefault(trace.family, [0, 0, 0])
        family[0] += 1
        family[1] += bool(false) if trace.onset is None else first is not None
        self.false_traces += bool(false)
        if trace.onset is None:
            self.false_alarms += false
            self.healthy_days += len(trace.used) / DAY
            return
        is_found = first is not None and not false
        self.found += is_found
        self.missed += not is_found
        in_time = is_found and first is not None and first <= trace.half_life
        self.found_at_half_life += in_time
        family[2] += in_time


@dataclass
class ForecastScore:
    """How far forecasts at half life are off."""

    errors: list[float] = field(default_factory=list)
    lower_holds: int = 0
    covered: int = 0
    withheld: int = 0

    def add(self, trace: Trace) -> None:
        """Forecast at the half life of a leaking trace."""
        detector = TrendDetector()
        half = int(trace.half_life)
        for minute in range(half):
            detector.observe(minute * STEP_S, trace.used[minute] * LIMIT, limit_bytes=LIMIT)
        found = forecast(detector.levels, LIMIT)
        left_s = (len(trace.used) - half) * STEP_S
        if found.seconds_to_limit is None or found.earliest_s is None:
            self.withheld += 1
            return
        self.errors.append(abs(found.seconds_to_limit - left_s) / left_s)
        self.lower_holds += found.earliest_s <= left_s
        self.covered += found.earliest_s <= left_s <= (found.latest_s or float("inf"))

    @property
    def median_error(self) -> float:
        return median(self.errors) if self.errors else float("nan")


@dataclass
class ThresholdScore:
    """Notice before the limit, and time in warning, for the suggested threshold and a static 80 %."""

    notices: dict[str, list[int]] = field(default_factory=lambda: {"suggested": [], "static 80 %": []})
    warned: dict[str, int] = field(default_factory=lambda: {"suggested": 0, "static 80 %": 0})
    minutes: int = 0

    def add(self, trace: Trace) -> None:
        """Run both thresholds over a trace; each is left five points below its entry."""
        rule, entry = HeadroomRule(), 0.8
        since: dict[str, int | None] = {"suggested": None, "static 80 %": None}
        for minute, used in enumerate(trace.used):
            rule.observe(minute * STEP_S, used * LIMIT)
            if minute % 60 == 0:
                suggested = rule.suggestion(LIMIT)
                entry = 0.8 if suggested is None else suggested.warning_bytes / LIMIT
            for name, at in (("suggested", entry), ("static 80 %", 0.8)):
                if used >= at:
                    since[name] = minute if since[name] is None else since[name]
                elif used < at - 0.05:
                    since[name] = None
                if not trace.is_leak:
                    self.warned[name] += since[name] is not None
        if not trace.is_leak:
            self.minutes += len(trace.used)
            return
        for name, start in since.items():
            self.notices[name].append(0 if start is None else len(trace.used) - start)

    def share(self, name: str) -> float:
        """Return the share of the time of healthy programs in warning."""
        return self.warned[name] / max(1, self.minutes)


def score_alarms(traces: Iterable[Trace], make: dict[str, Callable[[], Alarm]]) -> dict[str, Score]:
    """Run every alarm over every trace."""
    scores = {name: Score() for name in make}
    for trace in traces:
        for name, score in scores.items():
            score.add(trace, make[name]())
    return scores


@dataclass
class Cost:
    """What a sample costs, and what the detector keeps."""

    median_us: float
    worst_us: float
    state_bytes: int


def measure_cost(trace: Trace, *, per_minute: int = 12) -> Cost:
    """Return the cost of readings every five seconds: the mean, and the worst.

    The worst is the least of five runs for each reading, since the machine has other work.
    """
    runs: list[list[float]] = []
    means: list[float] = []
    detector = TrendDetector()
    for _ in range(5):
        detector, alarm_worst, total, number = TrendDetector(), [], 0.0, 0
        for minute in range(len(trace.used)):
            used, blocks = trace.used[minute] * LIMIT, trace.blocks[minute] * 1e7
            started = time.perf_counter()
            for part in range(per_minute):
                detector.observe(
                    minute * STEP_S + part * STEP_S / per_minute,
                    used,
                    limit_bytes=LIMIT,
                    blocks=blocks,
                    malloc_bytes=used,
                )
            took = time.perf_counter() - started
            alarm_worst.append(took)
            total, number = total + took, number + per_minute
        runs.append(alarm_worst)
        means.append(total / number)
    worst = max(min(times) for times in zip(*runs, strict=True))
    return Cost(median(means) * 1e6, worst * 1e6, state_bytes(detector))


def state_bytes(thing: Any) -> int:
    """Return the size of an object with all that it refers to, classes left out."""
    seen: set[int] = set()

    def size(one: Any) -> int:
        if id(one) in seen or isinstance(one, type) or callable(one):
            return 0
        seen.add(id(one))
        total = sys.getsizeof(one)
        if isinstance(one, (tuple, list, deque, set)):
            total += sum(map(size, one))
        elif isinstance(one, dict):
            total += sum(map(size, one)) + sum(map(size, one.values()))
        elif not isinstance(one, (array, str, bytes, int, float)):
            slots = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
            total += sum(size(getattr(one, name)) for name in slots if hasattr(one, name))
            total += size(vars(one)) if hasattr(one, "__dict__") else 0
        return total

    return size(thing)
