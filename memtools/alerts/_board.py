"""What is open now: facts go in, decisions come out.

Covers: which rules a fact concerns, one life per incident and receiver, incidents that end by silence, the bound on how
many there are.
Leaves to others: the life itself (`_life`), carrying out (`_outbox`, `_actions`), clocks and threads (`_alerts`).

Threads: one at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias

from memtools.alerts._alert import Alert
from memtools.alerts._life import Life, Step
from memtools.alerts._rules import About, AlertRule
from memtools.alerts._signals import Signal, Words
from memtools.alerts._targets import Target
from memtools.alerts._threshold_edge import ThresholdEdge
from memtools.readings import Level
from memtools.records import record

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
        if signal.about not in rule.about:
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
            elif receiver in levels and receiver.runs_about(signal.about):
                decisions.append(Act(receiver, alert))
        return decisions

    def _alert(self, incident: "_Incident", signal: Signal, step: Step) -> Alert:
        summary, details = signal.words()
        return Alert(
            kind=step.kind,
            level=step.level,
            about=signal.about,
            name=signal.name,
            summary=summary,
            details=details,
            swallowed=step.swallowed,
            lost=0,
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
        if rule.runs:
            found[rule] = None  # before its channels: what helps comes before what tells
        for target in rule.tells:
            found[target] = None
    return found


def _levels(holding: Iterable[AlertRule]) -> dict[Receiver, Level]:
    levels: dict[Receiver, Level] = {}
    for rule in holding:
        receivers: tuple[Receiver, ...] = (rule, *rule.tells)
        for receiver in receivers:
            levels[receiver] = max(levels.get(receiver, Level.NORMAL), rule.level)
    return levels
