"""Everything that is exported, added up by label at one moment.

Covers: adding up accounts by name, budgets of open owners, what events have told. Leaves to others: what it is called
(`_catalogue`), how many names there may be (`_names`), structures (`_structures`), the process (`_process`).

Cost: it walks the ledger's accounts (at most 4,096), the open owners and the registered things; see docs/metrics.md.
"""

import logging
import os
import threading
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, TypeAlias
from weakref import WeakSet, ref

from memtools._records import record
from memtools.cleanup import Shrinkable, registered
from memtools.errors import ConfigError
from memtools.events import BudgetOverrun, Event, HighUsage, ScopeEnded, Subscription, TaskAbandoned, subscribe
from memtools.events import statistics as hub_statistics
from memtools.exporters._catalogue import GROWTH_BOUNDS
from memtools.ledger import AccountStatistics, Owner, current_usage, open_owners
from memtools.ledger import statistics as ledger_statistics
from memtools.monitor import MonitorStatistics, monitors
from memtools.readings import Level, effective_limit, headroom
from memtools.structures import BoundedList, WeakCache
from memtools.units import parse_count

# How much scopes, calls and tasks had left alive when they ended, sorted into buckets.
#
# Leaves to others: who ended (`_heard`), the form in which a library wants it.


@record
class HistogramSnapshot:
    """The growth of the owners of one label, up to one moment.

    Attributes:
        counts: how many had grown by no more than each bound, and how many there were in all: cumulative.
        sum_bytes: what they left alive together.
    """

    counts: tuple[int, ...]
    sum_bytes: int


class Histogram:
    """Running counts behind a `Growth`; the caller sees to threads."""

    __slots__ = ("_bounds", "_counts", "_sum_bytes")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_bytes = 0

    def add(self, grown_bytes: int) -> None:
        """Count one that grew by `grown_bytes`, never negative."""
        self._counts[bisect_left(self._bounds, grown_bytes)] += 1
        self._sum_bytes += grown_bytes

    def snapshot(self) -> HistogramSnapshot:
        """Return the counts up to now."""
        return HistogramSnapshot(tuple(accumulate(self._counts)), self._sum_bytes)


# Wait with what events tell until somebody may count it.
#
# Covers: a hook that only appends, so that it can be called anywhere; when the waiting events are taken.
# Leaves to others: what is counted (`_aggregates`, `opentelemetry`).
#
# A hook may run inside a finaliser, in the middle of any line, that of our own counting included: a lock taken there
# would deadlock itself. So the hook puts the event into a queue, which is one C call, and whoever can have the lock
# without waiting empties the queue. While one thread counts, the others only append.

# How many events wait at most for somebody to count them; beyond it the oldest are lost, which takes a thread that
# holds the lock for as long as it takes the others to tell so many.
_MAX_WAITING: Final = 65_536
_BATCH: Final = 256

Counted = ScopeEnded | HighUsage | BudgetOverrun | TaskAbandoned

_all: "WeakSet[EventBuffer]" = WeakSet()


