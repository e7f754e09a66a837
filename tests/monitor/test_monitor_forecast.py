"""The forecast of a monitor: its events, its figures, its thresholds, and what survives a restart."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from memtools import MemoryMonitor
from memtools.errors import ConfigError
from memtools.events import Event, LevelChanged, LimitForecast
from memtools.exporters._aggregates import monitor_samples
from memtools.ledger import AccountStatistics
from memtools.monitor import _forecast
from memtools.monitor._forecast import owned_and_left

from .conftest import MIB, Machine

Make = Callable[..., MemoryMonitor]
HOUR = 3600.0


def _rise(machine: Machine, monitor: MemoryMonitor, minutes: int, *, step: float = 1.0, start: float = 200.0) -> None:
    for minute in range(minutes):
        machine.set(monitor, start + minute * step, after_s=60.0)


def _forecasts(events: list[Event]) -> list[LimitForecast]:
    return [event for event in events if isinstance(event, LimitForecast)]


class TestEvents:
    def test_rise_emits_a_forecast_once_and_then_hourly(
        self, machine: Machine, make: Make, events: list[Event], caplog: pytest.LogCaptureFixture
    ) -> None:
        monitor = make("95%", "98%", forecast=True)
        with caplog.at_level(logging.WARNING, "memtools.monitor"):
            _rise(machine, monitor, 400)

        found = _forecasts(events)
        first = found[0]
        assert not first.is_over
        assert first.seconds_to_limit == pytest.approx((1000 - first.reading.used_bytes / MIB) * 60, rel=0.15)
        assert first.rate_bytes_per_s == pytest.approx(MIB / 60, rel=0.1)
        gaps = [
            later.reading.at - earlier.reading.at for earlier, later in pairwise(found) if earlier.kind == later.kind
        ]
        assert all(gap >= HOUR for gap in gaps)
        assert 2 <= len(found) <= 6
        assert any("limit in about" in record.getMessage() for record in caplog.records)

    def test_end_of_a_rise_is_an_event(self, machine: Machine, make: Make, events: list[Event]) -> None:
        monitor = make("95%", "98%", forecast="high")
        _rise(machine, monitor, 400)
        _rise(machine, monitor, 30, step=0, start=150)

        assert _forecasts(events)[-1].is_over
        assert str(_forecasts(events)[-1]) == "memory does not rise towards its limit any more"
        assert monitor.forecast is None

    def test_forecast_below_an_hour_is_news(self, machine: Machine, make: Make, events: list[Event]) -> None:
        monitor = make("98%", "99%", forecast=True)
        _rise(machine, monitor, 190, step=4.0)

        left = [event.seconds_to_limit for event in _forecasts(events)]
        assert any(seconds is not None and seconds < HOUR for seconds in left)

    def test_flat_memory_emits_nothing(self, machine: Machine, make: Make, events: list[Event]) -> None:
        monitor = make(forecast=True)
        _rise(machine, monitor, 400, step=0)

        assert _forecasts(events) == []
        assert monitor.health().seconds_to_limit is None

    def test_without_a_forecast_nothing_is_judged(self, machine: Machine, make: Make, events: list[Event]) -> None:
        monitor = make("95%", "98%")
        _rise(machine, monitor, 400)

        assert _forecasts(events) == []
        assert monitor.forecast is None
        assert "trend:" not in monitor.report()

    def test_failure_of_the_forecast_does_not_stop_the_monitor(
        self, machine: Machine, make: Make, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> int:
            raise RuntimeError("no mallinfo")

        monkeypatch.setattr(_forecast, "malloc_bytes", fail)
        monitor = make(forecast=True)
        machine.raise_to(monitor, 700)

        assert [event.after.name for event in events if isinstance(event, LevelChanged)] == ["WARNING"]


class TestFigures:
    def test_health_statistics_report_and_metrics_have_it(self, machine: Machine, make: Make) -> None:
        monitor = make("95%", "98%", forecast=True, pressure=False)
        _rise(machine, monitor, 400)
        seconds = monitor.health().seconds_to_limit

        assert seconds == pytest.approx(400 * 60, rel=0.1)
        assert monitor.statistics().seconds_to_limit == seconds
        assert monitor.forecast is not None
        assert monitor.forecast.seconds_to_limit == seconds
        report = monitor.report()
        assert "limit in about 6 h" in report
        assert "suggested: warning=" in report
        assert "limit in about" in monitor.health().reason
        with monitor:
            assert monitor_samples()["seconds.to.limit"] == {(monitor.name,): pytest.approx(seconds, rel=0.1)}

    def test_metric_is_absent_while_nothing_rises(self, machine: Machine, make: Make) -> None:
        with make(forecast=True):
            assert "seconds.to.limit" not in monitor_samples()

    def test_owners_that_grow_are_in_event_and_report(
        self, machine: Machine, make: Make, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Ledger:
            accounts: tuple[AccountStatistics, ...] = ()

        def statistics() -> Ledger:
            ledger = Ledger()
            live = machine.used - 150 * MIB
            ledger.accounts = (_account("/orders/{id}", live, live),)
            return ledger

        monkeypatch.setattr(_forecast, "statistics", statistics)
        monitor = make("95%", "98%", forecast=True)
        _rise(machine, monitor, 400)

        last = _forecasts(events)[-1]
        assert last.kind == "python"
        assert last.growing[0][0] == "/orders/{id}"
        assert last.growing[0][1] == pytest.approx(60 * MIB, rel=0.1)
        assert "; /orders/{id} grows by " in str(last)
        assert "/orders/{id} grows by" in monitor.report()
        assert monitor.timeline.owners["/orders/{id}"]


class TestTimeline:
    def test_every_monitor_has_its_readings_and_events(self, machine: Machine, make: Make) -> None:
        monitor = make()
        machine.raise_to(monitor, 700)
        machine.set(monitor, 100, after_s=60)

        timeline = monitor.timeline
        assert [one.lowest_bytes // MIB for one in timeline.samples][-1] == 100
        assert timeline.limit_bytes == 1000 * MIB
        assert "NORMAL to WARNING" in next(event.text for event in timeline.events if event.kind == "alarm")
        assert all(one.blocks for one in timeline.samples)

    def test_times_are_those_of_the_wall_clock(self, machine: Machine, make: Make) -> None:
        monitor = make()
        machine.set(monitor, 100, after_s=5)
        machine.set(monitor, 100, after_s=5)

        first, second = (one.at_s for one in monitor.timeline.samples)
        assert second - first == pytest.approx(5)
        assert first > 1_700_000_000

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_forked_child_begins_a_timeline_of_its_own(self, machine: Machine, make: Make) -> None:
        monitor = make("95%", "98%", forecast=True)
        _rise(machine, monitor, 400)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if not monitor.timeline.samples and monitor.forecast is None else 1
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert monitor.forecast is not None


class TestAdaptive:
    def test_thresholds_follow_the_suggestion(
        self, machine: Machine, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        monitor = make("60%", "80%", forecast=True, adaptive=True)
        with caplog.at_level(logging.INFO, "memtools.monitor"):
            for minute in range(300):
                machine.set(monitor, 300 + 100 * (minute % 60 < 5), after_s=60.0)

        statistics = monitor.statistics()
        assert statistics.warning_bytes == 850 * MIB
        assert statistics.critical_bytes == 925 * MIB
        adapted = [record.getMessage() for record in caplog.records if "adapted" in record.getMessage()]
        assert len(adapted) == 1
        assert "within 10 minutes is 100.0 MiB" in adapted[0]

    def test_level_is_decided_by_the_adapted_thresholds(self, machine: Machine, make: Make) -> None:
        monitor = make("60%", "80%", forecast=True, adaptive=True)
        for minute in range(300):
            machine.set(monitor, 300 + 100 * (minute % 60 < 5), after_s=60.0)
        machine.raise_to(monitor, 840)
        assert monitor.level.name == "NORMAL"
        machine.raise_to(monitor, 860)
        assert monitor.level.name == "WARNING"

    def test_without_it_they_are_only_suggested(self, machine: Machine, make: Make) -> None:
        monitor = make("60%", "80%", forecast=True)
        _rise(machine, monitor, 300, step=0)

        assert monitor.statistics().warning_bytes == 600 * MIB
        assert "suggested: warning=970.0 MiB" in monitor.report()


class TestState:
    def test_what_was_learned_survives_a_restart(self, machine: Machine, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "trend.json"
        monitor = make("60%", "80%", forecast=True, forecast_state=path)
        _rise(machine, monitor, 300, step=0)

        assert json.loads(path.read_text())["headroom"]["hourly_rises"]
        again = make("60%", "80%", forecast=True, forecast_state=path)
        assert "suggested: warning=970.0 MiB" in again.report()
        assert os.listdir(tmp_path) == ["trend.json"]

    def test_end_of_the_sampling_loop_saves_it(self, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "trend.json"
        with make(forecast=True, forecast_state=path):
            pass

        assert json.loads(path.read_text())["format"] == "memtools trend"

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"format": "memtools trend", "version": 2}', "\udcff"], ids=repr
    )
    def test_bad_file_is_one_warning_and_a_new_start(
        self, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
    ) -> None:
        path = tmp_path / "trend.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with caplog.at_level(logging.WARNING, "memtools.monitor"):
            monitor = make(forecast=True, forecast_state=path)

        assert len(caplog.records) == 1
        assert "starts anew" in caplog.text
        assert monitor.forecast is None

    def test_parts_that_make_no_sense_are_left_out(self, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "trend.json"
        path.write_text('{"format": "memtools trend", "version": 1, "detector": 5, "headroom": {"hourly_rises": [1]}}')

        assert make(forecast=True, forecast_state=path).forecast is None

    def test_folder_that_is_missing_is_logged(
        self, machine: Machine, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        monitor = make(forecast=True, forecast_state=tmp_path / "missing" / "trend.json")
        with caplog.at_level(logging.WARNING, "memtools.monitor"):
            _rise(machine, monitor, 130, step=0)

        assert "could not be saved" in caplog.text

    def test_file_that_cannot_be_replaced_leaves_no_half_one(
        self, machine: Machine, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monitor = make(forecast=True, forecast_state=tmp_path / "trend.json")
        monkeypatch.setattr(os, "replace", refuse)
        _rise(machine, monitor, 130, step=0)

        assert list(tmp_path.iterdir()) == []


class TestArguments:
    def test_environment_asks_for_a_forecast(
        self, machine: Machine, make: Make, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMTOOLS_FORECAST", "high")
        _rise(machine, make("95%", "98%"), 400)

        assert _forecasts(events)

    def test_argument_wins_over_the_environment(
        self, machine: Machine, make: Make, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMTOOLS_FORECAST", "high")
        _rise(machine, make("95%", "98%", forecast=False), 400)

        assert _forecasts(events) == []

    def test_wrong_variable_is_refused_by_its_name(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_FORECAST", "soon")

        with pytest.raises(ConfigError, match="MEMTOOLS_FORECAST"):
            make()

    @pytest.mark.parametrize("wrong", ["extreme", 1, 0.5, []])
    def test_forecast_that_makes_no_sense_is_refused(self, make: Make, wrong: object) -> None:
        with pytest.raises(ConfigError, match="forecast"):
            make(forecast=wrong)

    @pytest.mark.parametrize("options", [{"adaptive": True}, {"forecast_state": "trend.json"}])
    def test_options_of_the_forecast_need_one(self, make: Make, options: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="forecast=True"):
            make(**options)


def _account(
    name: str, live: int | None, left: int | None, children: tuple[AccountStatistics, ...] = ()
) -> AccountStatistics:
    return AccountStatistics(
        name=name,
        kind="call",
        started=10,
        active=0,
        failed=0,
        peak_bytes=0,
        mean_peak_bytes=0,
        retained_bytes=0,
        duration_s=0.0,
        steps=0,
        exact=True,
        note="",
        meter="native",
        children=children,
        live_bytes=live,
        live_after_end_bytes=left,
    )


def test_what_ended_calls_left_is_seen_below_an_open_owner() -> None:
    server = _account("server", 100, -5, (_account("request", 80, 70), _account("other", 10, 5)))

    assert owned_and_left((server,)) == (100, 75)
    assert owned_and_left((_account("a", None, None),)) is None
    assert owned_and_left(()) is None


REAL_PROGRAM = """
import sys
from memtools import MemoryMonitor
from memtools.monitor import MemorySource
from memtools.readings import Headroom, Limit, LimitSource, resident_bytes

