"""What is exported: one line for each metric, whichever library carries it.

Leaves to others: where the figures come from (`_aggregates`), how a library wants to be told (`prometheus`,
`opentelemetry`). What `process_*` and `python_gc_*` tell already is not told again.
"""

from typing import Final, Literal, TypeAlias

from memtools._records import record

MetricType: TypeAlias = Literal["counter", "gauge"]
Unit: TypeAlias = Literal["", "bytes", "seconds"]

_OWNER: Final = ("kind", "name")
_MONITOR: Final = ("name",)


@record
class Family:
    """One metric.

    Attributes:
        name: words joined by dots, without prefix and suffix.
        sort: whether it only rises (`"counter"`) or also falls (`"gauge"`).
        unit: `"bytes"`, `"seconds"`, or empty for a number of things.
        labels: the names of its labels.
        says: what it tells, in one sentence.
    """

    name: str
    type: MetricType
    unit: Unit
    labels: tuple[str, ...]
    description: str

    @property
    def prometheus_name(self) -> str:
        """Its name as Prometheus shows it, `_total` included."""
        words = ["memtools", *self.name.split("."), self.unit, "total" if self.type == "counter" else ""]
        return "_".join(filter(None, words))


FAMILIES: Final = (
    Family("scope.entered", "counter", "", _OWNER, "Scopes, calls and tasks that were opened."),
    Family("scope.failed", "counter", "", _OWNER, "Scopes, calls and tasks that ended with an exception."),
    Family("scope.active", "gauge", "", _OWNER, "Scopes, calls and tasks that are open."),
    Family("scope.peak", "gauge", "bytes", _OWNER, "The highest peak of one scope, call or task of that name."),
    Family("scope.retained", "gauge", "bytes", _OWNER, "What the ended ones left alive and the open ones hold."),
    Family("scope.live", "gauge", "bytes", _OWNER, "What ended and open ones made that is alive; native meter only."),
    Family("scope.duration", "counter", "seconds", _OWNER, "Wall time of the ended ones."),
    Family("scope.warnings", "counter", "", _OWNER, "Scopes, calls and tasks that passed their warning size."),
    Family("budget.limit", "gauge", "bytes", _OWNER, "What one owner of that name may use."),
    Family("budget.used", "gauge", "bytes", _OWNER, "What the open owner that uses the most of its budget has used."),
    Family("budget.exceeded", "counter", "", _OWNER, "Owners that used more than their budget."),
    Family("tasks.active", "gauge", "", (), "Tasks with an account of their own that have not ended."),
    Family("tasks.abandoned", "counter", "", ("scope",), "Tasks that went on in spite of being cancelled."),
    Family("monitor.level", "gauge", "", _MONITOR, "How short memory is: 0 normal, 1 warning, 2 critical."),
    Family("monitor.changes", "counter", "", (*_MONITOR, "to"), "How often each level was entered."),
    Family("monitor.operations", "counter", "", _MONITOR, "Operations that the monitor watched, or was told of."),
    Family("monitor.failures", "counter", "", _MONITOR, "Operations that ended with an exception."),
    Family("pressure.signals", "counter", "", _MONITOR, "How often the kernel said that memory is short."),
    Family("effective.limit", "gauge", "bytes", (), "What this process may use."),
    Family("headroom", "gauge", "bytes", (), "What is left to the first wall; negative beyond it."),
    Family("cleanup.climbs", "counter", "", _MONITOR, "How often memory was given back because it was short."),
    Family("cleanup.light", "counter", "", _MONITOR, "Light clean-ups by the clock."),
    Family("cleanup.freed", "counter", "bytes", _MONITOR, "What resident memory fell by because it was short."),
    Family("cleanup.duration", "counter", "seconds", _MONITOR, "Wall time of all clean-ups."),
    Family("cleanup.ineffective", "counter", "", _MONITOR, "How often every step was taken and was not enough."),
    Family("admission.waiting", "gauge", "", _MONITOR, "Who waits to be let in until there is more memory."),
    Family("admission.inside", "gauge", "", _MONITOR, "Who has been let in and has not ended."),
    Family("gc.pause", "counter", "seconds", _MONITOR, "For how long the garbage collector has stopped everybody."),
    Family("structures", "gauge", "", ("type",), "Things that are alive and can give memory back."),
    Family("structure.items", "gauge", "", ("type",), "What bounded lists and the strong tiers of caches hold."),
    Family("structure.evictions", "counter", "", ("type",), "Items that had to go from bounded lists and caches."),
    Family("hooks.broken", "counter", "", (), "Calls of an event hook that raised."),
)

# Beside the table, as it is no single number: what scopes, calls and tasks had left alive when they ended.
GROWTH: Final = Family(
    "scope.growth", "gauge", "bytes", _OWNER, "What each scope, call or task left alive at its end; 0 for less."
)

# Upper bounds of its buckets, in bytes: powers of four from what a call costs anyway to what a container holds.
GROWTH_BOUNDS: Final = tuple(float(4**power) for power in range(5, 16))
