"""What a type checker sees of units, errors and events. Checked, never run."""

from typing import assert_type

from memtools.errors import BudgetExceeded, ConfigError, MemtoolsError, ScopeClosed
from memtools.events import (
    BudgetOverrun,
    CleanupEnded,
    DispatchStatistics,
    Event,
    HighUsage,
    LevelChanged,
    MemorySampled,
    PressureSignal,
    ReclaimIneffective,
    ScopeEnded,
    Subscription,
    TaskAbandoned,
    emit,
    statistics,
    subscribe,
)
from memtools.readings import Level, Reading
from memtools.units import format_size, parse_choice, parse_count, parse_seconds, parse_size


def sizes_and_counts_come_back_as_plain_numbers(given: object) -> None:
    assert_type(parse_size(given), int)
    assert_type(parse_size("80%", percent_of=lambda: None), int)
    assert_type(parse_count(given, name="maxlen"), int)
    assert_type(parse_seconds(given, name="grace"), float)
    assert_type(parse_choice(given, ("join", "cancel"), name="on_exit"), str)
    assert_type(format_size(1), str)
    assert_type(format_size(0.5), str)


def a_hook_may_return_anything(events: list[Event]) -> None:
    def nothing(event: Event) -> None: ...
    def something(event: Event) -> int:
        return hash(event)

    assert_type(subscribe(nothing), Subscription)
    assert_type(subscribe(something), Subscription)
    with subscribe(events.append) as subscription:
        assert_type(subscription, Subscription)


def a_hook_that_takes_no_event_is_refused() -> None:
    def blind() -> None: ...

    subscribe(blind)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the point of this function


def what_is_no_event_cannot_be_told() -> None:
    emit("nightly")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the point of this function


def events_are_told_apart_by_their_class(event: Event) -> str:
    match event:
        case ScopeEnded():
            assert_type(event.path, tuple[str, ...])
            return event.meter
        case HighUsage():
            assert_type(event.largest, tuple[tuple[str, int], ...])
            return event.name
        case BudgetOverrun():
            assert_type(event.in_flight, bool)
            return event.measure
        case MemorySampled():
            assert_type(event.reading, Reading)
            return str(event.reading)
        case LevelChanged():
            assert_type(event.after, Level)
            return event.after.name
        case CleanupEnded():
            assert_type(event.steps, tuple[tuple[str, int, float], ...])
            return event.level.name
        case ReclaimIneffective():
            return event.level.name
        case PressureSignal():
            return event.source
        case TaskAbandoned():  # the last one: a checker that finds a way past this match complains
            return event.task


def the_hub_tells_how_the_listeners_fared() -> None:
    assert_type(statistics(), DispatchStatistics)
    assert_type(statistics().skipped, int)


def errors_carry_their_numbers(error: MemtoolsError) -> None:
    if isinstance(error, BudgetExceeded):
        assert_type(error.used_bytes, int)
        assert_type(error.budget_bytes, int)
    if isinstance(error, ConfigError):
        assert_type(error.value, object)
    if isinstance(error, ScopeClosed):
        assert_type(error.scope, str)
