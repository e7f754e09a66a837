"""Rules keep their arguments, reject invalid ones, and hide addresses."""

from collections.abc import Callable

import pytest

from memtools.alerts import AlertRule
from memtools.errors import ConfigError
from memtools.readings import Level

GIB = 2**30


def test_rule_keeps_its_arguments() -> None:
    rule = AlertRule(level="critical", threshold="90%", action="immediate_cleanup", notify=("email", "slack", "email"))

    assert rule.level is Level.CRITICAL
    assert rule.entry_bytes(GIB) == GIB * 9 // 10
    assert [recipient.name for recipient in rule.notify] == ["email", "slack"]
    assert repr(rule) == "AlertRule(critical, threshold=90%, action=immediate_cleanup, notify=(email, slack))"


def test_threshold_as_share_follows_the_limit() -> None:
    share, size = AlertRule("warning", "50%", notify="log"), AlertRule("warning", "900 MiB", notify="log")

    assert (share.entry_bytes(GIB), share.entry_bytes(2 * GIB), share.entry_bytes(None)) == (GIB // 2, GIB, None)
    assert size.entry_bytes(GIB) == size.entry_bytes(None) == 900 * 2**20


def test_categories_are_all_without_a_threshold() -> None:
    assert AlertRule("warning", "50%", notify="log").categories == ("memory",)
    every = ("memory", "reclaim", "budget", "task", "forecast", "death")
    assert AlertRule("warning", notify="log").categories == every
    assert AlertRule("warning", notify="log", categories=("task", "budget")).categories == ("budget", "task")


def test_log_warning_notifies_the_log_once() -> None:
    rule = AlertRule("warning", action="log_warning", notify=("log", "slack"))

    assert [recipient.name for recipient in rule.recipients] == ["log", "slack"]
    assert not rule.has_action


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AlertRule("normal", notify="log"), "level"),
        (lambda: AlertRule(Level.NORMAL, notify="log"), "level"),
        (lambda: AlertRule("high", notify="log"), "level"),
        (lambda: AlertRule("warning", "101%", notify="log"), "threshold"),
        (lambda: AlertRule("warning", -1, notify="log"), "threshold"),
        (lambda: AlertRule("warning", float("nan"), notify="log"), "threshold"),
        (lambda: AlertRule("warning", True, notify="log"), "threshold"),
        (lambda: AlertRule("warning", "512Mb", notify="log"), "threshold"),
        (lambda: AlertRule("warning", action="restart", notify="log"), "action"),
        (lambda: AlertRule("warning", action=7, notify="log"), "action"),
        (lambda: AlertRule("warning"), "notify"),
        (lambda: AlertRule("warning", notify=()), "notify"),
        (lambda: AlertRule("warning", notify=7), "notify"),
        (lambda: AlertRule("warning", notify=["slack", 7]), "notify"),
        (lambda: AlertRule("warning", notify="log", categories="weather"), "categories"),
        (lambda: AlertRule("warning", notify="log", categories=()), "categories"),
        (lambda: AlertRule("warning", notify="log", categories=[["memory"]]), "categories"),
        (lambda: AlertRule("warning", "50%", notify="log", categories="budget"), "categories"),
    ],
)
def test_rule_rejects_invalid_arguments(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()

    assert caught.value.name == name


def test_threshold_as_share_is_rejected_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown:
        value_bytes = None

    monkeypatch.setattr("memtools.alerts._rules.effective_limit", Unknown)

    with pytest.raises(ConfigError, match="no limit is known"):
        AlertRule("warning", "50%", notify="log")


@pytest.mark.parametrize("url", ["slack:/T0K3N", "slack: //T0K3N", "https//T0K3N/x", "json://T0K3N with blanks"])
def test_mistyped_url_is_rejected_and_hidden(url: str) -> None:
    with pytest.raises(ConfigError, match="notify=<hidden>") as caught:
        AlertRule("warning", notify=url)

    assert "T0K3N" not in f"{caught.value!s}{caught.value!r}"


def test_url_is_shown_by_its_scheme_only() -> None:
    rule = AlertRule("warning", notify=("slack", "mailto://me:T0K3N@example.org"))

    assert repr(rule) == "AlertRule(warning, notify=(slack, mailto://<hidden>))"
