"""Prometheus: a collector, and figures of several workers behind one port (extra `prometheus`).

A file of its own because it imports an optional library.
"""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from memtools._threads import OwnThread
from memtools.errors import ConfigError, MissingExtraError
from memtools.exporters._aggregates import MAX_NAMES, Aggregates, HistogramSnapshot, Labels
from memtools.exporters._catalogue import FAMILIES, GROWTH, GROWTH_BOUNDS, Family
from memtools.readings import resident_bytes
from memtools.readings._shares import memory_share
from memtools.units import parse_seconds

try:
    from prometheus_client import Counter, Gauge, values
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

__all__ = ["MemtoolsCollector", "MultiprocessMetrics"]

_log = logging.getLogger("memtools.exporters")

_publishing = threading.RLock()  # held while figures are published

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_RESIDENT: Final = Family("process.resident", "gauge", "bytes", (), "Resident memory; not to be added up.")
_PROPORTIONAL: Final = Family(
    "process.proportional", "gauge", "bytes", (), "Memory with its part of what processes share: may be added up."
)
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
    and waits for another scrape only. Not for the multiprocess mode of prometheus_client, which leaves out collectors:
    see `MultiprocessMetrics`.
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

    def __del__(self) -> None:
        aggregates: Aggregates | None = getattr(self, "_aggregates", None)  # None where the arguments were refused
        if aggregates is not None:
            aggregates.close()  # in no registry, and dropped: its events would be counted for ever

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MultiprocessMetrics:
    r"""Publishes the figures of each worker of a pre-forked server in the multiprocess mode of prometheus_client.

    One worker answers a scrape for all, from files that each worker writes to the folder `$PROMETHEUS_MULTIPROC_DIR`.
    Make one object in each worker, or in the parent before it forks: the children go on by themselves. A thread of its
    own publishes every few seconds, and once more at the end of the process.

    ```python
    import os, subprocess, sys, tempfile

    lines = (
        "from memtools import memory_scope",
        "from memtools.exporters.prometheus import MultiprocessMetrics",
        "with MultiprocessMetrics(interval=5), memory_scope('import'):  # in a server: made once, and kept",
        "    pass",
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}  # before prometheus_client is imported
        subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True)
        assert any(name.startswith("counter_") for name in os.listdir(folder))
    ```

    Counters are added up over all workers, those that have ended included. Gauges have a label `pid`: `sum without
    (pid)` adds them up, and `min` is right for the headroom, which processes share. The growth histogram is left out.
    `memtools_process_resident_bytes` and `memtools_process_proportional_bytes` (Linux) are there because this mode
    leaves out `process_*`, too.

    Args:
        interval: seconds between two publications.
        max_names: how many names become label values; later ones share `<other>`, which is logged once.

    Raises:
        ConfigError: where prometheus_client is not in multiprocess mode, or this process publishes already; for an
            interval that is not above 0, or less than one name.

    Threads: safe from any. A fork waits until a publication under way, of some milliseconds, has ended, and is made
    without the thread, which is started again in parent and child. Python 3.12 and later may warn of the fork all the
    same: make the object in each worker where that matters.
    """

    _open: "ClassVar[MultiprocessMetrics | None]" = None

    def __init__(self, interval: float = 5.0, *, max_names: int = MAX_NAMES) -> None:
        self._interval_s = parse_seconds(interval, name="interval")
        if self._interval_s == 0:
            raise ConfigError("interval", interval, "seconds as a number above 0")
        if not getattr(values.ValueClass, "_multiprocess", False):
            needed = "a folder, set before prometheus_client is imported"
            raise ConfigError(f"${_FOLDER}", os.environ.get(_FOLDER), needed)
        if MultiprocessMetrics._open is not None:
            raise ConfigError("MultiprocessMetrics", "a second one", "one in each process: close() the first")
        self._aggregates = Aggregates(max_names, on_growth=_ignore)
        self._instruments = {family.name: _instrument(family) for family in (*FAMILIES, _RESIDENT, _PROPORTIONAL)}
        self._counted: dict[tuple[str, Labels], float] = {}
        self._shown: set[tuple[str, Labels]] = set()
        self._ended = threading.Event()
        MultiprocessMetrics._open = self
        self._aggregates.subscribe()
        atexit.register(MultiprocessMetrics._close_at_exit)
        self._start(self._publish_often)

    def publish(self) -> None:
        """Publish the figures of this moment."""
        with _publishing:
            samples = self._samples()
            shown = {(family, labels) for family, found in samples.items() for labels in found}
            for family, labels in self._shown - shown:
                if isinstance(self._instruments[family], Gauge):
                    self._child(family, labels).set(0)  # the mode has no way to take a series back
            self._shown = shown
            for family, found in samples.items():
                for labels, value in found.items():
                    self._write(family, labels, value)

    def close(self) -> None:
        """Publish a last time, and end the thread; a second call does nothing."""
        if MultiprocessMetrics._open is not self:
            return
        MultiprocessMetrics._open = None
        atexit.unregister(MultiprocessMetrics._close_at_exit)
        self._stop()
        try:
            self.publish()
        finally:
            self._aggregates.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _samples(self) -> dict[str, dict[Labels, float]]:
        samples = self._aggregates.snapshot().samples
        samples[_RESIDENT.name] = {(): resident_bytes()}
        share = memory_share(os.getpid()).pss_bytes
        if share is not None:
            samples[_PROPORTIONAL.name] = {(): share}
        return samples

    def _write(self, family: str, labels: Labels, value: float) -> None:
        child = self._child(family, labels)
        if isinstance(self._instruments[family], Gauge):
            child.set(value)
            return
        before = self._counted.get((family, labels), 0.0)
        self._counted[family, labels] = value
        child.inc(value - before if value >= before else value)  # accounts that were forgotten begin anew

    def _child(self, family: str, labels: Labels) -> Any:  # Any: a gauge or a counter, with its labels
        instrument = self._instruments[family]
        return instrument.labels(*labels) if labels else instrument

    def _start(self, target: Callable[[], None]) -> None:
        self._thread = OwnThread(target=target, name="memtools-multiprocess-metrics", daemon=True)
        self._thread.start()

    def _publish_often(self) -> None:
        while not self._ended.wait(self._interval_s):
            try:
                self.publish()
            except Exception:
                _log.exception("the figures of this process could not be published")

    def _publish_in_child(self) -> None:
        # The counts that the child begins with are its parent's, which publishes them.
        with _publishing:
            for family, found in self._aggregates.snapshot().samples.items():
                self._counted.update({(family, labels): value for labels, value in found.items()})
        self._publish_often()

    @staticmethod
    def _close_at_exit() -> None:
        running = MultiprocessMetrics._open
        try:
            if running is not None:
                running.close()
        except Exception:
            _log.exception("the last figures of this process could not be published")

    def _stop(self) -> None:
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    @staticmethod
    def _before_fork() -> None:
        # Without its thread: a lock that it had would be taken for ever in the child.
        if MultiprocessMetrics._open is not None:
            MultiprocessMetrics._open._stop()
        _publishing.acquire()

    @staticmethod
    def _after_fork(*, in_child: bool) -> None:
        _publishing.release()
        running = MultiprocessMetrics._open
        if running is not None:
            running._ended = threading.Event()
            # At once, also in a child that may be about to call exec: nothing but a thread or a signal can begin later,
            # and a child in which no scope ends emits no event, but has figures, such as its resident memory.
            running._start(running._publish_in_child if in_child else running._publish_often)

    if sys.platform != "win32":
        # Here, and not by memtools._forks, which has nothing that runs before a fork.
        os.register_at_fork(
            before=lambda: MultiprocessMetrics._before_fork(),
            after_in_parent=lambda: MultiprocessMetrics._after_fork(in_child=False),
            after_in_child=lambda: MultiprocessMetrics._after_fork(in_child=True),
        )


def _ignore(_labels: Labels, _grown_bytes: int) -> None:
    """The histogram of growth is not published."""


def _instrument(family: Family) -> Counter | Gauge:
    if family.type == "counter":
        return Counter(family.prometheus_name, family.description, family.labels, registry=None)
    return Gauge(family.prometheus_name, family.description, family.labels, registry=None, multiprocess_mode="liveall")


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
