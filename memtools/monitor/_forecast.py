"""The trend of a monitor: its timeline, whether the floor rises, when the limit is reached, suggested thresholds."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools.analysis import Forecast, HeadroomRule, OwnerTrend, RisingFloor, SuggestedThresholds, TrendDetector
from memtools.analysis import forecast as forecast_limit
from memtools.analysis._trend import rising_owners
from memtools.analysis._trend_detector import Sensitivity
from memtools.config import SENSITIVITIES
from memtools.errors import ConfigError
from memtools.events import LimitForecast
from memtools.ledger import AccountStatistics, statistics
from memtools.monitor._sampler import MemorySource
from memtools.readings import Reading
from memtools.readings._counters import malloc_bytes
from memtools.timelines import Timeline
from memtools.timelines._recording import allocated_blocks, live_by_owner
from memtools.timelines._timeline import replace_file
from memtools.units import parse_choice

PathName: TypeAlias = str | os.PathLike[str]

COUNTERS_EVERY_S: Final = 60.0
SAVE_EVERY_S: Final = 3_600.0
_MAX_COST: Final = 0.001  # of the time, for the accounts of the ledger
_REMIND_S: Final = 3_600.0  # an event of a forecast that goes on comes again
SOON_S: Final = 3_600.0  # a forecast that falls below it is news; alerts call it critical
_FORMAT: Final = "memtools trend"
_VERSION: Final = 1
_LARGEST: Final = 3

_log = logging.getLogger("memtools.monitor")


def parse_forecast(value: object) -> Sensitivity | None:
    """Return the sensitivity for `MemoryMonitor(forecast=...)`; None for no forecast.

    Raises:
        ConfigError: for anything but a bool or the name of a sensitivity.
    """
    if value is None or value is False:
        return None
    if value is True:
        return "balanced"
    if not isinstance(value, str):
        raise ConfigError("forecast", value, "True, False, 'low', 'balanced' or 'high'")
    return cast("Sensitivity", parse_choice(value, SENSITIVITIES, name="forecast"))


@record
class Trend:
    """The parts of a monitor that look at hours and days.

    Attributes:
        timeline: the readings and the events.
        forecast: judges them; None where no forecast is wanted.
        is_adaptive: whether the suggested thresholds are applied.
    """

    timeline: Timeline
    forecast: "TrendForecast | None"
    is_adaptive: bool


def make_trend(forecast: object, source: MemorySource, *, adaptive: bool, state_path: PathName | None) -> Trend:
    """Return the parts for the arguments of a monitor.

    Raises:
        ConfigError: for a sensitivity that there is not, and for what makes no sense without a forecast.
    """
    sensitivity = parse_forecast(forecast)
    timeline = Timeline(limit_bytes=source.limit().value_bytes)
    if sensitivity is not None:
        found = TrendForecast(sensitivity, state_path=state_path, timeline=timeline, clock=source.clock)
        return Trend(timeline, found, bool(adaptive))
    for name, value in (("adaptive", adaptive), ("forecast_state", state_path)):
        if value:
            raise ConfigError(name, value, "nothing without forecast=True")
    return Trend(timeline, None, is_adaptive=False)


class TrendForecast:
    """Judges the readings of a monitor over hours and days.

    Args:
        sensitivity: of the detector.
        state_path: the file in which what was learned survives a restart; None for none.
        now: the present time of the monitor's clock.

    Attributes:
        timeline: the readings and the events.

    Threads: `observe` is called by one thread at a time; the rest by any.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        *,
        state_path: PathName | None,
        timeline: Timeline,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.timeline = timeline
        self._sensitivity: Sensitivity = sensitivity
        self._path = None if state_path is None else Path(state_path)
        self._clock = clock
        self._offset_s = wall() - clock()
        self._detector = TrendDetector(sensitivity)
        self._rule = HeadroomRule()
        self._lock = threading.Lock()
        self._forecast: Forecast | None = None
        self._owners: tuple[OwnerTrend, ...] = ()
        self._malloc: int | None = None
        self._owned: tuple[int, int] | None = None
        self._next_counters_at = self._next_owners_at = -inf
        self._next_save_at = clock() + SAVE_EVERY_S
        self._emitted_at = -inf
        self._emitted: RisingFloor | None = None
        self._is_soon = False
        self._warnings = RateLimitedLogger(_log, interval_s=3_600.0, clock=clock)
        self._load()

    @property
    def rising(self) -> RisingFloor | None:
        """The floor that rises; None if none does."""
        return self._detector.rising

    def forecast(self) -> Forecast | None:
        """Return when the limit is reached; None while no floor rises. Computed once for each block of five minutes."""
        if self._detector.rising is None:
            return None
        with self._lock:
            if self._forecast is None:
                self._forecast = forecast_limit(self._detector.levels, self._detector.limit_bytes)
            return self._forecast

    def owners(self) -> tuple[OwnerTrend, ...]:
        """Return the accounts whose live bytes rise, the fastest first."""
        return self._owners

    def suggestion(self, limit_bytes: int | None, warning_bytes: int | None) -> SuggestedThresholds | None:
        """Return the suggested thresholds; None before three hours were seen, and without a limit."""
        return self._rule.suggestion(limit_bytes, warning_bytes=warning_bytes)

    def observe(self, reading: Reading, monitor: str) -> LimitForecast | None:
        """Take a reading into account; return the event where there is something new to say."""
        now, at_s = reading.at, reading.at + self._offset_s
        if now >= self._next_counters_at:
            self._next_counters_at = now + COUNTERS_EVERY_S
            self._malloc = malloc_bytes()
        if now >= self._next_owners_at:
            self._read_owners(now, at_s)
        owned, left = (None, None) if self._owned is None else self._owned
        self._rule.observe(at_s, reading.used_bytes)
        has_closed = self._detector.observe(
            at_s,
            reading.used_bytes,
            limit_bytes=reading.limit_bytes,
            blocks=allocated_blocks(),
            malloc_bytes=self._malloc,
            owned_bytes=owned,
            left_bytes=left,
        )
        if now >= self._next_save_at:
            self._next_save_at = now + SAVE_EVERY_S
            self.save()
        return self._on_block(reading, monitor) if has_closed else None

    def save(self) -> None:
        """Write what was learned; a failure is logged once an hour."""
        if self._path is None:
            return
        state = {
            "format": _FORMAT,
            "version": _VERSION,
            "detector": self._detector.state(),
            "headroom": self._rule.state(),
        }
        try:
            replace_file(self._path, [json.dumps(state)], waits_for_disk=False)  # this may be an event loop
        except OSError as error:
            self._warnings.warning("save", "what the forecast has learned could not be saved: %s", error)

    def after_fork(self, timeline: Timeline) -> None:
        """Begin anew in a forked child, whose memory is not its parent's; what was learned stays."""
        self._lock = threading.Lock()
        learned = self._detector.state()
        self._detector = TrendDetector(self._sensitivity)
        self._detector.restore(learned)
        self.timeline = timeline
        self._forecast = self._emitted = None
        self._owners = ()

    def _on_block(self, reading: Reading, monitor: str) -> LimitForecast | None:
        with self._lock:
            self._forecast = None
        before, rising = self._emitted, self._detector.rising
        if rising is None:
            self._emitted = None
            if before is None:
                return None
            self._emitted_at, self._is_soon = -inf, False
            return _event(monitor, reading, before, None, (), is_over=True)
        found = self.forecast()
        is_soon = found is not None and found.seconds_to_limit is not None and found.seconds_to_limit < SOON_S
        is_news = before is None or (rising.is_leak and not before.is_leak) or (is_soon and not self._is_soon)
        if not is_news and reading.at - self._emitted_at < _REMIND_S:
            return None
        self._emitted, self._emitted_at, self._is_soon = rising, reading.at, is_soon
        self._owners = rising_owners(self.timeline.owners)
        return _event(monitor, reading, rising, found, self._owners, is_over=False)

    def _read_owners(self, now: float, at_s: float) -> None:
        started = time.perf_counter()
        accounts = statistics().accounts
        self.timeline.add_owners(live_by_owner(accounts), at_s=at_s)
        self._owned = owned_and_left(accounts)
        cost_s = time.perf_counter() - started
        self._next_owners_at = now + max(COUNTERS_EVERY_S, cost_s / _MAX_COST)

    def _load(self) -> None:
        path = self._path
        if path is None or not path.exists():
            return
        try:
            state = _parse_state(path.read_bytes())
        except (OSError, ValueError) as error:
            _log.warning("%s: what a forecast has learned cannot be read, so it starts anew: %s", path, error)
            return
        self._detector.restore(state["detector"])
        self._rule.restore(state["headroom"])


