"""The metrics that are exported, one line for each.

A file of its own because both adapters and the sums behind them read it.

What the metrics `process_*` and `python_gc_*` of the libraries show already is not among them.
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
        type: whether it only rises (`"counter"`) or also falls (`"gauge"`).
        unit: `"bytes"`, `"seconds"`, or empty for a number.
        labels: the names of its labels.
        description: what it shows, in one sentence.
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
    Family("scope.retained", "gauge", "bytes", _OWNER, "Bytes that the ended ones left alive and the open ones hold."),
    Family("scope.live", "gauge", "bytes", _OWNER, "Live bytes that ended and open ones allocated; native meter only."),
    Family("scope.duration", "counter", "seconds", _OWNER, "Wall time of the ended ones."),
    Family("scope.warnings", "counter", "", _OWNER, "Scopes, calls and tasks that passed their warning size."),
    Family("budget.limit", "gauge", "bytes", _OWNER, "What one owner of that name may use."),
    Family("budget.used", "gauge", "bytes", _OWNER, "What the open owner that uses the most of its budget has used."),
    Family("budget.exceeded", "counter", "", _OWNER, "Owners that used more than their budget."),
    Family("tasks.active", "gauge", "", (), "Tasks with an account of their own that have not ended."),
    Family("tasks.abandoned", "counter", "", ("scope",), "Tasks that still ran a while after they were cancelled."),
    Family("monitor.level", "gauge", "", _MONITOR, "How short memory is: 0 normal, 1 warning, 2 critical."),
    Family("monitor.changes", "counter", "", (*_MONITOR, "to"), "How often each level was entered."),
    Family("monitor.operations", "counter", "", _MONITOR, "Operations that were watched or recorded."),
    Family("monitor.failures", "counter", "", _MONITOR, "Operations that ended with an exception."),
    Family(
        "seconds.to.limit", "gauge", "", _MONITOR, "Seconds until the limit, by the forecast; absent if none is near."
    ),
    Family("pressure.signals", "counter", "", _MONITOR, "How often the kernel signalled memory pressure."),
    Family("effective.limit", "gauge", "bytes", (), "What this process may use."),
    Family("headroom", "gauge", "bytes", (), "What is left to the nearest limit; negative beyond it."),
    Family("cleanup.passes", "counter", "", _MONITOR, "Passes of the reclaimer because memory was short."),
    Family("cleanup.minor_collections", "counter", "", _MONITOR, "Collections of the young generations, by the clock."),
    Family("cleanup.freed", "counter", "bytes", _MONITOR, "What resident memory fell by in passes of the reclaimer."),
    Family("cleanup.duration", "counter", "seconds", _MONITOR, "Wall time of all clean-ups."),
    Family("cleanup.ineffective", "counter", "", _MONITOR, "Passes that ran all steps and did not free enough."),
    Family("admission.queued", "gauge", "", _MONITOR, "Operations that wait for memory to be admitted."),
    Family("admission.active", "gauge", "", _MONITOR, "Operations that have been admitted and have not ended."),
    Family("gc.pause", "counter", "seconds", _MONITOR, "For how long the garbage collector has stopped the process."),
    Family("structures", "gauge", "", ("type",), "Registered objects that can give memory back."),
    Family("structure.items", "gauge", "", ("type",), "Items in bounded lists and in the strong tiers of caches."),
    Family("structure.evictions", "counter", "", ("type",), "Items evicted from bounded lists and caches."),
    Family("hooks.broken", "counter", "", (), "Calls of an event hook that raised."),
)

# Beside the table, as a histogram is not a single number.
GROWTH: Final = Family(
    "scope.growth", "gauge", "bytes", _OWNER, "What each scope, call or task left alive at its end; 0 for less."
)

# Upper bounds of its buckets, in bytes: powers of four from what a call costs anyway to what a container holds.
GROWTH_BOUNDS: Final = tuple(float(4**power) for power in range(5, 16))
