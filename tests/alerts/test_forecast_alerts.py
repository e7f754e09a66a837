"""Alerts on a forecast: opened, escalated, resolved, and what they say."""

import pytest

from memtools.alerts import AlertRule
from memtools.alerts._incidents import IncidentTracker, SendAlert, is_observed, observations
from memtools.events import LimitForecast
from memtools.readings import Reading

pytestmark = pytest.mark.once

MIB = 1 << 20


def _event(seconds: float | None = 5 * 3600.0, *, is_over: bool = False, kind: str = "python") -> LimitForecast:
    return LimitForecast(
        monitor="monitor",
        reading=Reading(600 * MIB, 1000 * MIB, 0.0),
        kind=kind,
        rate_bytes_per_s=12 * MIB / 3600,
        seconds_to_limit=seconds,
        earliest_s=None if seconds is None else seconds * 0.7333,
        latest_s=None,
        reason="the lowest use rose by 80.0 MiB",
        growing=(("/orders/{id}\n", 12 * MIB),) if kind else (),
        is_over=is_over,
    )


def _tracker(*rules: AlertRule) -> IncidentTracker:
    return IncidentTracker(rules, cooldown_s=300.0, source="shop", token="t", wall=lambda: 1.0)


def _sent(tracker: IncidentTracker, event: LimitForecast, now: float) -> list[tuple[str, str, str]]:
    (observation,) = observations(event)
    decisions = tracker.observe(observation, now)
    return [
        (one.alert.kind.value, one.alert.level.name, one.alert.summary)
        for one in decisions
        if isinstance(one, SendAlert)
    ]


def test_forecast_says_when_and_who() -> None:
    assert is_observed(_event())
    (sent,) = _sent(_tracker(AlertRule("warning", notify="log")), _event(), 0.0)

    assert sent == (
        "opened",
        "WARNING",
        "limit in about 5 h, probably not before 3 h 40; /orders/{id}\\n grows by 12.0 MiB/h",
    )


def test_details_have_the_evidence_and_the_kind() -> None:
    (observation,) = observations(_event())
    details = dict(observation.describe()[1])

    assert details["leak"] == "of kind python, confirmed by the counters"
    assert details["evidence"] == "the lowest use rose by 80.0 MiB"
    assert details["growing"].endswith("12.0 MiB/h")


def test_unconfirmed_growth_is_not_called_a_leak() -> None:
    (observation,) = observations(_event(None, kind=""))
    summary, details = observation.describe()

    assert summary == "memory grows by 12.0 MiB/h"
    assert "leak" not in f"{summary}{details}"


def test_confirmed_leak_without_owners_is_called_one() -> None:
    event = _event()
    nameless = LimitForecast(
        event.monitor, event.reading, "native", event.rate_bytes_per_s, None, None, None, event.reason
    )

    assert str(nameless) == "memory leaks 12.0 MiB/h"


def test_less_than_an_hour_escalates_and_the_end_resolves() -> None:
    tracker = _tracker(AlertRule("warning", notify="log"))

    assert [kind for kind, _, _ in _sent(tracker, _event(), 0.0)] == ["opened"]
    assert [kind for kind, _, _ in _sent(tracker, _event(), 10.0)] == []
    assert [(kind, level) for kind, level, _ in _sent(tracker, _event(1800.0), 20.0)] == [("escalated", "CRITICAL")]
    assert [kind for kind, _, _ in _sent(tracker, _event(is_over=True), 30.0)] == ["resolved"]
    assert tracker.open_incidents == 0


def test_rule_for_forecasts_only_ignores_the_rest() -> None:
    rule = AlertRule("critical", notify="log", categories="forecast")

    assert _sent(_tracker(rule), _event(), 0.0) == []
    assert len(_sent(_tracker(rule), _event(600.0), 0.0)) == 1
