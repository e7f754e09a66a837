"""The figures that are exported, summed by label.

Cost: a snapshot walks the accounts of the ledger (at most 4,096), the open owners and the registered structures; see
docs/metrics.md.
"""

import logging
import threading
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, TypeAlias
from weakref import ref

from memtools._forks import register_object_after_fork
from memtools._records import record
from memtools.cleanup import Shrinkable, registered
from memtools.errors import ConfigError
from memtools.events import BudgetOverrun, Event, HighUsage, ScopeEnded, Subscription, TaskAbandoned, subscribe
from memtools.events import statistics as dispatch_statistics
from memtools.exporters._catalogue import GROWTH_BOUNDS
from memtools.ledger import AccountStatistics, Owner, open_owners
from memtools.ledger import statistics as ledger_statistics
from memtools.ledger._ledger import current_usage
from memtools.monitor import MonitorStatistics, monitors
from memtools.readings import Level, effective_limit, headroom
from memtools.structures import BoundedDict, BoundedList, WeakCache
from memtools.units import parse_count

_log = logging.getLogger("memtools.exporters")

MAX_NAMES: Final = 100
OTHER: Final = "<other>"

# When more events wait, the oldest are dropped. That happens when a thread holds the lock for as long as the other
# threads take to emit so many.
_MAX_WAITING: Final = 65_536
_BATCH: Final = 256  # so many events are counted where the last of them is emitted

Labels: TypeAlias = tuple[str, ...]
Samples: TypeAlias = dict[str, dict[Labels, float]]  # by the name of the metric, then by the values of its labels

_CountedEvent: TypeAlias = ScopeEnded | HighUsage | BudgetOverrun | TaskAbandoned
_Known: TypeAlias = tuple[ref[Shrinkable], str, int]  # the structure, its label, its evictions at the last snapshot


@record
class HistogramSnapshot:
    """How much the owners of one label had left alive at their ends, up to one moment.

    Attributes:
        counts: how many had grown by no more than each bound, and how many there were in all: cumulative.
        sum_bytes: what they left alive together.
    """

    counts: tuple[int, ...]
    sum_bytes: int


@record
class Snapshot:
    """The figures of one moment.

    Attributes:
        samples: values by metric and label values; a metric without any is left out.
        growth: the histogram, by (kind, name).
    """

    samples: Samples
    growth: dict[Labels, HistogramSnapshot]


class Aggregates:
    """Sums what is exported. Safe from any thread.

    Args:
        max_names: how many names get a label of their own; later ones share `<other>`.
        on_growth: called with the labels and the growth in bytes of each owner that has ended, for a library that has
            histograms of its own; the histogram of the snapshot is empty then.
        may_count: called when enough events wait: whether they may be counted in the thread that emits.

    Raises:
        ConfigError: for less than one name.
    """

    def __init__(
        self,
        max_names: int = MAX_NAMES,
        *,
        on_growth: Callable[[Labels, int], object] | None = None,
        may_count: Callable[[], bool] = lambda: True,
    ) -> None:
        self._labels = LabelLimiter(max_names)
        self._structures = StructureCollector(LabelLimiter(max_names))
        self._growth: dict[Labels, Histogram] = defaultdict(lambda: Histogram(GROWTH_BOUNDS))
        self._event_counts: Samples = defaultdict(lambda: defaultdict(float))
        self._limits: dict[Labels, float] = {}
        self._on_growth = on_growth or self._sort_into_bucket
        self._events = EventBuffer(self._count, may_count)

    def subscribe(self) -> None:
        """Begin to count events."""
        self._events.subscribe()

    def close(self) -> None:
        """Count no more events."""
        self._events.close()

    def allow_names(self, max_names: int) -> None:
        """Give labels of their own to `max_names` names, if that is more than so far."""
        with self._events.lock:
            self._labels.allow(max_names)
            self._structures.names.allow(max_names)

    def snapshot(self) -> Snapshot:
        """Return the figures of this moment."""
        with self._events.lock:
            self._events.drain()
            samples: Samples = {name: dict(values) for name, values in self._event_counts.items()}
            self._add_accounts(samples)
            self._add_budgets(samples)
            self._add_structures(samples)
            growth = {labels: histogram.snapshot() for labels, histogram in self._growth.items()}
        samples |= monitor_samples()
        samples["hooks.broken"] = {(): dispatch_statistics().failed}
        return Snapshot(samples, growth)

    def _label(self, kind: str, name: str) -> Labels:
        return kind, self._labels.label_for(name)

    def _count(self, event: _CountedEvent) -> None:
        if isinstance(event, ScopeEnded):
            # The sum of a histogram never falls: an owner that freed more than it allocated counts as 0.
            self._on_growth(self._label(event.kind, event.name), max(0, event.retained_bytes))
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
        samples["structures"] = {(label,): count for label, count in figures.live.items()}
        samples["structure.items"] = {(label,): count for label, count in figures.items.items()}
        samples["structure.evictions"] = {(label,): count for label, count in figures.evictions.items()}


