"""What is open: which rules a fact concerns, who is told of it, how it ends."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.alerts import Alert, AlertRule
from memtools.alerts._incidents import (
    MAX_OPEN_INCIDENTS,
    OTHER,
    IncidentTracker,
    RunAction,
    SendAlert,
    is_observed,
    observations,
)
from memtools.events import (
    BudgetOverrun,
    CleanupEnded,
    Event,
    HighUsage,
    LevelChanged,
    MemorySampled,
    ReclaimIneffective,
    TaskAbandoned,
)
from memtools.readings import Level, Reading

MIB = 2**20
NORMAL, WARNING, CRITICAL = Level


class Stage:
    """A board with a scripted clock."""

    def __init__(self, *rules: AlertRule, cooldown_s: float = 900) -> None:
        self.now = 0.0
        self.board = IncidentTracker(rules, cooldown_s=cooldown_s, source="here", token="t", wall=lambda: 1e9)

    def hear(self, event: Event, after: float = 1.0) -> list[str]:
        """Hear of a fact after a pause; return what was decided."""
        self.now += after
        decisions = self.board.resolve_stale(self.now)
        for signal in observations(event):
            decisions += self.board.observe(signal, self.now)
        return [shown(decision) for decision in decisions]

    def wait(self, seconds: float) -> list[str]:
        """Let time pass; return what was decided."""
        self.now += seconds
        return [shown(decision) for decision in self.board.resolve_stale(self.now)]


def shown(decision: SendAlert | RunAction) -> str:
    alert = decision.alert
    if isinstance(decision, RunAction):
        return f"run {decision.rule.action_name} {alert.level.name.lower()}"
    return f"{decision.recipient.name} {alert.kind} {alert.level.name.lower()}"


def changed(after: Level) -> LevelChanged:
    return LevelChanged(NORMAL, after, Reading(900 * MIB, 1000 * MIB, 0.0), 800 * MIB)


def read(used: int, level: Level = NORMAL, at: float = 0.0, limit: int | None = 1000) -> MemorySampled:
    return MemorySampled(Reading(used * MIB, None if limit is None else limit * MIB, at), level)


def overrun(name: str) -> BudgetOverrun:
    return BudgetOverrun(name, "call", 2 * MIB, MIB, "peak", in_flight=False)


def test_each_channel_hears_of_the_levels_that_its_rules_name() -> None:
    stage = Stage(AlertRule("warning", notify="slack"), AlertRule("critical", notify=("email", "slack")))

    assert stage.hear(changed(WARNING)) == ["slack opened warning"]
    assert stage.hear(changed(CRITICAL)) == ["slack escalated critical", "email opened critical"]
    assert stage.hear(changed(WARNING)) == ["email resolved critical"]
    assert stage.hear(changed(NORMAL)) == ["slack resolved critical"]
    assert stage.board.open_incidents == 0


def test_a_leap_to_critical_is_told_once_per_channel() -> None:
    stage = Stage(AlertRule("warning", notify="slack"), AlertRule("critical", notify=("email", "slack")))

    assert stage.hear(changed(CRITICAL)) == ["slack opened critical", "email opened critical"]


def test_the_name_of_an_incident_is_the_same_for_all_its_messages_and_new_for_the_next() -> None:
    stage = Stage(AlertRule("warning", notify=("slack", "email")))
    alerts: list[Alert] = []
    for level in (WARNING, NORMAL, WARNING):
        for signal in observations(changed(level)):
            alerts += [decision.alert for decision in stage.board.observe(signal, 0.0)]

    assert [(alert.incident, alert.number) for alert in alerts] == [
        ("t-1", 1), ("t-1", 1), ("t-1", 2), ("t-1", 2), ("t-2", 1), ("t-2", 1),
    ]  # fmt: skip


def test_an_action_runs_when_its_rule_begins_to_hold_and_after_each_cooldown_while_it_holds() -> None:
    stage = Stage(AlertRule("critical", action="immediate_cleanup"))

    told = [stage.hear(read(900, CRITICAL), after=300) for _ in range(5)] + [stage.hear(changed(NORMAL))]

    run = ["run immediate_cleanup critical"]
    assert told == [run, [], [], run, [], []]


def test_cleaning_up_is_no_answer_to_a_budget() -> None:
    stage = Stage(AlertRule("warning", action="immediate_cleanup", notify="slack"))

    assert stage.hear(overrun("report")) == ["slack opened warning"]
    assert stage.hear(changed(WARNING)) == ["run immediate_cleanup warning", "slack opened warning"]


def test_the_monitor_repeats_itself_by_its_readings() -> None:
    stage = Stage(AlertRule("warning", notify="slack"))

    told = [stage.hear(read(900, WARNING), after=5.0) for _ in range(181)]

    assert told[0] == ["slack opened warning"]
    assert told[180] == ["slack repeated warning"]
    assert not any(told[1:180])


def test_a_threshold_of_its_own_is_entered_at_once_and_left_five_points_below_after_a_dwell() -> None:
    stage = Stage(AlertRule("critical", "90%", notify="slack"))

    assert stage.hear(read(899, CRITICAL, at=0)) == []  # the level is the monitor's, the threshold the rule's
    assert stage.hear(read(900, NORMAL, at=1)) == ["slack opened critical"]
    assert stage.hear(read(851, NORMAL, at=20)) == []
    assert stage.hear(read(849, NORMAL, at=21)) == ["slack resolved critical"]
    assert stage.hear(read(950, NORMAL, at=22)) == ["slack opened critical"]
    assert stage.hear(read(100, NORMAL, at=31)) == []
    assert stage.hear(read(100, NORMAL, at=32)) == ["slack resolved critical"]


def test_a_threshold_in_bytes_needs_no_limit_and_a_share_holds_never_without_one() -> None:
    stage = Stage(AlertRule("warning", "100 MiB", notify="size"), AlertRule("warning", "10%", notify="share"))

    assert stage.hear(read(100, limit=None)) == ["size opened warning"]


@given(st.lists(st.integers(860, 940), max_size=300))
def test_noise_around_a_threshold_is_told_at_most_once(noise: list[int]) -> None:
    stage = Stage(AlertRule("warning", "90%", notify="slack"))

    told = [word for at, used in enumerate(noise) for word in stage.hear(read(used, at=at)) if "repeated" not in word]

    assert told in ([], ["slack opened warning"])


@given(st.lists(st.integers(0, 2000), max_size=200), st.sampled_from(["90%", "5 MiB", "1 MiB", "0%", 1]))
def test_a_threshold_changes_its_mind_at_most_once_in_its_dwell(used: list[int], threshold: str | int) -> None:
    stage = Stage(AlertRule("warning", threshold, notify="slack"))

    opened = [at for at, one in enumerate(used) if "slack opened warning" in stage.hear(read(one, at=at))]

    assert all(later - earlier >= 10 for earlier, later in pairwise(opened))


def test_a_clean_up_in_vain_is_critical_until_memory_is_back_to_normal() -> None:
    stage = Stage(AlertRule("critical", notify="slack"))
    event = ReclaimIneffective(CRITICAL, 900 * MIB, 800 * MIB, (("report", 500 * MIB),))

    assert stage.hear(event) == ["slack opened critical"]
    assert stage.hear(event) == []
    assert stage.hear(changed(WARNING)) == []
    assert stage.hear(changed(NORMAL)) == ["slack resolved critical"]


def test_what_merely_happened_is_over_after_a_cooldown_of_silence() -> None:
    stage = Stage(AlertRule("warning", notify="slack"))

    assert stage.hear(overrun("report")) == ["slack opened warning"]
    assert stage.hear(overrun("report"), after=800) == []
    assert stage.wait(899) == []
    assert stage.board.next_expiry() == pytest.approx(stage.now + 1)
    assert stage.wait(1) == ["slack resolved warning"]
    assert stage.hear(overrun("report")) == ["slack opened warning"]


def test_what_lasts_is_not_over_by_silence() -> None:
    stage = Stage(AlertRule("warning", notify="slack"))
    stage.hear(changed(WARNING))

    assert stage.wait(10**6) == []
    assert stage.board.next_expiry() is None


def test_owners_and_tasks_have_incidents_of_their_own() -> None:
    stage = Stage(AlertRule("warning", notify="slack"))
    told = [stage.hear(event) for event in (overrun("a"), overrun("b"), TaskAbandoned("a", "b", 1.0), overrun("a"))]

    assert told == [["slack opened warning"]] * 3 + [[]]
    assert stage.board.open_incidents == 3


def test_a_rule_hears_only_what_it_is_about() -> None:
    stage = Stage(AlertRule("warning", notify="slack", categories="task"))

    assert stage.hear(overrun("a")) + stage.hear(changed(CRITICAL)) == []
    assert stage.hear(TaskAbandoned("scope", "task", 1.0)) == ["slack opened warning"]


def test_thousands_of_names_are_at_most_a_hundred_incidents() -> None:
    stage = Stage(AlertRule("warning", notify="slack"))

    told = [word for number in range(5000) for word in stage.hear(overrun(f"/user/{number}"), after=0)]

    assert stage.board.open_incidents == MAX_OPEN_INCIDENTS + 1
    assert len(told) == MAX_OPEN_INCIDENTS + 1
    assert OTHER == "<other>"


def test_facts_that_alerts_are_not_about_are_not_heard() -> None:
    silent: Sequence[Event] = (
        HighUsage("a", "call", 2, 1, ()),
        CleanupEnded(WARNING, 2, 1, (), 0.1),
    )

    assert [is_observed(event) for event in silent] == [False, False]
    assert [observations(event) for event in silent] == [(), ()]