class EventBuffer:
    """Events on their way from where they happened to where they are counted.

    Args:
        count: called with one event at a time, never twice at once.
        may_count: asked, when enough events wait, whether they may be counted here.

    Attributes:
        lock: held while `count` runs; whoever reads what it writes takes it as well.
    """

    def __init__(self, count: Callable[[Counted], object], may_count: Callable[[], bool] = lambda: True) -> None:
        self._count = count
        self._may_count = may_count
        self._waiting: deque[Counted] = deque(maxlen=_MAX_WAITING)
        self._subscription: Subscription | None = None
        self.lock = threading.Lock()
        _all.add(self)

    def subscribe(self) -> None:
        """Begin to hear events; a second call does nothing."""
        if self._subscription is None:
            self._subscription = subscribe(self._on_event)

    def close(self) -> None:
        """Hear no more; what waits can still be counted."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def drain(self) -> None:
        """Count all that waits. The caller holds the lock."""
        waiting = self._waiting
        # Not `while waiting`: threads that go on telling must not keep a reader here.
        for _ in range(len(waiting)):
            try:
                event = waiting.popleft()
            except IndexError:
                return  # the child of a fork that happened in here
            self._count(event)

    def renew_lock(self) -> None:
        """Make the lock anew in the child of a fork: the thread that held it may not be there."""
        self.lock = threading.Lock()

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, Counted):
            return
        self._waiting.append(event)
        if len(self._waiting) < _BATCH or not self._may_count():
            return
        lock = self.lock
        if lock.acquire(blocking=False):
            try:
                self.drain()
            finally:
                lock.release()


def _renew_locks() -> None:
    for heard in _all:
        heard.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


# Keep the names that become label values few: each of them is a time series for as long as the server remembers it.
#
# Leaves to others: which names there are (`_aggregates`), escaping them (the exposition format).

MAX_NAMES: Final = 100
OTHER: Final = "<other>"

_log = logging.getLogger("memtools.exporters")


class LabelLimiter:
    """The first `most` names that come keep their own label; all later ones share `<other>`.

    A name that has got its label keeps it, so that counters only rise. The caller sees to threads.

    Args:
        most: how many names get a label of their own.

    Raises:
        ConfigError: for less than one name.
    """

    __slots__ = ("_known", "_max_names", "_warned")

    def __init__(self, most: int = MAX_NAMES) -> None:
        self._max_names = parse_count(most, name="most_names")
        self._known: set[str] = set()
        self._warned = False

    def label_for(self, name: str) -> str:
        """Return the label value for `name`."""
        if name in self._known:
            return name
        if name == OTHER:
            return OTHER
        if len(self._known) < self._max_names:
            self._known.add(name)
            return name

        if not self._warned:
            self._warned = True
            _log.warning(
                "more than %d names of scopes, calls and tasks: the figures of the further ones are exported as %s; "
                "name a scope after what it does, not after whom it does it for",
                self._max_names,
                OTHER,
            )
        return OTHER


# What bounded lists, caches and other registered things hold, and what had to go from them, by type.
#
# Covers: counters that do not fall when a structure dies. Leaves to others: who is registered (`memtools.cleanup`).
#
# Only our own structures are asked for figures: what a stranger's `statistics()` costs, or waits for, is unknown.

_Seen: TypeAlias = tuple[ref[Shrinkable], str, int]  # the thing, its label, its evictions when it was looked at last


@record
class StructureFigures:
    """What is alive of one type.

    Attributes:
        alive: how many things, by type.
        items: what they hold, by type; only for our own types.
        evictions: what had to go from them, those included that have died since they were last looked at.
    """

    alive: dict[str, int]
    items: dict[str, int]
    evictions: dict[str, int]


class StructureCollector:
    """Looks at the registered things; the caller sees to threads.

    What a structure evicts between the last look and its death is not counted.
    """

    __slots__ = ("_dead_evictions", "_labels", "_seen")

    def __init__(self, names: LabelLimiter) -> None:
        self._labels = names
        self._dead_evictions: Counter[str] = Counter()
        self._seen: dict[int, _Seen] = {}

    def collect(self) -> StructureFigures:
        """Return the figures of this moment."""
        alive: Counter[str] = Counter()
        items: Counter[str] = Counter()
        evictions: Counter[str] = Counter()
        seen: dict[int, _Seen] = {}

        for thing in registered():
            label = self._labels.label_for(_type_name(type(thing)))
            alive[label] += 1
            figures = _figures(thing)
            if figures is None:
                continue
            items[label] += figures[0]
            evictions[label] += figures[1]
            seen[id(thing)] = (self._reference(thing), label, figures[1])

        for number, (reference, label, gone) in self._seen.items():
            if number not in seen or seen[number][0] is not reference:
                self._dead_evictions[label] += gone
        self._seen = seen
        evictions.update(self._dead_evictions)
        return StructureFigures(dict(alive), dict(items), dict(evictions))

    def _reference(self, thing: Shrinkable) -> "ref[Shrinkable]":
        # An id is given to another thing after death; a reference that still leads to the thing is the thing's own.
        known = self._seen.get(id(thing))
        return known[0] if known is not None and known[0]() is thing else ref(thing)


def _figures(thing: Shrinkable) -> tuple[int, int] | None:
    if isinstance(thing, BoundedList):
        bounded = thing.statistics()
        return bounded.length, bounded.evicted
    if isinstance(thing, WeakCache):
        cache = thing.statistics()
        return cache.strong, cache.evictions
    return None


def _type_name(kind: type[Shrinkable]) -> str:
    # The list bounded by bytes is of a class of its own, of which nobody need know.
    for ours in (BoundedList, WeakCache):
        if issubclass(kind, ours) and kind.__module__.startswith("memtools."):
            return ours.__name__
    return kind.__qualname__


# What the started monitors have seen and done, and what the process may use.
#
# Leaves to others: watching (`memtools.monitor`), reading limits (`memtools.readings`). A monitor's statistics are copied
# and read nothing anew. Without a monitor the limit and the headroom are read here: some hundred microseconds.


def highest_level() -> Level | None:
    """Return the highest level of the monitors that are started, or None where there is none."""
    return max((monitor.level for monitor in monitors()), default=None)


def limit_bytes() -> int | None:
    """Return what this process may use: the least of what the monitors were told and found, else the effective limit.

    None where no limit is known, or `MEMTOOLS_LIMIT` is no size.
    """
    return _limit_of([monitor.statistics() for monitor in monitors()])


def headroom_bytes() -> int | None:
    """Return what is left to the first wall, negative beyond it; None where that is not known."""
    return _headroom_of([monitor.statistics() for monitor in monitors()])


def monitor_samples() -> "Samples":
    """Return the samples of monitors, limit and headroom."""
    found = [monitor.statistics() for monitor in monitors()]
    samples: Samples = {}
    for one in found:
        for family, value in _monitor_figures(one).items():
            samples.setdefault(family, {})[one.name,] = value
        for level in Level:
            samples.setdefault("monitor.changes", {})[one.name, level.name.lower()] = one.level_changes.get(level, 0)

    for family, room in (("effective.limit", _limit_of(found)), ("headroom", _headroom_of(found))):
        if room is not None:
            samples[family] = {(): room}
    return samples


def _monitor_figures(one: MonitorStatistics) -> dict[str, float]:
    return {
        "monitor.level": one.level,
        "monitor.operations": one.operations,
        "monitor.failures": one.failures,
        "pressure.signals": one.pressure_signals,
        "cleanup.climbs": one.cleanups,
        "cleanup.light": one.minor_collections,
        "cleanup.freed": one.freed_bytes,
        "cleanup.duration": one.cleanup_s,
        "cleanup.ineffective": one.ineffective_reclaims,
        "admission.waiting": one.admissions.queued,
        "admission.inside": one.admissions.active,
        "gc.pause": one.pauses.total_s,
    }


def _limit_of(found: list[MonitorStatistics]) -> int | None:
    told = [one.limit.value_bytes for one in found if one.limit is not None and one.limit.value_bytes is not None]
    if told:
        return min(told)
    try:
        return effective_limit().value_bytes
    except ConfigError:
        return None  # what tells of the process shall not fail for a wrong word in its environment


def _headroom_of(found: list[MonitorStatistics]) -> int | None:
    told = [one.headroom.value_bytes for one in found if one.headroom is not None]
    known = [room for room in told if room is not None]
    if known:
        return min(known)
    try:
        return headroom().value_bytes
    except ConfigError:
        return None


Labels: TypeAlias = tuple[str, ...]
Samples: TypeAlias = dict[str, dict[Labels, float]]  # by the family's name, then by the values of its labels


@record
class Snapshot:
    """The figures of one moment.

    Attributes:
        samples: values by family and label values; a family without any is left out.
        growth: the histogram, by (kind, name).
    """

    samples: Samples
    growth: dict[Labels, HistogramSnapshot]


class Aggregates:
    """Adds up what is exported. Safe from any thread.

    Args:
        most_names: how many names get a label of their own; later ones share `<other>`.
        grown: told the labels and the growth in bytes of each owner that has ended, where somebody else sorts them
            into buckets; the histogram is empty then.
        may_count: asked, when enough events wait, whether they may be counted in the thread that emits.

    Raises:
        ConfigError: for less than one name.
    """

    def __init__(
        self,
        most_names: int = MAX_NAMES,
        *,
        grown: Callable[[Labels, int], object] | None = None,
        may_count: Callable[[], bool] = lambda: True,
    ) -> None:
        self._labels = LabelLimiter(most_names)
        self._structures = StructureCollector(LabelLimiter(most_names))
        self._growth: dict[Labels, Histogram] = defaultdict(lambda: Histogram(GROWTH_BOUNDS))
        self._event_counts: Samples = defaultdict(lambda: defaultdict(float))
        self._limits: dict[Labels, float] = {}
        self._grown = grown or self._sort_into_bucket
        self._events = EventBuffer(self._count, may_count)

    def subscribe(self) -> None:
        """Begin to count events."""
        self._events.subscribe()

    def close(self) -> None:
        """Count no more events."""
        self._events.close()

    def snapshot(self) -> Snapshot:
        """Return the figures of this moment."""
        with self._events.lock:
            self._events.drain()
            samples: Samples = {name: dict(values) for name, values in self._event_counts.items()}
            self._add_accounts(samples)
            self._add_budgets(samples)
            self._add_structures(samples)
            growth = {labels: buckets.snapshot() for labels, buckets in self._growth.items()}
        samples |= monitor_samples()
        samples["hooks.broken"] = {(): hub_statistics().broken}
        return Snapshot(samples, growth)

    def _label(self, kind: str, name: str) -> Labels:
        return kind, self._labels.label_for(name)

    def _count(self, event: Counted) -> None:
        if isinstance(event, ScopeEnded):
            # A histogram whose sum can fall is none: who freed more than it allocated has not grown.
            self._grown(self._label(event.kind, event.name), max(0, event.retained_bytes))
        elif isinstance(event, HighUsage):
            self._event_counts["scope.warnings"][self._label(event.kind, event.name)] += 1
        elif isinstance(event, BudgetOverrun):
            labels = self._label(event.kind, event.name)
            self._event_counts["budget.exceeded"][labels] += 1
            self._limits[labels] = event.budget_bytes
        else:
            self._event_counts["tasks.abandoned"][self._labels.label_for(event.scope),] += 1

    def _sort_into_bucket(self, labels: Labels, grown_bytes: int) -> None:
        self._growth[labels].add(grown_bytes)

    def _add_accounts(self, samples: Samples) -> None:
        totals: dict[Labels, list[float]] = {}
        live: dict[Labels, float] = {}
        tasks = 0
        for entry in _entries(ledger_statistics().accounts):
            labels = self._label(entry.kind, entry.name)
            sums = totals.setdefault(labels, [0, 0, 0, 0, 0, 0])
            sums[0] += entry.started
            sums[1] += entry.failed
            sums[2] += entry.active
            sums[3] = max(sums[3], entry.peak_bytes)
            sums[4] += entry.retained_bytes
            sums[5] += entry.duration_s
            tasks += entry.active if entry.kind == "task" else 0
            if entry.live_bytes is not None:
                live[labels] = live.get(labels, 0) + entry.live_bytes

        names = ("entered", "failed", "active", "peak", "retained", "duration")
        for place, name in enumerate(names):
            samples[f"scope.{name}"] = {labels: sums[place] for labels, sums in totals.items()}
        samples["scope.live"] = live
        samples["tasks.active"] = {(): tasks}

    def _add_budgets(self, samples: Samples) -> None:
        used: dict[Labels, float] = {}
        for owner in open_owners():
            if owner.budget is None:
                continue
            labels = self._label(owner.kind, owner.name)
            self._limits[labels] = owner.budget.limit_bytes
            used[labels] = max(used.get(labels, 0), _used_of_budget(owner))
        samples["budget.limit"] = dict(self._limits)
        samples["budget.used"] = dict.fromkeys(self._limits, 0.0) | used

    def _add_structures(self, samples: Samples) -> None:
        figures = self._structures.collect()
        samples["structures"] = {(label,): count for label, count in figures.alive.items()}
        samples["structure.items"] = {(label,): count for label, count in figures.items.items()}
        samples["structure.evictions"] = {(label,): count for label, count in figures.evictions.items()}


def _entries(accounts: tuple[AccountStatistics, ...]) -> Iterator[AccountStatistics]:
    for entry in accounts:
        yield entry
        yield from _entries(entry.children)


def _used_of_budget(owner: Owner) -> float:
    usage = current_usage(owner)
    used = {
        "peak": usage.peak_bytes,
        "retained": usage.retained_bytes,
        "resident": usage.resident_delta_bytes,
    }
    return max(0, used[owner.budget.measure]) if owner.budget is not None else 0
