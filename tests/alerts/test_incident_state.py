"""States of an incident: transitions are notified, other updates are suppressed and counted."""

from hypothesis import given
from hypothesis import strategies as st

from memtools.alerts._incidents import IncidentState, Transition
from memtools.alerts._message import AlertKind
from memtools.readings import Level

NORMAL, WARNING, CRITICAL = Level
SEQUENCES = st.lists(st.tuples(st.sampled_from(Level), st.floats(0, 400)), max_size=60)


def run(state: IncidentState, updates: list[tuple[Level, float]]) -> list[Transition]:
    """Update with each level after a pause; return the transitions."""
    now, transitions = 0.0, []
    for level, pause in updates:
        now += pause
        transition = state.update(level, now)
        if transition is not None:
            transitions.append(transition)
    return transitions


def test_state_opens_escalates_repeats_and_resolves() -> None:
    updates = [
        (WARNING, 0.0),
        (WARNING, 10),
        (CRITICAL, 10),
        (WARNING, 10),
        (CRITICAL, 10),
        (CRITICAL, 890),
        (NORMAL, 1),
    ]

    transitions = run(IncidentState(900), updates)

    assert transitions == [
        Transition(AlertKind.OPENED, WARNING, 0, 1),
        Transition(AlertKind.ESCALATED, CRITICAL, 1, 2),
        Transition(AlertKind.REPEATED, CRITICAL, 2, 3),
        Transition(AlertKind.RESOLVED, CRITICAL, 0, 4),
    ]


def test_level_that_fell_escalates_again() -> None:
    transitions = run(IncidentState(100), [(CRITICAL, 0), (WARNING, 100), (CRITICAL, 1)])

    assert [transition.kind for transition in transitions] == [
        AlertKind.OPENED,
        AlertKind.REPEATED,
        AlertKind.ESCALATED,
    ]


def test_numbers_start_at_one_after_a_resolution() -> None:
    transitions = run(IncidentState(900), [(WARNING, 0), (NORMAL, 1), (NORMAL, 1), (CRITICAL, 1)])

    assert [(transition.kind, transition.number) for transition in transitions] == [
        (AlertKind.OPENED, 1),
        (AlertKind.RESOLVED, 2),
        (AlertKind.OPENED, 1),
    ]


@given(SEQUENCES)
def test_every_update_is_notified_or_counted(updates: list[tuple[Level, float]]) -> None:
    state = IncidentState(300)

    transitions = run(state, [*updates, (NORMAL, 0)])

    observed = sum(level is not NORMAL for level, _ in updates)
    notified = sum(transition.kind is not AlertKind.RESOLVED for transition in transitions)
    assert notified + sum(transition.suppressed for transition in transitions) == observed
    assert not state.is_open


@given(SEQUENCES)
def test_states_alternate_and_number_their_transitions(updates: list[tuple[Level, float]]) -> None:
    transitions = run(IncidentState(300), updates)

    number = 0
    for transition in transitions:
        assert (transition.kind is AlertKind.OPENED) == (number == 0)
        number += 1
        assert transition.number == number
        number = 0 if transition.kind is AlertKind.RESOLVED else number


@given(SEQUENCES)
def test_only_a_higher_level_is_notified_within_a_cooldown(updates: list[tuple[Level, float]]) -> None:
    state, now = IncidentState(300), 0.0
    last: tuple[Transition, float] | None = None
    for level, pause in updates:
        now += pause
        transition = state.update(level, now)
        if transition is None:
            continue
        if last is not None and transition.kind is AlertKind.REPEATED:
            assert now - last[1] >= 300
        if last is not None and transition.kind is AlertKind.ESCALATED:
            assert transition.level > last[0].level
        last = transition, now
