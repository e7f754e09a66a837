"""The guide's figures in one record."""

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


def test_memory_is_that_of_this_process_in_units_of_a_million_bytes() -> None:
    before = collect_metrics()
    block = bytearray(b"x") * 50_000_000
    after = collect_metrics()

    assert abs(after.rss_mb * 10**6 - resident_bytes()) < 20_000_000
    assert abs(after.vms_mb * 10**6 - virtual_bytes()) < 20_000_000
    assert 45 < after.rss_mb - before.rss_mb < 60
    del block


def test_the_garbage_collector_is_told_by_generation() -> None:
    before = collect_metrics()
    gc.collect()
    after = collect_metrics()

    assert after.gc_collections[-1] == before.gc_collections[-1] + 1
    assert after.gc_thresholds == gc.get_threshold()


def test_limit_and_headroom_are_those_of_the_process_without_a_monitor(monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "123 GB")

    taken = collect_metrics()

    assert taken.limit_bytes == 123 * 10**9
    assert taken.headroom_bytes is not None
    assert taken.headroom_bytes < 123 * 10**9
    assert taken.level is None


def test_level_limit_and_headroom_are_the_monitors_and_the_worst_counts(monitored) -> None:
    monitored(main=Level.NORMAL, other=Level.CRITICAL)

    taken = collect_metrics()

    assert (taken.level, taken.limit_bytes, taken.headroom_bytes) == (Level.CRITICAL, 1000, 300)


def test_a_wrong_word_in_the_environment_is_no_limit(monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "64 Mb")

    taken = collect_metrics()

    assert taken.limit_bytes is None
    assert taken.headroom_bytes is None


def test_the_record_is_frozen_and_travels(monitored) -> None:
    monitored(main=Level.WARNING)
    taken = collect_metrics()

    with pytest.raises(AttributeError, match="rss_mb"):
        taken.rss_mb = 0
    assert pickle.loads(pickle.dumps(taken)) == taken
    assert json.loads(json.dumps(taken.to_dict()))["level"] == "warning"
    assert set(taken.to_dict()) == set(Metrics.__match_args__)


def test_it_reads_well_with_and_without_what_may_be_unknown() -> None:
    known = Metrics(536.870912, 1.0, 12.4, (1, 2, 3), (700, 10, 10), 2**30, 2**29, Level.WARNING, time.time())
    bare = Metrics(536.870912, 1.0, 12.4, (1, 2, 3), (700, 10, 10), None, None, None, time.time())

    assert str(known) == "512.0 MiB resident, 512.0 MiB left, warning, 12 % of a core"
    assert str(bare) == "512.0 MiB resident, 12 % of a core"


class Clock:
    """Wall and processor seconds, and the number of the process, by hand."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.pid = 100.0, 7.0, 1

    def busyness(self) -> CpuPercent:
        return CpuPercent(lambda: self.wall, lambda: self.cpu, lambda: self.pid)


def test_the_share_of_a_core_is_that_since_the_last_question() -> None:
    clock = Clock()
    busyness = clock.busyness()

    clock.wall, clock.cpu = 102.0, 8.0
    first = busyness.update()
    clock.wall, clock.cpu = 103.0, 10.0
    second = busyness.update()

    assert (first, second) == (50.0, 200.0)


def test_a_question_too_soon_gets_the_last_answer() -> None:
    clock = Clock()
    busyness = clock.busyness()
    clock.wall, clock.cpu = 102.0, 8.0
    busyness.update()

    clock.wall, clock.cpu = 102.05, 8.05

    assert busyness.update() == 50.0


def test_a_forked_child_begins_anew() -> None:
    clock = Clock()
    busyness = clock.busyness()

    clock.pid, clock.wall, clock.cpu = 2, 110.0, 0.5
    first = busyness.update()
    clock.wall, clock.cpu = 111.0, 0.75

    assert (first, busyness.update()) == (0.0, 25.0)


def test_names_keep_their_place_and_the_rest_share_one() -> None:
    names = LabelLimiter(2)

    labels = [names.label_for(name) for name in ("a", "b", "c", "a", "<other>")]

    assert labels == ["a", "b", "<other>", "a", "<other>"]


def test_the_shared_label_takes_no_place_of_its_own() -> None:
    names = LabelLimiter(1)
    names.label_for("<other>")

    assert names.label_for("a") == "a"


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "9"])
def test_a_bound_that_makes_no_sense_is_refused(most) -> None:
    with pytest.raises(ConfigError, match="max_names"):
        LabelLimiter(most)
