"""Everything that is exported, added up by label at one moment.

Covers: adding up accounts by name, budgets of open owners, what events have told. Leaves to others: what it is called
(`_catalogue`), how many names there may be (`_names`), structures (`_structures`), the process (`_process`).

Cost: it walks the ledger's accounts (at most 4,096), the open owners and the registered things; see docs/metrics.md.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeAlias

from memtools.events import BudgetOverrun, HighUsage, ScopeEnded
from memtools.events import statistics as hub_statistics
from memtools.exporters._catalogue import GROWTH_BOUNDS
from memtools.exporters._growth import Buckets, Growth
from memtools.exporters._heard import Counted, Heard
from memtools.exporters._monitors import monitor_samples
from memtools.exporters._names import MOST_NAMES, Names
from memtools.exporters._structures import Structures
from memtools.ledger import Entry, Owner, open_owners, usage_of
from memtools.ledger import statistics as ledger_statistics
from memtools.records import record

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
    growth: dict[Labels, Growth]


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
        most_names: int = MOST_NAMES,
        *,
        grown: Callable[[Labels, int], object] | None = None,
        may_count: Callable[[], bool] = lambda: True,
    ) -> None:
        self._names = Names(most_names)
        self._structures = Structures(Names(most_names))
        self._growth: dict[Labels, Buckets] = defaultdict(lambda: Buckets(GROWTH_BOUNDS))
        self._told: Samples = defaultdict(lambda: defaultdict(float))
        self._limits: dict[Labels, float] = {}
        self._grown = grown or self._sort_into_bucket
        self._heard = Heard(self._count, may_count)

    def listen(self) -> None:
        """Begin to count events."""
        self._heard.listen()

    def close(self) -> None:
        """Count no more events."""
        self._heard.close()

    def snapshot(self) -> Snapshot:
        """Return the figures of this moment."""
        with self._heard.lock:
            self._heard.settle()
            samples: Samples = {name: dict(values) for name, values in self._told.items()}
            self._add_accounts(samples)
            self._add_budgets(samples)
            self._add_structures(samples)
            growth = {labels: buckets.growth() for labels, buckets in self._growth.items()}
        samples |= monitor_samples()
        samples["hooks.broken"] = {(): hub_statistics().broken}
        return Snapshot(samples, growth)

    def _label(self, kind: str, name: str) -> Labels:
        return kind, self._names.label(name)

    def _count(self, event: Counted) -> None:
        if isinstance(event, ScopeEnded):
            # A histogram whose sum can fall is none: who freed more than it allocated has not grown.
            self._grown(self._label(event.kind, event.name), max(0, event.retained_bytes))
        elif isinstance(event, HighUsage):
            self._told["scope.warnings"][self._label(event.kind, event.name)] += 1
        elif isinstance(event, BudgetOverrun):
            labels = self._label(event.kind, event.name)
            self._told["budget.exceeded"][labels] += 1
            self._limits[labels] = event.budget_bytes
        else:
            self._told["tasks.abandoned"][self._names.label(event.scope),] += 1

    def _sort_into_bucket(self, labels: Labels, grown_bytes: int) -> None:
        self._growth[labels].add(grown_bytes)

    def _add_accounts(self, samples: Samples) -> None:
        totals: dict[Labels, list[float]] = {}
        live: dict[Labels, float] = {}
        tasks = 0
        for entry in _entries(ledger_statistics().accounts):
            labels = self._label(entry.kind, entry.name)
            sums = totals.setdefault(labels, [0, 0, 0, 0, 0, 0])
            sums[0] += entry.entered
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
        figures = self._structures.look()
        samples["structures"] = {(label,): count for label, count in figures.alive.items()}
        samples["structure.items"] = {(label,): count for label, count in figures.items.items()}
        samples["structure.evictions"] = {(label,): count for label, count in figures.evictions.items()}


def _entries(accounts: tuple[Entry, ...]) -> Iterator[Entry]:
    for entry in accounts:
        yield entry
        yield from _entries(entry.children)


def _used_of_budget(owner: Owner) -> float:
    usage = usage_of(owner)
    used = {
        "peak": usage.peak_bytes,
        "retained": usage.retained_bytes,
        "resident": usage.resident_delta_bytes,
    }
    return max(0, used[owner.budget.measure]) if owner.budget is not None else 0
