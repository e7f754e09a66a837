"""What a fact means for alerts: about what it is, how serious, in which words.

Leaves to others: which rules it concerns (`_board`).
"""

from memtools.alerts._rules import About
from memtools.alerts._wording import largest_in_words, plain
from memtools.events import BudgetOverrun, Event, LevelChanged, ReadingTaken, ReclaimIneffective, TaskAbandoned
from memtools.readings import Level, Reading
from memtools.records import record
from memtools.units import format_size


@record
class Signal:
    """One fact as alerts see it.

    Attributes:
        about: which part of the service it is about.
        name: the owner or task; empty for the whole process.
        level: how serious it is; `NORMAL` where it is over.
        lasts: True for a state that somebody will say the end of; False for what merely happened.
        summary: in one line.
        details: as (label, text).
        reading: the reading that decided, for rules with thresholds of their own.
    """

    about: About
    name: str
    level: Level
    lasts: bool
    summary: str
    details: tuple[tuple[str, str], ...] = ()
    reading: Reading | None = None


def is_heard(event: Event) -> bool:
    """Return whether alerts are about this kind of fact."""
    return isinstance(event, LevelChanged | ReadingTaken | ReclaimIneffective | BudgetOverrun | TaskAbandoned)


def signals_of(event: Event) -> tuple[Signal, ...]:
    """Return what `event` means; nothing for facts that alerts are not about."""
    match event:
        case ReadingTaken(reading, level):
            return _memory(reading, level, ())
        case LevelChanged(before, after, reading, threshold_bytes):
            words = f"{before.name.lower()} to {after.name.lower()}, threshold {format_size(threshold_bytes)}"
            return _memory(reading, after, (("change", words),))
        case ReclaimIneffective():
            return (_reclaim(event),)
        case BudgetOverrun():
            return (_budget(event),)
        case TaskAbandoned():
            return (_task(event),)
        case _:
            return ()


def _memory(reading: Reading, level: Level, details: tuple[tuple[str, str], ...]) -> tuple[Signal, ...]:
    signal = Signal("memory", "", level, True, f"memory is at {reading}", details, reading)
    if level is not Level.NORMAL:
        return (signal,)
    return signal, Signal("reclaim", "", Level.NORMAL, True, f"memory is back to normal: {reading}")


def _reclaim(event: ReclaimIneffective) -> Signal:
    summary = (
        f"every step of the clean-up was taken, and memory is at {format_size(event.used_bytes)}, "
        f"not below {format_size(event.target_bytes)}"
    )
    details = (("largest owners", largest_in_words(event.largest)),) if event.largest else ()
    return Signal("reclaim", "", event.level, True, summary, details)


def _budget(event: BudgetOverrun) -> Signal:
    name = plain(event.name)
    summary = (
        f"{name} ({event.kind}) used {format_size(event.used_bytes)}, "
        f"budget {format_size(event.budget_bytes)} ({event.measure})"
    )
    when = "while it ran" if event.in_flight else "at its end"
    return Signal("budget", name, Level.WARNING, False, summary, (("seen", when),))


def _task(event: TaskAbandoned) -> Signal:
    scope, task = plain(event.scope), plain(event.task)
    summary = f"task {task} of {scope} goes on {event.grace_s:.1f} s after its cancellation"
    return Signal("task", f"{scope}/{task}", Level.WARNING, False, summary)
