"""Prometheus collector (extra `prometheus`).

A file of its own because it imports an optional library.
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
    """Collects the figures of scopes, budgets, tasks, monitors and structures at each scrape.

    It registers itself when it is made, receives events from then on, and unregisters with `close()` or at the end of a
    `with`. Figures of accounts go back to the start of the process; those of events (warnings, overruns, abandoned
    tasks, the growth histogram) are counted from here on.

    ```python
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    with MemtoolsCollector(registry):
        assert b"memtools_scope_entered_total" in generate_latest(registry)
    ```

    Args:
        registry: where to register, by default `prometheus_client.REGISTRY`; None for nowhere.
        max_names: how many names become label values; later ones share `<other>`, which is logged once.

    Raises:
        ConfigError: for less than one name.
        ValueError: by the registry, when such a collector is in it already.

    Threads: scraped from any, inside the event loop (`make_asgi_app`) or in a thread of a server. A scrape copies sums
    and waits for another scrape only. Not for the multiprocess mode of prometheus_client, which leaves out collectors.
    """

    def __init__(self, registry: CollectorRegistry | None = REGISTRY, *, max_names: int = MAX_NAMES) -> None:
        self._aggregates = Aggregates(max_names)
        self._registry = registry
        if registry is not None:
            registry.register(self)
        self._aggregates.subscribe()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples, by which a registry compares names without collecting."""
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
        """Unregister, and receive no more events; a second call does nothing."""
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
