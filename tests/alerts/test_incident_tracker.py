"""The incident tracker: which rules an event matches, which channels are notified, how an incident ends."""

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
    BlackBoxFound,
    BudgetOverrun,
    CleanupEnded,
    Event,
    HighUsage,
    LevelChanged,
    MemorySampled,
    ReclaimIneffective,
    TaskAbandoned,
)
from memtools.readings import Headroom, Level, LimitSource, Reading

MIB = 2**20
NORMAL, WARNING, CRITICAL = Level


class ScriptedTracker:
    """An incident tracker with a scripted clock."""

    def __init__(self, *rules: AlertRule, cooldown_s: float = 900) -> None:
        self.now = 0.0
        self.tracker = IncidentTracker(rules, cooldown_s=cooldown_s, source="here", token="t", wall=lambda: 1e9)

    def observe(self, event: Event, after: float = 1.0) -> list[str]:
        """Observe an event after a pause; return the decisions."""
        self.now += after
        decisions = self.tracker.resolve_stale(self.now)
        for observation in observations(event):
            decisions += self.tracker.observe(observation, self.now)
        return [shown(decision) for decision in decisions]

    def wait(self, seconds: float) -> list[str]:
        """Let time pass; return the decisions."""
        self.now += seconds
        return [shown(decision) for decision in self.tracker.resolve_stale(self.now)]


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


def test_channel_is_notified_of_the_levels_in_its_rules() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"), AlertRule("critical", notify=("email", "slack")))

    assert scripted.observe(changed(WARNING)) == ["slack opened warning"]
    assert scripted.observe(changed(CRITICAL)) == ["slack escalated critical", "email opened critical"]
    assert scripted.observe(changed(WARNING)) == ["email resolved critical"]
    assert scripted.observe(changed(NORMAL)) == ["slack resolved critical"]
    assert scripted.tracker.open_incidents == 0


def test_jump_to_critical_is_sent_once_per_channel() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"), AlertRule("critical", notify=("email", "slack")))

    assert scripted.observe(changed(CRITICAL)) == ["slack opened critical", "email opened critical"]


def test_incident_name_is_shared_by_its_messages_only() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify=("slack", "email")))
    alerts: list[Alert] = []
    for level in (WARNING, NORMAL, WARNING):
        for observation in observations(changed(level)):
            alerts += [decision.alert for decision in scripted.tracker.observe(observation, 0.0)]

    assert [(alert.incident, alert.number) for alert in alerts] == [
        ("t-1", 1), ("t-1", 1), ("t-1", 2), ("t-1", 2), ("t-2", 1), ("t-2", 1),
    ]  # fmt: skip


def test_action_runs_at_once_and_after_each_cooldown() -> None:
    scripted = ScriptedTracker(AlertRule("critical", action="immediate_cleanup"))

    decisions = [scripted.observe(read(900, CRITICAL), after=300) for _ in range(5)] + [
        scripted.observe(changed(NORMAL))
    ]

    run = ["run immediate_cleanup critical"]
    assert decisions == [run, [], [], run, [], []]


def test_immediate_cleanup_does_not_run_for_budgets() -> None:
    scripted = ScriptedTracker(AlertRule("warning", action="immediate_cleanup", notify="slack"))

    assert scripted.observe(overrun("report")) == ["slack opened warning"]
    assert scripted.observe(changed(WARNING)) == ["run immediate_cleanup warning", "slack opened warning"]


def test_repeated_readings_repeat_the_alert_after_the_cooldown() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"))

    decisions = [scripted.observe(read(900, WARNING), after=5.0) for _ in range(181)]

    assert decisions[0] == ["slack opened warning"]
    assert decisions[180] == ["slack repeated warning"]
    assert not any(decisions[1:180])


def test_threshold_is_entered_at_once_and_left_with_hysteresis() -> None:
    scripted = ScriptedTracker(AlertRule("critical", "90%", notify="slack"))

    assert (
        scripted.observe(read(899, CRITICAL, at=0)) == []
    )  # the level is that of the monitor, the threshold that of the rule
    assert scripted.observe(read(900, NORMAL, at=1)) == ["slack opened critical"]
    assert scripted.observe(read(851, NORMAL, at=20)) == []
    assert scripted.observe(read(849, NORMAL, at=21)) == ["slack resolved critical"]
    assert scripted.observe(read(950, NORMAL, at=22)) == ["slack opened critical"]
    assert scripted.observe(read(100, NORMAL, at=31)) == []
    assert scripted.observe(read(100, NORMAL, at=32)) == ["slack resolved critical"]


def test_threshold_as_share_never_holds_without_a_limit() -> None:
    scripted = ScriptedTracker(
        AlertRule("warning", "100 MiB", notify="size"), AlertRule("warning", "10%", notify="share")
    )

    assert scripted.observe(read(100, limit=None)) == ["size opened warning"]


@given(st.lists(st.integers(860, 940), max_size=300))
def test_noise_around_a_threshold_is_sent_at_most_once(noise: list[int]) -> None:
    scripted = ScriptedTracker(AlertRule("warning", "90%", notify="slack"))

    decisions = [
        word for at, used in enumerate(noise) for word in scripted.observe(read(used, at=at)) if "repeated" not in word
    ]

    assert decisions in ([], ["slack opened warning"])


