"""The life of an alert: edges are told, the rest is swallowed and counted."""

from hypothesis import given
from hypothesis import strategies as st

from memtools.alerts._incidents import IncidentState, Transition
from memtools.alerts._message import AlertKind
from memtools.readings import Level

NORMAL, WARNING, CRITICAL = Level
SEQUENCES = st.lists(st.tuples(st.sampled_from(Level), st.floats(0, 400)), max_size=60)


def live(life: IncidentState, feelings: list[tuple[Level, float]]) -> list[Transition]:
    """Feel each level after a pause; return what was told."""
    now, told = 0.0, []
    for level, pause in feelings:
        now += pause
        step = life.update(level, now)
        if step is not None:
            told.append(step)
    return told


def test_an_alert_opens_escalates_repeats_and_resolves() -> None:
    feelings = [
        (WARNING, 0.0),
        (WARNING, 10),
        (CRITICAL, 10),
        (WARNING, 10),
        (CRITICAL, 10),
        (CRITICAL, 890),
        (NORMAL, 1),
    ]

    told = live(IncidentState(900), feelings)

    assert told == [
        Transition(AlertKind.OPENED, WARNING, 0, 1),
        Transition(AlertKind.ESCALATED, CRITICAL, 1, 2),
        Transition(AlertKind.REPEATED, CRITICAL, 2, 3),
        Transition(AlertKind.RESOLVED, CRITICAL, 0, 4),
    ]


def test_what_was_told_to_be_less_serious_escalates_again() -> None:
    told = live(IncidentState(100), [(CRITICAL, 0), (WARNING, 100), (CRITICAL, 1)])

    assert [step.kind for step in told] == [AlertKind.OPENED, AlertKind.REPEATED, AlertKind.ESCALATED]


def test_a_new_life_begins_at_one() -> None:
    told = live(IncidentState(900), [(WARNING, 0), (NORMAL, 1), (NORMAL, 1), (CRITICAL, 1)])

    assert [(step.kind, step.number) for step in told] == [
        (AlertKind.OPENED, 1),
        (AlertKind.RESOLVED, 2),
        (AlertKind.OPENED, 1),
    ]


@given(SEQUENCES)
def test_nothing_that_was_felt_gets_lost(feelings: list[tuple[Level, float]]) -> None:
    life = IncidentState(300)

    told = live(life, [*feelings, (NORMAL, 0)])

    felt = sum(level is not NORMAL for level, _ in feelings)
    spoken = sum(step.kind is not AlertKind.RESOLVED for step in told)
    assert spoken + sum(step.suppressed for step in told) == felt
    assert not life.is_open


@given(SEQUENCES)
def test_lives_open_and_resolve_in_turn_and_number_their_steps(feelings: list[tuple[Level, float]]) -> None:
    told = live(IncidentState(300), feelings)

    number = 0
    for step in told:
        assert (step.kind is AlertKind.OPENED) == (number == 0)
        number += 1
        assert step.number == number
        number = 0 if step.kind is AlertKind.RESOLVED else number


@given(SEQUENCES)
def test_within_a_cooldown_only_worse_news_is_told(feelings: list[tuple[Level, float]]) -> None:
    life, now = IncidentState(300), 0.0
    last: tuple[Transition, float] | None = None
    for level, pause in feelings:
        now += pause
        step = life.update(level, now)
        if step is None:
            continue
        if last is not None and step.kind is AlertKind.REPEATED:
            assert now - last[1] >= 300
        if last is not None and step.kind is AlertKind.ESCALATED:
            assert step.level > last[0].level
        last = step, now
