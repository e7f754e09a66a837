"""Show Prometheus what memtools knows: our collector, their exposition (extra `prometheus`).

Covers: the collector, its place in a registry. Leaves to others: which metrics there are (`_catalogue`), adding them up
(`_aggregates`), serving them (`prometheus_client`: `start_http_server`, `make_asgi_app`).
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from memtools.errors import MissingExtraError
from memtools.exporters._aggregates import MAX_NAMES, Aggregates, HistogramSnapshot
from memtools.exporters._catalogue import FAMILIES, GROWTH, GROWTH_BOUNDS, Family

try:
    from prometheus_client.core import (
        REGISTRY,
        CollectorRegistry,
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as _missing:
    raise MissingExtraError("prometheus_client", "prometheus") from _missing

__all__ = ["MemtoolsCollector"]

_BOUNDS = (*map(str, GROWTH_BOUNDS), "+Inf")


class MemtoolsCollector(Collector):
    """Collects what memtools knows of scopes, budgets, tasks, monitors and structures whenever Prometheus asks.

    It joins the registry when it is made, listens to events from then on, and leaves with `close()` or at the end of a
    `with`. Figures of accounts go back to the beginning of the process; what events tell (warnings, overruns, abandoned
    tasks, the growth histogram) is counted from here on.

    ```python
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    with MemtoolsCollector(registry):
        assert b"memtools_scope_entered_total" in generate_latest(registry)
    ```

    Args:
        registry: where to join, by default `prometheus_client.REGISTRY`; None joins nowhere.
        most_names: how many names become label values; later ones share `<other>`, which is warned of once.

    Raises:
        ConfigError: for less than one name.
        ValueError: by the registry, when there is such a collector in it already.

    Threads: asked from any, inside the event loop (`make_asgi_app`) or in a server's own thread. It copies sums and
    waits for nobody but another scrape. Not for prometheus_client's multiprocess mode, which leaves out all collectors.
    """

    def __init__(self, registry: CollectorRegistry | None = REGISTRY, *, most_names: int = MAX_NAMES) -> None:
        self._aggregates = Aggregates(most_names)
        self._registry = registry
        if registry is not None:
            registry.register(self)
        self._aggregates.subscribe()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples: a registry compares their names and need not collect for it."""
        yield from map(_empty, FAMILIES)
        yield _empty_growth()

    def collect(self) -> Iterator[Metric]:
        """Return all metrics with the figures of this moment."""
        snapshot = self._aggregates.snapshot()
        for family in FAMILIES:
            metric = _empty(family)
            for labels, value in snapshot.samples.get(family.name, {}).items():
                metric.add_metric(labels, value)
            yield metric
        yield _filled_growth(snapshot.growth)

    def close(self) -> None:
        """Leave the registry and listen no more; a second call does nothing."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)
        self._aggregates.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _empty(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    return kind(family.prometheus_name, family.description, labels=family.labels)


def _empty_growth() -> HistogramMetricFamily:
    return HistogramMetricFamily(GROWTH.prometheus_name, GROWTH.description, labels=GROWTH.labels)


def _filled_growth(growth: dict[tuple[str, ...], HistogramSnapshot]) -> HistogramMetricFamily:
    metric = _empty_growth()
    for labels, grown in growth.items():
        metric.add_metric(labels, list(zip(_BOUNDS, grown.counts, strict=True)), grown.sum_bytes)
    return metric