@given(st.lists(st.integers(0, 2000), max_size=200), st.sampled_from(["90%", "5 MiB", "1 MiB", "0%", 1]))
def test_threshold_changes_at_most_once_in_its_dwell_time(used: list[int], threshold: str | int) -> None:
    scripted = ScriptedTracker(AlertRule("warning", threshold, notify="slack"))

    opened = [
        at for at, used_mib in enumerate(used) if "slack opened warning" in scripted.observe(read(used_mib, at=at))
    ]

    assert all(later - earlier >= 10 for earlier, later in pairwise(opened))


def test_ineffective_reclaim_lasts_until_memory_is_normal() -> None:
    scripted = ScriptedTracker(AlertRule("critical", notify="slack"))
    event = ReclaimIneffective(CRITICAL, 900 * MIB, 800 * MIB, (("report", 500 * MIB),))

    assert scripted.observe(event) == ["slack opened critical"]
    assert scripted.observe(event) == []
    assert scripted.observe(changed(WARNING)) == []
    assert scripted.observe(changed(NORMAL)) == ["slack resolved critical"]


def test_one_off_event_is_resolved_after_a_cooldown() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"))

    assert scripted.observe(overrun("report")) == ["slack opened warning"]
    assert scripted.observe(overrun("report"), after=800) == []
    assert scripted.wait(899) == []
    assert scripted.tracker.next_expiry() == pytest.approx(scripted.now + 1)
    assert scripted.wait(1) == ["slack resolved warning"]
    assert scripted.observe(overrun("report")) == ["slack opened warning"]


def test_state_is_not_resolved_by_time() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"))
    scripted.observe(changed(WARNING))

    assert scripted.wait(10**6) == []
    assert scripted.tracker.next_expiry() is None


def test_owners_and_tasks_have_separate_incidents() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"))
    decisions = [
        scripted.observe(event) for event in (overrun("a"), overrun("b"), TaskAbandoned("a", "b", 1.0), overrun("a"))
    ]

    assert decisions == [["slack opened warning"]] * 3 + [[]]
    assert scripted.tracker.open_incidents == 3


@pytest.mark.parametrize(("verdict", "level"), [("oom-killed", "critical"), ("killed", "warning")])
def test_death_of_the_last_run_is_told_once(verdict: str, level: str) -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"))
    found = BlackBoxFound("/dev/shm/x.1.1.box", verdict, "process 1 was killed; POST /import\x1b held 1.0 GiB")

    assert scripted.observe(found) == [f"slack opened {level}"]
    summary, details = observations(found)[0].describe()
    assert summary == "an earlier run has left no end: process 1 was killed; POST /import\\x1b held 1.0 GiB"
    assert details == (("black box", "/dev/shm/x.1.1.box"),)


def test_rule_gets_only_its_categories() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack", categories="task"))

    assert scripted.observe(overrun("a")) + scripted.observe(changed(CRITICAL)) == []
    assert scripted.observe(TaskAbandoned("scope", "task", 1.0)) == ["slack opened warning"]


def test_thousands_of_names_open_at_most_a_hundred_incidents() -> None:
    scripted = ScriptedTracker(AlertRule("warning", notify="slack"))

    decisions = [word for number in range(5000) for word in scripted.observe(overrun(f"/user/{number}"), after=0)]

    assert scripted.tracker.open_incidents == MAX_OPEN_INCIDENTS + 1
    assert len(decisions) == MAX_OPEN_INCIDENTS + 1
    assert OTHER == "<other>"


def test_events_without_a_category_are_ignored() -> None:
    silent: Sequence[Event] = (
        HighUsage("a", "call", 2, 1, ()),
        CleanupEnded(WARNING, 2, 1, (), 0.1),
    )

    assert [is_observed(event) for event in silent] == [False, False]
    assert [observations(event) for event in silent] == [(), ()]


class TestTwoMonitors:
    def sampled(self, monitor: str, level: Level, used_mib: int) -> MemorySampled:
        return MemorySampled(Reading(used_mib * MIB, 1024 * MIB, 0.0), level, monitor)

    def test_normal_memory_of_one_does_not_resolve_the_other(self) -> None:
        tracker = ScriptedTracker(AlertRule("warning", notify="people"))
        tracker.observe(self.sampled("own", CRITICAL, 950))

        decisions = [tracker.observe(self.sampled("shared", NORMAL, 100)) for _ in range(3)]

        assert decisions == [[], [], []]
        assert tracker.tracker.open_incidents == 1

    def test_each_rule_with_a_threshold_follows_each_monitor(self) -> None:
        tracker = ScriptedTracker(AlertRule("critical", "900 MiB", notify="people"))
        tracker.observe(self.sampled("own", NORMAL, 950))

        decisions = [tracker.observe(self.sampled("shared", NORMAL, 100), after=20.0) for _ in range(3)]

        assert decisions == [[], [], []]
        assert tracker.tracker.open_incidents == 1

    def test_alert_names_the_monitor_where_there_are_two(self) -> None:
        tracker = IncidentTracker(
            [AlertRule("warning", notify="people")], cooldown_s=1, source="here", token="t", wall=lambda: 1e9
        )
        found = []
        for monitor in ("own", "shared"):
            for observation in observations(self.sampled(monitor, WARNING, 900)):
                found += tracker.observe(observation, 1.0)

        assert [dict(decision.alert.details).get("monitor") for decision in found] == [None, "shared"]

    def test_names_without_end_share_the_incidents(self) -> None:
        tracker = ScriptedTracker(AlertRule("warning", notify="people"))

        for number in range(3 * MAX_OPEN_INCIDENTS):
            tracker.observe(self.sampled(f"monitor {number}", WARNING, 900))

        assert tracker.tracker.open_incidents <= MAX_OPEN_INCIDENTS + 1


