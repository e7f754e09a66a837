"""Types of units, errors and events; checked by mypy and pyright, never run."""

from typing import assert_type

from memtools.errors import BudgetExceeded, ConfigError, MemtoolsError, ScopeClosed
from memtools.events import (
    BlackBoxFound,
    BudgetOverrun,
    CleanupEnded,
    DispatchStatistics,
    Event,
    HighUsage,
    LevelChanged,
    LimitForecast,
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


def parsers_return_plain_numbers(given: object) -> None:
    assert_type(parse_size(given), int)
    assert_type(parse_size("80%", percent_of=lambda: None), int)
    assert_type(parse_count(given, name="maxlen"), int)
    assert_type(parse_seconds(given, name="grace"), float)
    assert_type(parse_choice(given, ("join", "cancel"), name="on_exit"), str)
    assert_type(format_size(1), str)
    assert_type(format_size(0.5), str)


def listener_may_return_any_value(events: list[Event]) -> None:
    def nothing(event: Event) -> None: ...
    def something(event: Event) -> int:
        return hash(event)

    assert_type(subscribe(nothing), Subscription)
    assert_type(subscribe(something), Subscription)
    with subscribe(events.append) as subscription:
        assert_type(subscription, Subscription)


def listener_without_an_argument_is_an_error() -> None:
    def without_argument() -> None: ...

    subscribe(without_argument)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the error under test


def emitting_another_object_is_an_error() -> None:
    emit("nightly")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the error under test


def events_are_distinguished_by_their_class(event: Event) -> str:
    match event:
        case BlackBoxFound():
            return event.verdict
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
        case LimitForecast():
            assert_type(event.seconds_to_limit, float | None)
            return event.reason
        case TaskAbandoned():  # the last class: type checkers report a match that is not exhaustive
            return event.task


def statistics_of_the_listeners() -> None:
    assert_type(statistics(), DispatchStatistics)
    assert_type(statistics().skipped, int)


def errors_have_typed_fields(error: MemtoolsError) -> None:
    if isinstance(error, BudgetExceeded):
        assert_type(error.used_bytes, int)
        assert_type(error.budget_bytes, int)
    if isinstance(error, ConfigError):
        assert_type(error.value, object)
    if isinstance(error, ScopeClosed):
        assert_type(error.scope, str)
