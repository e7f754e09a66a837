"""What is open now: facts go in, decisions come out.

Covers: which rules a fact concerns, one life per incident and receiver, incidents that end by silence, the bound on how
many there are.
Leaves to others: the life itself (`_life`), carrying out (`_outbox`, `_actions`), clocks and threads (`_alerts`).

Threads: one at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias

from memtools._records import record
from memtools.alerts._message import Alert, AlertKind, largest_in_words, plain
from memtools.alerts._rules import About, AlertRule, Target
from memtools.events import BudgetOverrun, Event, LevelChanged, MemorySampled, ReclaimIneffective, TaskAbandoned
from memtools.readings import Level, Reading
from memtools.units import format_size

# The life of an alert: it opens, escalates, repeats after a cooldown, resolves.
#
# A state machine without a clock: it is told how serious things are, and when. It speaks at edges only.
# Leaves to others: what makes things serious (`_board`), what is done then (`_outbox`, `_actions`).
#
#     closed --level--> OPENED --higher level--> ESCALATED
#                         |  `--the same or lower, after the cooldown--> REPEATED, with the count of what was swallowed
#                         `--normal--> RESOLVED


@record
class Step:
    """What is to be told now.

    Attributes:
        kind: where in its life the alert stands.
        level: how serious it is; of a resolved one, what was told last.
        swallowed: how often it was felt since the last step, and not told.
        number: 1 for the first step of a life, and so on.
    """

    kind: AlertKind
    level: Level
    swallowed: int
    number: int


class Life:
    """One alert for one receiver.

    Args:
        cooldown_s: how long to swallow what is no news, in seconds.
    """

    __slots__ = ("_cooldown_s", "_number", "_swallowed", "_told", "_told_at")

    def __init__(self, cooldown_s: float) -> None:
        self._cooldown_s = cooldown_s
        self._told = Level.NORMAL
        self._told_at = 0.0
        self._swallowed = 0
        self._number = 0

    @property
    def is_open(self) -> bool:
        """Whether it was told and has not been resolved."""
        return self._told is not Level.NORMAL

    def feel(self, level: Level, at: float) -> Step | None:
        """Take how serious things are at `at` (seconds, never backwards); return what is to be told, if anything."""
        if level is Level.NORMAL:
            return self._close() if self.is_open else None
        if not self.is_open:
            return self._tell(AlertKind.OPENED, level, at)
        if level > self._told:
            return self._tell(AlertKind.ESCALATED, level, at)
        if at - self._told_at >= self._cooldown_s:
            return self._tell(AlertKind.REPEATED, level, at)

        self._swallowed += 1
        return None

    def _tell(self, kind: AlertKind, level: Level, at: float) -> Step:
        self._number += 1
        step = Step(kind, level, self._swallowed, self._number)
        self._told, self._told_at, self._swallowed = level, at, 0
        return step

    def _close(self) -> Step:
        step = Step(AlertKind.RESOLVED, self._told, self._swallowed, self._number + 1)
        self._told, self._swallowed, self._number = Level.NORMAL, 0, 0
        return step


# What a fact means for alerts: about what it is, how serious, in which words.
#
# Leaves to others: which rules it concerns (`_board`).
#
# Most facts are no news, so their words are put together only when they are told.

# A summary in one line, and more as (label, text).
Words: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

_HEARD: Final = frozenset({LevelChanged, MemorySampled, ReclaimIneffective, BudgetOverrun, TaskAbandoned})


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


def has_listeners(event: Event) -> bool:
    """Return whether alerts are about this kind of fact."""
    return type(event) in _HEARD


def signals_of(event: Event) -> tuple[Signal, ...]:
    """Return what `event` means; nothing for facts that alerts are not about."""
    match event:
        case MemorySampled():
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


# Whether memory is above a threshold, without changing its mind at every reading.
#
# Leaves to others: the monitor's own levels, which have a hysteresis of their own (`memtools.monitor`).
#
# The band and the dwell are the monitor's: it is left 5 points (of the limit) below the entry, where there is a limit,
# else 5 % of the threshold below it, and not before 10 s.

_BAND: Final = 0.05
_DWELL_S: Final = 10.0


class ThresholdEdge:
    """One threshold, entered at once and left late."""

    __slots__ = ("_entered_at", "is_above")

    def __init__(self) -> None:
        self.is_above = False
        self._entered_at = 0.0

    def judge(self, reading: Reading, entry_bytes: int | None) -> bool:
        """Take a reading, and the used bytes at which the threshold is entered now; return whether we are above it.

        An entry of None, which cannot be said under an unknown limit, is never entered.
        """
        if entry_bytes is None:
            self.is_above = False
        elif not self.is_above:
            if reading.used_bytes >= entry_bytes:
                self.is_above, self._entered_at = True, reading.at
        elif reading.used_bytes < exit_bytes(entry_bytes, reading.limit_bytes):
            self.is_above = reading.at - self._entered_at < _DWELL_S
        return self.is_above


def exit_bytes(entry_bytes: int, limit_bytes: int | None) -> int:
    """Return the used bytes below which a threshold is left."""
    band = int(_BAND * (limit_bytes if limit_bytes and limit_bytes >= entry_bytes else entry_bytes))
    # A threshold within the lowest 5 points would never be left.
    return entry_bytes - band if band < entry_bytes else max(entry_bytes // 2, 1)


OPEN_AT_MOST: Final = 100  # incidents of one kind; as label values of metrics
OTHER: Final = "<other>"


@record
class Notify:
    """Have the channel behind `target` deliver `alert`."""

    target: Target
    alert: Alert


@record
class Act:
    """Have the action of `rule` run."""

    rule: AlertRule
    alert: Alert


Decision: TypeAlias = Notify | Act
Receiver: TypeAlias = Target | AlertRule  # a channel that is told, or a rule whose action is run


class Board:
    """The incidents of one process.

    Args:
        rules: the table.
        cooldown_s: how long a receiver is spared what is no news; and the silence after which what merely happened
            counts as over.
        source: who we are, in words.
        token: begins the name of every incident; another one in each process.
        wall: seconds since the epoch.
    """

    def __init__(
        self, rules: Sequence[AlertRule], *, cooldown_s: float, source: str, token: str, wall: Callable[[], float]
    ) -> None:
        self._cooldown_s = cooldown_s
        self._source = source
        self._token = token
        self._wall = wall
        self._rules = tuple(rules)
        self._edges = {rule: ThresholdEdge() for rule in rules if rule.is_thresholded}
        self._receivers = tuple(_receivers(rules))
        self._open: dict[tuple[About, str], _Incident] = {}
        self._opened = 0

    @property
    def open_incidents(self) -> int:
        """How many incidents are open."""
        return len(self._open)

    def feel(self, signal: Signal, now: float) -> list[Decision]:
        """Take a fact at `now`, in seconds that never go back; return what is to be done."""
        key = self._key(signal)
        incident = self._open.get(key)
        if incident is None and signal.level is Level.NORMAL and signal.reading is None:
            return []
        holding = [rule for rule in self._rules if self._holds(rule, signal)]
        if incident is None and not holding:
            return []

        if incident is None:
            self._opened += 1
            incident = self._open[key] = _Incident(f"{self._token}-{self._opened}", self._cooldown_s)
        incident.last, incident.felt_at = signal, now
        decisions = self._tell(incident, signal, _levels(holding), now)
        if not incident.is_open:
            del self._open[key]
        return decisions

    def expire(self, now: float) -> list[Decision]:
        """Resolve what merely happened and has not been seen again for a cooldown."""
        silent = [
            (key, incident)
            for key, incident in self._open.items()
            if not incident.last.lasts and now - incident.felt_at >= self._cooldown_s
        ]
        decisions: list[Decision] = []
        for key, incident in silent:
            del self._open[key]
            last = incident.last
            over = Signal(last.about, last.name, Level.NORMAL, False, partial(_silent, self._cooldown_s, last))
            decisions += self._tell(incident, over, {}, now)
        return decisions

    def next_expiry(self) -> float | None:
        """Return when `expire` may next have something to do."""
        felt = [incident.felt_at for incident in self._open.values() if not incident.last.lasts]
        return min(felt) + self._cooldown_s if felt else None

    def _holds(self, rule: AlertRule, signal: Signal) -> bool:
        if signal.about not in rule.categories:
            return False
        edge = self._edges.get(rule)
        if edge is None:
            return signal.level >= rule.level
        if signal.reading is None:
            return False
        return edge.judge(signal.reading, rule.entry_bytes(signal.reading.limit_bytes))

    def _key(self, signal: Signal) -> tuple[About, str]:
        key = signal.about, signal.name
        if key in self._open or not signal.name:
            return key
        alike = sum(about == signal.about for about, _ in self._open)
        return key if alike < OPEN_AT_MOST else (signal.about, OTHER)

    def _tell(self, incident: "_Incident", signal: Signal, levels: dict[Receiver, Level], now: float) -> list[Decision]:
        decisions: list[Decision] = []
        for receiver in self._receivers:
            step = incident.life(receiver).feel(levels.get(receiver, Level.NORMAL), now)
            if step is None:
                continue
            alert = self._alert(incident, signal, step)
            if isinstance(receiver, Target):
                decisions.append(Notify(receiver, alert))
            elif receiver in levels and receiver.acts_on(signal.about):
                decisions.append(Act(receiver, alert))
        return decisions

    def _alert(self, incident: "_Incident", signal: Signal, step: Step) -> Alert:
        summary, details = signal.words()
        return Alert(
            kind=step.kind,
            level=step.level,
            category=signal.about,
            name=signal.name,
            summary=summary,
            details=details,
            suppressed=step.swallowed,
            dropped=0,
            incident=incident.name,
            number=step.number,
            source=self._source,
            at=self._wall(),
        )


class _Incident:
    """Something that is the matter, and what each receiver knows of it."""

    __slots__ = ("_cooldown_s", "_lives", "felt_at", "last", "name")

    last: Signal
    felt_at: float

    def __init__(self, name: str, cooldown_s: float) -> None:
        self.name = name
        self._cooldown_s = cooldown_s
        self._lives: dict[Receiver, Life] = {}

    @property
    def is_open(self) -> bool:
        return any(life.is_open for life in self._lives.values())

    def life(self, receiver: Receiver) -> Life:
        if receiver not in self._lives:
            self._lives[receiver] = Life(self._cooldown_s)
        return self._lives[receiver]


def _silent(seconds: float, last: Signal) -> Words:
    summary, details = last.words()
    return f"not seen again for {seconds:.0f} s: {summary}", details


def _receivers(rules: Iterable[AlertRule]) -> dict[Receiver, None]:
    found: dict[Receiver, None] = {}
    for rule in rules:
        if rule.has_action:
            found[rule] = None  # before its channels: what helps comes before what tells
        for target in rule.recipients:
            found[target] = None
    return found


def _levels(holding: Iterable[AlertRule]) -> dict[Receiver, Level]:
    levels: dict[Receiver, Level] = {}
    for rule in holding:
        receivers: tuple[Receiver, ...] = (rule, *rule.recipients)
        for receiver in receivers:
            levels[receiver] = max(levels.get(receiver, Level.NORMAL), rule.level)
    return levels