class TestHeadroomDecides:
    ROOM = Headroom(8 * MIB, LimitSource.CGROUP2_MAX, (), None)
    READING = Reading(200 * MIB, 2048 * MIB, 0.0)

    @pytest.mark.parametrize(
        "event",
        [
            LevelChanged(NORMAL, CRITICAL, READING, 300 * MIB, "own", ROOM, 102 * MIB),
            MemorySampled(READING, CRITICAL, "own", ROOM),
            ReclaimIneffective(CRITICAL, 200 * MIB, 80 * MIB, (), "own", ROOM, 128 * MIB),
        ],
    )
    def test_text_begins_with_what_is_left(self, event: Event) -> None:
        (observation,) = observations(event)

        summary, _ = observation.describe()

        assert "8.0 MiB left (cgroup2 memory.max)" in summary
        assert summary.index("8.0 MiB") < summary.index("200.0 MiB")

    def test_change_names_the_threshold_as_headroom(self) -> None:
        (observation,) = observations(LevelChanged(NORMAL, CRITICAL, self.READING, 1, "own", self.ROOM, 102 * MIB))

        assert observation.describe()[1] == (("change", "normal to critical, threshold 102.0 MiB free"),)


class TestSeverity:
    """A rule from WARNING on, which is often the only one."""

    def test_channel_of_a_warning_rule_is_told_of_critical_at_once(self) -> None:
        scripted = ScriptedTracker(AlertRule("warning", notify="slack"))

        told = [scripted.observe(changed(level)) for level in (WARNING, CRITICAL, WARNING, CRITICAL, NORMAL)]

        assert told == [["slack opened warning"], ["slack escalated critical"], [], [], ["slack resolved critical"]]

    def test_sample_at_critical_escalates_as_well(self) -> None:
        scripted = ScriptedTracker(AlertRule("warning", notify="slack"))

        assert scripted.observe(read(700, WARNING)) == ["slack opened warning"]
        assert scripted.observe(read(900, CRITICAL)) == ["slack escalated critical"]

    def test_clean_up_that_fails_at_critical_escalates(self) -> None:
        scripted = ScriptedTracker(AlertRule("warning", notify="slack"))

        assert scripted.observe(ReclaimIneffective(WARNING, 800, 700, ())) == ["slack opened warning"]
        assert scripted.observe(ReclaimIneffective(CRITICAL, 900, 800, ())) == ["slack escalated critical"]

    def test_action_of_a_warning_rule_runs_once(self) -> None:
        scripted = ScriptedTracker(AlertRule("warning", action="immediate_cleanup"))

        told = [scripted.observe(changed(level)) for level in (WARNING, CRITICAL)]

        assert told == [["run immediate_cleanup warning"], []]

    def test_threshold_of_a_rule_decides_its_severity(self) -> None:
        scripted = ScriptedTracker(AlertRule("warning", threshold="50%", notify="slack"))

        assert scripted.observe(read(900, CRITICAL)) == ["slack opened warning"]


def test_change_tells_threshold_rate_owners_and_what_grows() -> None:
    event = LevelChanged(
        NORMAL,
        WARNING,
        Reading(900 * MIB, 24_000 * MIB, 0.0),
        800 * MIB,
        rate=-0.5 * MIB,
        largest=(("/search", 60 * MIB),),
        growing=(("/orders", 2 * MIB),),
    )
    (observation,) = observations(event)

    summary, details = observation.describe()

    assert summary == "memory is at 900.0 MiB of 23.4 GiB (4%)"
    assert details == (
        ("change", "normal to warning, threshold 800.0 MiB"),
        ("falling", "by 30.0 MiB a minute"),
        ("largest owners", "/search 60.0 MiB"),
        ("behind per call", "/orders leaves 2.0 MiB"),
    )


def test_every_message_ends_with_the_program() -> None:
    context = (("pod", "default/shop"), ("command", "python service.py"))
    tracker = IncidentTracker(
        [AlertRule("warning", notify="slack")], cooldown_s=1, source="s", token="t", wall=lambda: 1e9, context=context
    )
    (observation,) = observations(changed(WARNING))

    (decision,) = tracker.observe(observation, 0.0)

    assert decision.alert.details[-2:] == context
