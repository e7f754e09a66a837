"""The instruments, as the SDK of OpenTelemetry reads them."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from memtools import memory_scope
from memtools.events import ScopeEnded, TaskAbandoned, emit
from memtools.events import statistics as dispatch_statistics
from memtools.exporters._catalogue import FAMILIES, GROWTH_BOUNDS
from memtools.exporters.opentelemetry import MemtoolsInstruments
from memtools.readings import Level

# An event that a finaliser emits. Not a scope: on 3.11 a ContextVar that is set in a finaliser while it is being set
# crashes the interpreter, with or without memtools.
ENDED = ScopeEnded("finaliser", "scope", ("finaliser",), 0, 0, 0, 0.0, "rss", False, False)

Points = dict[str, list[Any]]  # Any: the SDK's data points


@pytest.fixture
def readers() -> Iterator[list[InMemoryMetricReader]]:
    """Two readers of a provider with the instruments."""
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(metric_readers=readers, shutdown_on_exit=False)
    with MemtoolsInstruments(provider, max_names=3):
        yield readers
    provider.shutdown()


@pytest.fixture
def collect(readers: list[InMemoryMetricReader]) -> Callable[..., Points]:
    """Return the data points of a reader by the name of the metric."""

    def collect_now(reader: int = 0) -> Points:
        metrics = readers[reader].get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        return {metric.name: list(metric.data.data_points) for metric in metrics}

    return collect_now


def test_scope_has_the_attributes_kind_and_name(collect) -> None:
    with memory_scope("import", meter="tracemalloc"):
        kept = bytearray(100_000)

    points = collect()

    (entered,) = points["memtools.scope.entered"]
    assert (entered.value, dict(entered.attributes)) == (1, {"kind": "scope", "name": "import"})
    assert points["memtools.scope.peak"][0].value >= len(kept)


def test_growth_is_a_histogram_with_the_advised_buckets(collect) -> None:
    kept = []
    for size_bytes in (100, 100_000):
        with memory_scope("import", meter="tracemalloc"):
            kept.append(bytearray(size_bytes))

    (point,) = collect()["memtools.scope.growth"]

    assert point.explicit_bounds == GROWTH_BOUNDS
    assert point.count == 2
    assert point.bucket_counts[0] == 1
    assert point.bucket_counts[4] == 1  # up to 256 KiB
    assert 100_100 <= point.sum < 110_000


def test_units_follow_the_semantic_conventions(readers) -> None:
    with memory_scope("import", meter="rss"):
        pass
    data = readers[0].get_metrics_data().resource_metrics[0].scope_metrics[0].metrics

    units = {metric.name: metric.unit for metric in data}

    assert units["memtools.scope.growth"] == units["memtools.scope.peak"] == "By"
    assert units["memtools.scope.duration"] == "s"
    assert units["memtools.scope.entered"] == ""


def test_each_collection_of_each_reader_is_current(collect) -> None:
    counts = []
    for reader in (0, 1, 0, 0, 1):
        with memory_scope("import", meter="rss"):
            pass
        counts.append(collect(reader)["memtools.scope.entered"][0].value)

    assert counts == [1, 2, 3, 4, 5]


def test_one_collection_takes_one_snapshot(collect, monkeypatch) -> None:
    from memtools.exporters import _aggregates

    snapshots = []
    monkeypatch.setattr(_aggregates, "monitor_samples", lambda: snapshots.append(1) or {})
    collect()
    collect()

    assert len(snapshots) == 2
    assert len(FAMILIES) > 20


def test_monitor_level_and_changes_are_exported(collect, monitored) -> None:
    monitored(main=Level.CRITICAL)

    points = collect()

    assert points["memtools.monitor.level"][0].value == 2
    assert {point.attributes["to"] for point in points["memtools.monitor.changes"]} == {"normal", "warning", "critical"}


def test_names_beyond_the_limit_share_one_attribute(collect) -> None:
    for number in range(50):
        with memory_scope(f"tenant {number}", meter="rss"):
            pass

    points = collect()

    for metric in ("memtools.scope.entered", "memtools.scope.growth"):
        names = {point.attributes["name"] for point in points[metric]}
        assert len(names) == 4
        assert "<other>" in names


def test_closed_instruments_report_nothing_new(collect, readers) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    instruments = MemtoolsInstruments(provider)

    instruments.close()
    instruments.close()
    with memory_scope("import", meter="rss"):
        pass

    assert reader.get_metrics_data() is None
    provider.shutdown()


def test_scope_that_ends_while_the_sdk_records_does_not_hang(collect) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self  # a cycle: the collector frees it, in the middle of any line

        def __del__(self) -> None:
            for _ in range(300):  # enough for a batch, which is recorded at once
                emit(ENDED)

    done = threading.Event()

    def storm() -> None:
        for _ in range(20):
            Cycle()
            for _ in range(300):
                with memory_scope("import", meter="rss"):
                    pass
            collect()
        done.set()

    before = gc.get_threshold()
    gc.set_threshold(7)
    try:
        thread = threading.Thread(target=storm, daemon=True)
        thread.start()
        thread.join(120)
    finally:
        gc.set_threshold(*before)

    assert done.is_set()
    gc.collect()
    counts = {point.attributes["name"]: point.count for point in collect()["memtools.scope.growth"]}
    assert counts == {"import": 6000, "finaliser": 6000}


class TestSeveralForOneProvider:
    @pytest.fixture
    def provider(self) -> Iterator[MeterProvider]:
        self.reader = InMemoryMetricReader()
        provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        yield provider
        provider.shutdown()

    def points(self) -> Points:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        return {metric.name: list(metric.data.data_points) for metric in metrics}

    def test_second_one_reports_all_that_the_first_did(self, provider) -> None:
        told = []
        for _ in range(3):
            with MemtoolsInstruments(provider), memory_scope("import", meter="rss"):
                pass
            with MemtoolsInstruments(provider):
                told.append(set(self.points()))

        assert told[0] == told[1] == told[2]
        assert {"memtools.scope.retained", "memtools.scope.growth", "memtools.headroom"} <= told[0]

    def test_growth_is_recorded_once_by_two_at_a_time(self, provider) -> None:
        with MemtoolsInstruments(provider), MemtoolsInstruments(provider):
            with memory_scope("import", meter="rss"):
                pass
            points = self.points()

        assert [point.count for point in points["memtools.scope.growth"]] == [1]
        assert len(points["memtools.scope.entered"]) == 1

    def test_one_that_is_closed_leaves_the_other_reporting(self, provider) -> None:
        first = MemtoolsInstruments(provider)
        with MemtoolsInstruments(provider):
            first.close()
            first.close()
            with memory_scope("import", meter="rss"):
                pass
            told = self.points()
        after = self.points()

        assert told["memtools.scope.entered"][0].value == 1
        assert "memtools.scope.entered" not in after

    def test_counters_of_events_go_on_where_they_were(self, provider) -> None:
        counts = []
        for _ in range(2):
            with MemtoolsInstruments(provider):
                emit(TaskAbandoned("scope", "task", 1.0))
                counts.append(self.points()["memtools.tasks.abandoned"][0].value)

        assert counts == [1, 2]

    def test_largest_number_of_names_counts(self, provider) -> None:
        with MemtoolsInstruments(provider, max_names=1), MemtoolsInstruments(provider, max_names=3):
            for number in range(10):
                with memory_scope(f"tenant {number}", meter="rss"):
                    pass
            entered = self.points()["memtools.scope.entered"]

        assert len({point.attributes["name"] for point in entered}) == 4

    def test_two_providers_report_apart(self, provider) -> None:
        reader = InMemoryMetricReader()
        other = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
        with MemtoolsInstruments(other):
            MemtoolsInstruments(provider).close()
            told = reader.get_metrics_data()
        other.shutdown()

        assert told is not None
        assert self.points() == {}

    def test_provider_that_is_freed_is_not_kept(self) -> None:
        provider = MeterProvider(shutdown_on_exit=False)
        reference = weakref.ref(provider)
        MemtoolsInstruments(provider).close()
        provider.shutdown()

        del provider
        gc.collect()

        assert reference() is None


def test_set_of_a_freed_provider_counts_no_more_events() -> None:
    def make_and_drop() -> None:
        provider = MeterProvider(shutdown_on_exit=False)
        MemtoolsInstruments(provider)
        provider.shutdown()

    before = dispatch_statistics().hooks
    for _ in range(5):
        make_and_drop()
        gc.collect()
    provider = MeterProvider(shutdown_on_exit=False)
    with MemtoolsInstruments(provider):
        hooks = dispatch_statistics().hooks
    provider.shutdown()

    assert hooks == before + 1


@pytest.mark.parametrize(
    "order",
    [
        "first = MemtoolsInstruments(); set_meter_provider(provider); second = MemtoolsInstruments()",
        "first = MemtoolsInstruments(); set_meter_provider(provider); second = MemtoolsInstruments(provider)",
        "first = MemtoolsInstruments(provider); second = MemtoolsInstruments(); set_meter_provider(provider)",
        "first = MemtoolsInstruments(); second = MemtoolsInstruments(provider); set_meter_provider(provider)",
    ],
)
def test_global_provider_may_be_set_at_any_moment(order: str) -> None:
    # In an interpreter of its own: the global provider can be set only once.
    program = f"""
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from memtools import memory_scope
from memtools.exporters.opentelemetry import MemtoolsInstruments