class Histogram:
    """Running counts by bucket; the caller serialises the threads."""

    __slots__ = ("_bounds", "_counts", "_sum_bytes")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_bytes = 0

    def add(self, grown_bytes: int) -> None:
        """Count an owner that grew by `grown_bytes`, never negative."""
        self._counts[bisect_left(self._bounds, grown_bytes)] += 1
        self._sum_bytes += grown_bytes

    def snapshot(self) -> HistogramSnapshot:
        """Return the counts up to now."""
        return HistogramSnapshot(tuple(accumulate(self._counts)), self._sum_bytes)


class EventBuffer:
    """A queue between the threads that emit events and the counting of these events.

    A hook may run inside a finaliser, in the middle of any line, also of the counting itself: a lock taken there would
    deadlock. So the hook appends to a queue, which is one C call, and a thread that gets the lock without waiting
    empties the queue.

    Args:
        count: called with one event at a time, by one thread at a time.
        may_count: called when enough events wait: whether they may be counted here.

    Attributes:
        lock: held while `count` runs; the reader of the counts takes it as well.
    """

    def __init__(self, count: Callable[[_CountedEvent], object], may_count: Callable[[], bool] = lambda: True) -> None:
        self._count = count
        self._may_count = may_count
        self._waiting: deque[_CountedEvent] = deque(maxlen=_MAX_WAITING)
        self._subscription: Subscription | None = None
        self.lock = threading.Lock()
        register_object_after_fork(self, EventBuffer.renew_lock)

    def subscribe(self) -> None:
        """Begin to receive events; a second call does nothing."""
        if self._subscription is None:
            self._subscription = subscribe(self._on_event)

    def close(self) -> None:
        """Receive no more events; those that wait can still be counted."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def drain(self) -> None:
        """Count all events that wait. The caller holds the lock."""
        waiting = self._waiting
        # Not `while waiting`: threads that go on emitting must not keep a reader here.
        for _ in range(len(waiting)):
            try:
                event = waiting.popleft()
            except IndexError:
                return  # in the child of a fork that happened in this loop
            self._count(event)

    def renew_lock(self) -> None:
        """Make a new lock in the child of a fork: the thread that held it is not there."""
        self.lock = threading.Lock()

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, _CountedEvent):
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


class LabelLimiter:
    """Give the first names a label of their own; all later ones share `<other>`.

    Each label value is a time series for as long as the server remembers it. A name that has a label keeps it, so that
    counters only rise. The caller serialises the threads.

    Args:
        max_names: how many names get a label of their own.

    Raises:
        ConfigError: for less than one name.
    """

    __slots__ = ("_known", "_max_names", "_warned")

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = parse_count(max_names, name="max_names")
        self._known: set[str] = set()
        self._warned = False

    def allow(self, max_names: int) -> None:
        """Give labels to more names, if it is more."""
        self._max_names = max(self._max_names, max_names)

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
                "name a scope after what it does, and not after a request or a user",
                self._max_names,
                OTHER,
            )
        return OTHER


@record
class StructureFigures:
    """The figures of the registered structures at one moment.

    Attributes:
        live: how many there are, by type.
        items: how many items they hold, by type; only for the types of memtools.
        evictions: how many items they have evicted, by type; those of structures that have been freed included.
    """

    live: dict[str, int]
    items: dict[str, int]
    evictions: dict[str, int]


class StructureCollector:
    """Sums the figures of the registered structures; the caller serialises the threads.

    The evictions of a structure that is freed stay counted, but those between the last snapshot and its end are missed.
    Only the types of memtools are asked for figures: what the `statistics()` of another type costs is unknown.

    Attributes:
        names: limits the labels.
    """

    __slots__ = ("_dead_evictions", "_known", "names")

    def __init__(self, names: LabelLimiter) -> None:
        self.names = names
        self._dead_evictions: Counter[str] = Counter()
        self._known: dict[int, _Known] = {}

    def collect(self) -> StructureFigures:
        """Return the figures of this moment."""
        live: Counter[str] = Counter()
        items: Counter[str] = Counter()
        evictions: Counter[str] = Counter()
        known: dict[int, _Known] = {}

        for structure in registered():
            label = self.names.label_for(_type_name(type(structure)))
            live[label] += 1
            figures = _figures(structure)
            if figures is None:
                continue
            items[label] += figures[0]
            evictions[label] += figures[1]
            known[id(structure)] = (self._reference(structure), label, figures[1])

        for number, (reference, label, evicted) in self._known.items():
            if number not in known or known[number][0] is not reference:
                self._dead_evictions[label] += evicted
        self._known = known
        evictions.update(self._dead_evictions)
        return StructureFigures(dict(live), dict(items), dict(evictions))

    def _reference(self, structure: Shrinkable) -> "ref[Shrinkable]":
        # An id is used again once its object is freed; a reference that still leads to the structure is its own.
        known = self._known.get(id(structure))
        return known[0] if known is not None and known[0]() is structure else ref(structure)


def highest_level() -> Level | None:
    """Return the highest level of the monitors that are started, or None where there is none."""
    return max((monitor.level for monitor in monitors()), default=None)


def limit_bytes() -> int | None:
    """Return what this process may use: the lowest limit of the started monitors, else the effective limit.

    None where no limit is known, or `MEMTOOLS_LIMIT` is not a size.
    """
    return _limit_of([monitor.statistics() for monitor in monitors()])


def headroom_bytes() -> int | None:
    """Return what is left to the nearest limit, negative beyond it; None where that is not known.

    Read here only without a monitor, in some hundred microseconds.
    """
    return _headroom_of([monitor.statistics() for monitor in monitors()])


def monitor_samples() -> Samples:
    """Return the samples of the started monitors, the limit and the headroom."""
    found = [monitor.statistics() for monitor in monitors()]
    samples: Samples = {}
    for monitor in found:
        for family, value in _monitor_figures(monitor).items():
            samples.setdefault(family, {})[monitor.name,] = value
        if monitor.seconds_to_limit is not None:
            samples.setdefault("seconds.to.limit", {})[monitor.name,] = monitor.seconds_to_limit
        for level in Level:
            changes = samples.setdefault("monitor.changes", {})
            changes[monitor.name, level.name.lower()] = monitor.level_changes.get(level, 0)

    for family, size_bytes in (("effective.limit", _limit_of(found)), ("headroom", _headroom_of(found))):
        if size_bytes is not None:
            samples[family] = {(): size_bytes}
    return samples


def _monitor_figures(monitor: MonitorStatistics) -> dict[str, float]:
    return {
        "monitor.level": monitor.level,
        "monitor.operations": monitor.operations,
        "monitor.failures": monitor.failures,
        "pressure.signals": monitor.pressure_signals,
        "cleanup.passes": monitor.cleanups,
        "cleanup.minor_collections": monitor.minor_collections,
        "cleanup.freed": monitor.freed_bytes,
        "cleanup.duration": monitor.cleanup_s,
        "cleanup.ineffective": monitor.ineffective_reclaims,
        "admission.queued": monitor.admissions.queued,
        "admission.active": monitor.admissions.active,
        "gc.pause": monitor.pauses.total_s,
    }


def _limit_of(found: list[MonitorStatistics]) -> int | None:
    limits = [monitor.limit.value_bytes for monitor in found if monitor.limit is not None]
    known = [limit for limit in limits if limit is not None]
    if known:
        return min(known)
    try:
        return effective_limit().value_bytes
    except ConfigError:
        return None  # a wrong value in the environment must not break the export of the other figures


def _headroom_of(found: list[MonitorStatistics]) -> int | None:
    headrooms = [monitor.headroom.value_bytes for monitor in found if monitor.headroom is not None]
    known = [left for left in headrooms if left is not None]
    if known:
        return min(known)
    try:
        return headroom().value_bytes
    except ConfigError:
        return None


def _figures(structure: Shrinkable) -> tuple[int, int] | None:
    if isinstance(structure, (BoundedDict, BoundedList)):
        bounded = structure.statistics()
        return bounded.length, bounded.evicted
    if isinstance(structure, WeakCache):
        cache = structure.statistics()
        return cache.strong, cache.evictions
    return None


def _type_name(kind: type[Shrinkable]) -> str:
    # A list that is bounded by bytes is of a private class of its own, and so are some dicts.
    for public in (BoundedDict, BoundedList, WeakCache):
        if issubclass(kind, public) and kind.__module__.startswith("memtools."):
            return public.__name__
    return kind.__qualname__


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