def owned_and_left(accounts: Iterable[AccountStatistics]) -> tuple[int, int] | None:
    """Return the live bytes of all accounts, and those that ended owners have left; None where no meter knows them."""
    known = [account for account in accounts if account.live_bytes is not None]
    if not known:
        return None
    return sum(max(0, account.live_bytes or 0) for account in known), sum(map(_left, known))


def _left(account: AccountStatistics) -> int:
    # What an owner that is still open holds may have been left behind by calls below it that have ended.
    below = sum(map(_left, account.children))
    return max(0, below, account.live_after_end_bytes or 0)


def _parse_state(text: bytes) -> dict[str, Mapping[str, object]]:
    found: Any = json.loads(text)  # Any: JSON of anything
    state = _as_mapping(found)
    if (state.get("format"), state.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(f"it is no file of {_FORMAT!r}, version {_VERSION}")
    return {name: _as_mapping(state.get(name)) for name in ("detector", "headroom")}


def _as_mapping(value: object) -> Mapping[str, object]:
    return dict(cast("Mapping[str, object]", value)) if isinstance(value, dict) else {}


def _event(
    monitor: str,
    reading: Reading,
    rising: RisingFloor,
    forecast: Forecast | None,
    owners: tuple[OwnerTrend, ...],
    *,
    is_over: bool,
) -> LimitForecast:
    rate = rising.bytes_per_s if forecast is None or forecast.rate_bytes_per_s <= 0 else forecast.rate_bytes_per_s
    return LimitForecast(
        monitor=monitor,
        reading=reading,
        kind=rising.kind.value if rising.is_leak else "",
        rate_bytes_per_s=rate,
        seconds_to_limit=None if forecast is None else forecast.seconds_to_limit,
        earliest_s=None if forecast is None else forecast.earliest_s,
        latest_s=None if forecast is None else forecast.latest_s,
        reason=rising.reason,
        growing=tuple((owner.name, round(owner.bytes_per_s * 3600)) for owner in owners[:_LARGEST]),
        is_over=is_over,
    )
