"""Open incidents: observations go in, messages and actions come out.

Pure state, without a clock or a thread: the caller passes the time and calls from one thread at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias

from memtools._records import record
from memtools.alerts._message import Alert, AlertKind, format_owners, one_line
from memtools.alerts._rules import AlertRule, Category, Recipient
from memtools.events import (
    BlackBoxFound,
    BudgetOverrun,
    Event,
    LevelChanged,
    LimitForecast,
    MemorySampled,
    ReclaimIneffective,
    TaskAbandoned,
)
from memtools.readings import Headroom, Level, Reading
from memtools.units import format_size

# As the monitor leaves its levels: 5 points of the limit below the entry, and not before 10 s.
_BAND: Final = 0.05
_DWELL_S: Final = 10.0

MAX_OPEN_INCIDENTS: Final = 100  # of one category; as many as a metric has label values
OTHER: Final = "<other>"
SOON_S: Final = 3_600.0  # a forecast below this is critical
_MAX_SUMMARY: Final = 500

_OBSERVED: Final = frozenset(
    {LevelChanged, MemorySampled, ReclaimIneffective, BudgetOverrun, TaskAbandoned, LimitForecast, BlackBoxFound}
)

# A summary in one line, and more as (label, text).
Description: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


@record
class Transition:
    """A change of state that a listener is notified of.

    Attributes:
        kind: opened, escalated, repeated or resolved.
        level: how serious it is; of a resolved one, the level of the last notification.
        suppressed: how often it was observed since the last transition without one.
        number: 1 for the first transition after the opening, that one included, and so on.
    """

    kind: AlertKind
    level: Level
    suppressed: int
    number: int


class IncidentState:
    """The state of one incident for one listener.

        closed --level--> OPENED --higher level--> ESCALATED
                            |  `--the same or lower, after the cooldown--> REPEATED, with the suppressed count
                            `--normal--> RESOLVED

    Args:
        cooldown_s: how long the same or a lower level is suppressed after a notification, in seconds.
    """

    __slots__ = ("_cooldown_s", "_level", "_notified_at", "_number", "_suppressed")

    def __init__(self, cooldown_s: float) -> None:
        self._cooldown_s = cooldown_s
        self._level = Level.NORMAL
        self._notified_at = 0.0
        self._suppressed = 0
        self._number = 0

    @property
    def is_open(self) -> bool:
        """Whether it was opened and has not been resolved."""
        return self._level is not Level.NORMAL

    def update(self, level: Level, at: float) -> Transition | None:
        """Take the level at `at` (seconds, never backwards); return the transition that it causes, if any."""
        if level is Level.NORMAL:
            return self._close() if self.is_open else None
        if not self.is_open:
            return self._transition(AlertKind.OPENED, level, at)
        if level > self._level:
            return self._transition(AlertKind.ESCALATED, level, at)
        if at - self._notified_at >= self._cooldown_s:
            return self._transition(AlertKind.REPEATED, level, at)

        self._suppressed += 1
        return None

    def _transition(self, kind: AlertKind, level: Level, at: float) -> Transition:
        self._number += 1
        transition = Transition(kind, level, self._suppressed, self._number)
        self._level, self._notified_at, self._suppressed = level, at, 0
        return transition

    def _close(self) -> Transition:
        transition = Transition(AlertKind.RESOLVED, self._level, self._suppressed, self._number + 1)
        self._level, self._suppressed, self._number = Level.NORMAL, 0, 0
        return transition


@record
class Observation:
    """What one event means for alerts.

    Attributes:
        category: what it is about.
        name: the owner or task; empty for the whole process.
        level: how serious it is; `NORMAL` where it is over.
        is_state: True if a later event reports its end; False for one-off events.
        describe: makes its text, which most observations never need.
        reading: the reading that decided, for rules with thresholds of their own.
        monitor: the monitor that observed it, which has incidents of its own; empty for what no monitor observes.
    """

    category: Category
    name: str
    level: Level
    is_state: bool
    describe: Callable[[], Description]
    reading: Reading | None = None
    monitor: str = ""


def is_observed(event: Event) -> bool:
    """Return whether an event of this type leads to observations."""
    return type(event) in _OBSERVED


def observations(event: Event) -> tuple[Observation, ...]:
    """Return what `event` means for alerts; nothing for the types that rules cannot name."""
    match event:
        case MemorySampled():
            return _memory_observations(event.reading, event.level, partial(_describe_sample, event), event.monitor)
        case LevelChanged():
            return _memory_observations(event.reading, event.after, partial(_describe_change, event), event.monitor)
        case ReclaimIneffective():
            describe = partial(_describe_reclaim, event)
            return (Observation("reclaim", "", event.level, True, describe, monitor=event.monitor),)
        case BudgetOverrun():
            return (
                Observation("budget", one_line(event.name), Level.WARNING, False, partial(_describe_budget, event)),
            )
        case TaskAbandoned():
            name = f"{one_line(event.scope)}/{one_line(event.task)}"
            return (Observation("task", name, Level.WARNING, False, partial(_describe_task, event)),)
        case LimitForecast():
            describe = partial(_describe_forecast, event)
            return (Observation("forecast", "", _forecast_level(event), True, describe, monitor=event.monitor),)
        case BlackBoxFound():
            level = Level.CRITICAL if event.verdict.startswith("oom") else Level.WARNING
            return (Observation("death", "", level, False, partial(_describe_death, event)),)
        case _:
            return ()


def _memory_observations(
    reading: Reading, level: Level, describe: Callable[[], Description], monitor: str
) -> tuple[Observation, ...]:
    observation = Observation("memory", "", level, True, describe, reading, monitor)
    if level is not Level.NORMAL:
        return (observation,)
    return observation, Observation("reclaim", "", Level.NORMAL, True, describe, monitor=monitor)


def _describe_sample(event: MemorySampled) -> Description:
    return _describe_memory(event.reading, event.headroom), ()


def _describe_change(event: LevelChanged) -> Description:
    """Return what an alert says of a change: the threshold, the rate, and who holds the most."""
    levels = f"{event.before.name.lower()} to {event.after.name.lower()}"
    if event.headroom is None or event.free_bytes is None:
        threshold = format_size(event.threshold_bytes)
    else:
        threshold = f"{format_size(event.free_bytes)} free"
    details = [("change", f"{levels}, threshold {threshold}")]
    if event.rate is not None:
        grows = "growing" if event.rate >= 0 else "falling"
        details.append((grows, f"by {format_size(abs(event.rate) * 60)} a minute"))
    if event.largest:
        details.append(("largest owners", format_owners(event.largest)))
    if event.growing:
        left = (f"{one_line(name)} leaves {format_size(size)}" for name, size in event.growing)
        details.append(("behind per call", ", ".join(left)))
    return _describe_memory(event.reading, event.headroom), tuple(details)


def _describe_memory(reading: Reading, headroom: Headroom | None) -> str:
    # The figure that decides comes first: use may be far below a limit that other processes fill.
    return f"memory is at {reading}" if headroom is None else f"{headroom}; memory is at {reading}"


def _describe_reclaim(event: ReclaimIneffective) -> Description:
    if event.headroom is None or event.free_bytes is None:
        figure = f"memory is at {format_size(event.used_bytes)}, not below {format_size(event.target_bytes)}"
    else:
        free, used = format_size(event.free_bytes), format_size(event.used_bytes)
        figure = f"{event.headroom}, not more than {free}; memory is at {used}"
    summary = f"all clean-up steps ran, and {figure}"
    return summary, (("largest owners", format_owners(event.largest)),) if event.largest else ()


def _describe_budget(event: BudgetOverrun) -> Description:
    used, budget = format_size(event.used_bytes), format_size(event.budget_bytes)
    when = "while it ran" if event.in_flight else "at its end"
    return f"{one_line(event.name)} ({event.kind}) used {used}, budget {budget} ({event.measure})", (("seen", when),)


def _describe_task(event: TaskAbandoned) -> Description:
    task = f"task {one_line(event.task)} of {one_line(event.scope)}"
    return f"{task} still runs {event.grace_s:.1f} s after its cancellation", ()


def _forecast_level(event: LimitForecast) -> Level:
    if event.is_over:
        return Level.NORMAL
    is_soon = event.seconds_to_limit is not None and event.seconds_to_limit < SOON_S
    return Level.CRITICAL if is_soon else Level.WARNING


def _describe_forecast(event: LimitForecast) -> Description:
    details = [("in use", str(event.reading))]
    if event.kind:
        details.append(("leak", f"of kind {event.kind}, confirmed by the counters"))
    if event.growing:
        rates = (f"{one_line(name)} {format_size(rate)}/h" for name, rate in event.growing)
        details.append(("growing", ", ".join(rates)))
    return one_line(str(event), _MAX_SUMMARY), (*details, ("evidence", event.reason))


def _describe_death(event: BlackBoxFound) -> Description:
    return f"an earlier run has left no end: {one_line(event.summary, 500)}", (
        ("black box", one_line(event.path, 1000)),
    )


class Hysteresis:
    """Whether memory is above one threshold: entered at once, left below a band and not before a dwell time."""

    __slots__ = ("_entered_at", "is_above")

    def __init__(self) -> None:
        self.is_above = False
        self._entered_at = 0.0

    def update(self, reading: Reading, entry_bytes: int | None) -> bool:
        """Take a reading, and the used bytes at which the threshold is entered now; return whether memory is above it.

        A threshold without an entry, a share of an unknown limit, is never entered.
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
    """Return the used bytes below which a threshold is left: 5 points of the limit, else 5 % of it, below its entry."""
    band = int(_BAND * (limit_bytes if limit_bytes and limit_bytes >= entry_bytes else entry_bytes))
    # A threshold within the lowest 5 points would never be left.
    return entry_bytes - band if band < entry_bytes else max(entry_bytes // 2, 1)


@record
class SendAlert:
    """Have the channel of `recipient` deliver `alert`."""

    recipient: Recipient
    alert: Alert


@record
class RunAction:
    """Have the action of `rule` run."""

    rule: AlertRule
    alert: Alert


Decision: TypeAlias = SendAlert | RunAction
_Key: TypeAlias = tuple[Category, str, str]  # category, owner or task, monitor
Listener: TypeAlias = Recipient | AlertRule  # a channel that is notified, or a rule whose action is run


class IncidentTracker:
    """The incidents of one process.

    Args:
        rules: the table.
        cooldown_s: the time after a notification in which a listener is not notified of the same again; and the time
            without another one after which a one-off event is resolved. In seconds.
        source: the service, its host and process, for messages.
        token: begins the name of every incident; another one in each process.
        wall: seconds since the epoch.
        context: what every message ends with, as (label, text).
    """

    def __init__(
        self,
        rules: Sequence[AlertRule],
        *,
        cooldown_s: float,
        source: str,
        token: str,
        wall: Callable[[], float],
        context: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._context = context
        self._cooldown_s = cooldown_s
        self._source = source
        self._token = token
        self._wall = wall
        self._rules = tuple(rules)
        self._above: dict[tuple[AlertRule, str], Hysteresis] = {}  # by rule and monitor, those that are above
        self._monitors: set[str] = set()
        self._listeners = tuple(_listeners(rules))
        self._open: dict[_Key, _Incident] = {}
        self._opened = 0

    @property
    def open_incidents(self) -> int:
        """How many incidents are open."""
        return len(self._open)

    def observe(self, observation: Observation, now: float) -> list[Decision]:
        """Take an observation at `now`, in seconds that never go back; return what is to be done."""
        if observation.monitor and len(self._monitors) < MAX_OPEN_INCIDENTS:
            self._monitors.add(observation.monitor)
        key = self._key_of(observation)
        incident = self._open.get(key)
        if incident is None and observation.level is Level.NORMAL and observation.reading is None:
            return []
        holding = [rule for rule in self._rules if self._matches(rule, observation)]
        if incident is None and not holding:
            return []

        if incident is None:
            self._opened += 1
            incident = self._open[key] = _Incident(f"{self._token}-{self._opened}", self._cooldown_s)
        incident.last, incident.last_seen = observation, now
        decisions = self._notify(incident, observation, _levels_of(holding, observation), now)
        if not incident.is_open:
            del self._open[key]
        return decisions

    def resolve_stale(self, now: float) -> list[Decision]:
        """Resolve the one-off events that have not been observed again for a cooldown."""
        stale = [
            (key, incident)
            for key, incident in self._open.items()
            if not incident.last.is_state and now - incident.last_seen >= self._cooldown_s
        ]
        decisions: list[Decision] = []
        for key, incident in stale:
            del self._open[key]
            last = incident.last
            over = Observation(
                last.category, last.name, Level.NORMAL, False, partial(_resolved_text, self._cooldown_s, last)
            )
            decisions += self._notify(incident, over, {}, now)
        return decisions

    def next_expiry(self) -> float | None:
        """Return when `resolve_stale` may next have something to do."""
        seen = [incident.last_seen for incident in self._open.values() if not incident.last.is_state]
        return min(seen) + self._cooldown_s if seen else None

    def _matches(self, rule: AlertRule, observation: Observation) -> bool:
        if observation.category not in rule.categories:
            return False
        if not rule.is_thresholded:
            return observation.level >= rule.level
        if observation.reading is None:
            return False
        key = rule, observation.monitor
        hysteresis = self._above.get(key, Hysteresis())
        is_above = hysteresis.update(observation.reading, rule.entry_bytes(observation.reading.limit_bytes))
        if is_above:
            self._above[key] = hysteresis
        else:
            self._above.pop(key, None)
        return is_above

    def _key_of(self, observation: Observation) -> "_Key":
        # By monitor: memory that is normal by one monitor must not resolve what another monitor has found.
        key = observation.category, observation.name, observation.monitor
        if key in self._open or not (observation.name or observation.monitor):
            return key
        of_category = sum(category == observation.category for category, _, _ in self._open)
        return key if of_category < MAX_OPEN_INCIDENTS else (observation.category, OTHER, "")

    def _notify(
        self, incident: "_Incident", observation: Observation, levels: dict[Listener, Level], now: float
    ) -> list[Decision]:
        decisions: list[Decision] = []
        for listener in self._listeners:
            transition = incident.state_of(listener).update(levels.get(listener, Level.NORMAL), now)
            if transition is None:
                continue
            alert = self._alert(incident, observation, transition)
            if isinstance(listener, Recipient):
                decisions.append(SendAlert(listener, alert))
            elif listener in levels and listener.acts_on(observation.category):
                decisions.append(RunAction(listener, alert))
        return decisions

    def _alert(self, incident: "_Incident", observation: Observation, transition: Transition) -> Alert:
        summary, details = observation.describe()
        if observation.monitor and len(self._monitors) > 1:
            details = (*details, ("monitor", one_line(observation.monitor)))
        return Alert(
            kind=transition.kind,
            level=transition.level,
            category=observation.category,
            name=observation.name,
            summary=summary,
            details=(*details, *self._context),
            suppressed=transition.suppressed,
            dropped=0,
            incident=incident.name,
            number=transition.number,
            source=self._source,
            at=self._wall(),
        )


class _Incident:
    """An open incident, and its state for each listener."""

    __slots__ = ("_cooldown_s", "_states", "last", "last_seen", "name")

    last: Observation
    last_seen: float

    def __init__(self, name: str, cooldown_s: float) -> None:
        self.name = name
        self._cooldown_s = cooldown_s
        self._states: dict[Listener, IncidentState] = {}

    @property
    def is_open(self) -> bool:
        return any(state.is_open for state in self._states.values())

    def state_of(self, listener: Listener) -> IncidentState:
        if listener not in self._states:
            self._states[listener] = IncidentState(self._cooldown_s)
        return self._states[listener]


def _resolved_text(seconds: float, last: Observation) -> Description:
    summary, details = last.describe()
    return f"not seen again for {seconds:.0f} s: {summary}", details


def _listeners(rules: Iterable[AlertRule]) -> dict[Listener, None]:
    found: dict[Listener, None] = {}
    for rule in rules:
        if rule.has_action:
            found[rule] = None  # before its channels: the action is to run before the message is sent
        found |= dict.fromkeys(rule.recipients)
    return found


def _levels_of(holding: Iterable[AlertRule], observation: Observation) -> dict[Listener, Level]:
    levels: dict[Listener, Level] = {}
    for rule in holding:
        levels[rule] = rule.level  # its action runs once, however far the level rises meanwhile
        # A rule from WARNING on holds at CRITICAL as well, and its channels are told at once that it is worse.
        level = rule.level if rule.is_thresholded else max(rule.level, observation.level)
        for recipient in rule.recipients:
            levels[recipient] = max(levels.get(recipient, Level.NORMAL), level)
    return levels
