"""What a fact means for alerts: about what it is, how serious, in which words.

Leaves to others: which rules it concerns (`_board`).

Most facts are no news, so their words are put together only when they are told.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from memtools.alerts._rules import About
from memtools.alerts._wording import largest_in_words, plain
from memtools.events import BudgetOverrun, Event, LevelChanged, ReadingTaken, ReclaimIneffective, TaskAbandoned
from memtools.readings import Level, Reading
from memtools.records import record
from memtools.units import format_size

# A summary in one line, and more as (label, text).
Words: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

_HEARD: Final = frozenset({LevelChanged, ReadingTaken, ReclaimIneffective, BudgetOverrun, TaskAbandoned})


@record
class Signal:
    """One fact as alerts see it.

    Attributes:
        about: which part of the service it is about.
        name: the owner or task; empty for the whole process.
        level: how serious it is; `NORMAL` where it is over.
        lasts: True for a state that somebody will say the end of; False for what merely happened.
        words: puts it into words.
        reading: the reading that decided, for rules with thresholds of their own.
    """

    about: About
    name: str
    level: Level
    lasts: bool
    words: Callable[[], Words]
    reading: Reading | None = None


def is_heard(event: Event) -> bool:
    """Return whether alerts are about this kind of fact."""
    return type(event) in _HEARD


def signals_of(event: Event) -> tuple[Signal, ...]:
    """Return what `event` means; nothing for facts that alerts are not about."""
    match event:
        case ReadingTaken():
            return _memory(event.reading, event.level, partial(_reading_in_words, event.reading))
        case LevelChanged():
            return _memory(event.reading, event.after, partial(_change_in_words, event))
        case ReclaimIneffective():
            return (Signal("reclaim", "", event.level, True, partial(_reclaim_in_words, event)),)
        case BudgetOverrun():
            return (Signal("budget", plain(event.name), Level.WARNING, False, partial(_budget_in_words, event)),)
        case TaskAbandoned():
            name = f"{plain(event.scope)}/{plain(event.task)}"
            return (Signal("task", name, Level.WARNING, False, partial(_task_in_words, event)),)
        case _:
            return ()


def _memory(reading: Reading, level: Level, words: Callable[[], Words]) -> tuple[Signal, ...]:
    signal = Signal("memory", "", level, True, words, reading)
    if level is not Level.NORMAL:
        return (signal,)
    return signal, Signal("reclaim", "", Level.NORMAL, True, words)


def _reading_in_words(reading: Reading) -> Words:
    return f"memory is at {reading}", ()


def _change_in_words(event: LevelChanged) -> Words:
    levels = f"{event.before.name.lower()} to {event.after.name.lower()}"
    return f"memory is at {event.reading}", (("change", f"{levels}, threshold {format_size(event.threshold_bytes)}"),)


def _reclaim_in_words(event: ReclaimIneffective) -> Words:
    summary = (
        f"every step of the clean-up was taken, and memory is at {format_size(event.used_bytes)}, "
        f"not below {format_size(event.target_bytes)}"
    )
    return summary, (("largest owners", largest_in_words(event.largest)),) if event.largest else ()


def _budget_in_words(event: BudgetOverrun) -> Words:
    used, budget = format_size(event.used_bytes), format_size(event.budget_bytes)
    when = "while it ran" if event.in_flight else "at its end"
    return f"{plain(event.name)} ({event.kind}) used {used}, budget {budget} ({event.measure})", (("seen", when),)


def _task_in_words(event: TaskAbandoned) -> Words:
    return f"task {plain(event.task)} of {plain(event.scope)} goes on {event.grace_s:.1f} s after its cancellation", ()
