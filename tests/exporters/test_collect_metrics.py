"""The metrics of the process in one record."""

import gc
import json
import pickle
import time

import pytest

from memtools import collect_metrics
from memtools.errors import ConfigError
from memtools.exporters import Metrics
from memtools.exporters._aggregates import LabelLimiter
from memtools.exporters._metrics import CpuPercent
from memtools.readings import Level, resident_bytes, virtual_bytes


def test_memory_is_that_of_this_process_in_megabytes(trimmed_heap: None) -> None:
    before = collect_metrics()
    block = bytearray(b"x") * 50_000_000
    after = collect_metrics()

    assert abs(after.rss_mb * 10**6 - resident_bytes()) < 20_000_000
    assert abs(after.vms_mb * 10**6 - virtual_bytes()) < 20_000_000
    assert 45 < after.rss_mb - before.rss_mb < 60
    del block


def test_collections_are_counted_by_generation() -> None:
    before = collect_metrics()
    gc.collect()
    after = collect_metrics()

    assert after.gc_collections[-1] == before.gc_collections[-1] + 1
    assert after.gc_thresholds == gc.get_threshold()


def test_limit_without_a_monitor_is_that_of_the_process(monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "123 GB")

    taken = collect_metrics()

    assert taken.limit_bytes == 123 * 10**9
    assert taken.headroom_bytes is not None
    assert taken.headroom_bytes < 123 * 10**9
    assert taken.level is None


def test_level_of_several_monitors_is_the_highest(monitored) -> None:
    monitored(main=Level.NORMAL, other=Level.CRITICAL)

    taken = collect_metrics()

    assert (taken.level, taken.limit_bytes, taken.headroom_bytes) == (Level.CRITICAL, 1000, 300)


def test_invalid_limit_in_the_environment_is_no_limit(monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "64 Mb")

    taken = collect_metrics()

    assert taken.limit_bytes is None
    assert taken.headroom_bytes is None


def test_metrics_are_frozen_and_can_be_pickled(monitored) -> None:
    monitored(main=Level.WARNING)
    taken = collect_metrics()

    with pytest.raises(AttributeError, match="rss_mb"):
        taken.rss_mb = 0
    assert pickle.loads(pickle.dumps(taken)) == taken
    assert json.loads(json.dumps(taken.to_dict()))["level"] == "warning"
    assert set(taken.to_dict()) == set(Metrics.__match_args__)


def test_metrics_text_leaves_out_what_is_unknown() -> None:
    known = Metrics(536.870912, 1.0, 12.4, (1, 2, 3), (700, 10, 10), 2**30, 2**29, Level.WARNING, time.time())
    bare = Metrics(536.870912, 1.0, 12.4, (1, 2, 3), (700, 10, 10), None, None, None, time.time())

    assert str(known) == "512.0 MiB resident, 512.0 MiB left, warning, 12 % of a core"
    assert str(bare) == "512.0 MiB resident, 12 % of a core"


class Clock:
    """Scripted wall and processor seconds, and the number of the process."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.pid = 100.0, 7.0, 1

    def cpu_percent(self) -> CpuPercent:
        return CpuPercent(lambda: self.wall, lambda: self.cpu, lambda: self.pid)


def test_cpu_percent_is_measured_since_the_last_call() -> None:
    clock = Clock()
    cpu_percent = clock.cpu_percent()

    clock.wall, clock.cpu = 102.0, 8.0
    first = cpu_percent.update()
    clock.wall, clock.cpu = 103.0, 10.0
    second = cpu_percent.update()

    assert (first, second) == (50.0, 200.0)


def test_cpu_percent_called_too_soon_repeats_its_result() -> None:
    clock = Clock()
    cpu_percent = clock.cpu_percent()
    clock.wall, clock.cpu = 102.0, 8.0
    cpu_percent.update()

    clock.wall, clock.cpu = 102.05, 8.05

    assert cpu_percent.update() == 50.0


def test_cpu_percent_of_a_forked_child_starts_at_zero() -> None:
    clock = Clock()
    cpu_percent = clock.cpu_percent()

    clock.pid, clock.wall, clock.cpu = 2, 110.0, 0.5
    first = cpu_percent.update()
    clock.wall, clock.cpu = 111.0, 0.75

    assert (first, cpu_percent.update()) == (0.0, 25.0)


def test_names_beyond_the_limit_share_one_label() -> None:
    limiter = LabelLimiter(2)

    labels = [limiter.label_for(name) for name in ("a", "b", "c", "a", "<other>")]

    assert labels == ["a", "b", "<other>", "a", "<other>"]


def test_shared_label_does_not_count_as_a_name() -> None:
    limiter = LabelLimiter(1)
    limiter.label_for("<other>")

    assert limiter.label_for("a") == "a"


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "9"])
def test_invalid_max_names_is_rejected(value) -> None:
    with pytest.raises(ConfigError, match="max_names"):
        LabelLimiter(value)
