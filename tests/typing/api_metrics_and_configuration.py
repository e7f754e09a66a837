"""Types of metrics, exporters and configuration; checked by mypy and pyright, never run."""

from typing import assert_type

from prometheus_client import CollectorRegistry

from memtools import Config, Level, collect_metrics
from memtools.config import MonitorSettings
from memtools.exporters import Metrics
from memtools.exporters.opentelemetry import MemtoolsInstruments
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.monitor import MemoryMonitor


def metrics_are_plain_numbers() -> None:
    taken = collect_metrics()
    assert_type(taken, Metrics)
    assert_type(taken.rss_mb, float)
    assert_type(taken.gc_collections, tuple[int, ...])
    assert_type(taken.headroom_bytes, int | None)
    assert_type(taken.level, Level | None)
    assert_type(taken.to_dict(), dict[str, object])


def record_is_read_only(taken: Metrics) -> None:
    taken.rss_mb = 1.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]  # the error under test


def collector_is_a_context_manager(registry: CollectorRegistry) -> None:
    with MemtoolsCollector(registry, max_names=10) as collector:
        assert_type(collector, MemtoolsCollector)
    MemtoolsCollector(None).close()
    with MemtoolsInstruments() as instruments:
        assert_type(instruments, MemtoolsInstruments)


def config_gives_arguments_of_the_monitor() -> None:
    config = Config.from_env("SHOP_MEMORY_", warning="60%", environ={})
    assert_type(config, Config)
    assert_type(config.warning, int | str | None)
    assert_type(config.monitor(), MonitorSettings)
    MemoryMonitor(**config.monitor())


def unknown_setting_is_an_error() -> None:
    Config(limits="2 GiB")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # the error under test
    Config(sample_every="often")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the error under test