now, limit = [0.0], resident_bytes() + 60 * 2**20
source = MemorySource(
    used=resident_bytes,
    limit=lambda: Limit(limit, LimitSource.USER),
    headroom=lambda: Headroom(None, LimitSource.USER, (), None),
    clock=lambda: now[0],
)
monitor = MemoryMonitor("98%", "99%", forecast=True, source=source, pressure=False, cleanup_interval=0)
kept = {}
for minute in range(260):
    now[0] += 60.0
    kept[minute % int(sys.argv[1])] = [{"number": number} for number in range(700)]
    monitor.check()
trend = monitor._engine.forecast
print(monitor.forecast is not None, trend.rising.kind.value if trend.rising is not None else None)
"""


class TestRealProcess:
    """Real memory and real counters; only the clock is faster.

    In a process of its own: in one that has freed much, new objects would fit into what is resident already.
    """

    @staticmethod
    def _judge(kept_minutes: int) -> str:
        command = [sys.executable, "-c", REAL_PROGRAM, str(kept_minutes)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.strip()

    @pytest.mark.once
    @pytest.mark.skipif(sys.platform != "linux", reason="resident memory follows small objects closely only here")
    def test_leak_of_small_objects_is_found_and_confirmed(self) -> None:
        assert self._judge(kept_minutes=1_000) == "True python"

    @pytest.mark.once
    def test_program_that_drops_its_objects_is_not_suspected(self) -> None:
        assert self._judge(kept_minutes=20) == "False None"