reader = InMemoryMetricReader()
provider = MeterProvider([reader])

def told():
    data = reader.get_metrics_data()
    parts = [part for one in data.resource_metrics for part in one.scope_metrics] if data else []
    return {{metric.name: metric.data.data_points for part in parts for metric in part.metrics}}

{order}
told()
with memory_scope("import", meter="rss"):
    pass
both = told()
first.close()
left = told()
second.close()
print(len(both["memtools.scope.entered"]), both["memtools.scope.growth"][0].count)
print(len(left["memtools.scope.entered"]), "memtools.scope.entered" in told())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == ("1 1\n1 False\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_forked_in_the_middle_of_a_collection_collects(readers) -> None:
    from memtools.exporters import opentelemetry

    held = [opentelemetry._sets.lock, opentelemetry._sets._making]
    inside, over = threading.Event(), threading.Event()

    def hold() -> None:
        with held[0], held[1]:
            inside.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            reader = InMemoryMetricReader()
            with MemtoolsInstruments(MeterProvider(metric_readers=[reader], shutdown_on_exit=False)):
                status = 0 if reader.get_metrics_data() is not None else 1
        finally:
            os._exit(status)
    over.set()
    thread.join()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("module", ["prometheus", "opentelemetry"])
def test_missing_library_error_names_the_install_command(module: str) -> None:
    program = (
        "import sys\n"
        "sys.modules['prometheus_client'] = sys.modules['opentelemetry'] = None\n"
        "from memtools.errors import MissingExtraError\n"
        f"try:\n import memtools.exporters.{module}\n"
        "except MissingExtraError as error:\n print(error)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    extra = {"prometheus": "prometheus", "opentelemetry": "otel"}[module]
    assert f"pip install 'memtools[{extra}]'" in done.stdout


def test_instruments_need_the_api_only() -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "from memtools.exporters.opentelemetry import MemtoolsInstruments\n"
        "with MemtoolsInstruments():\n print('works')\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "works\n"
