"""The collector, as a parser of the exposition format reads it."""

import asyncio
import gc
import logging
import os
import sys
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app, start_http_server

from memtools import (
    BoundedDict,
    BoundedList,
    ConfigError,
    Level,
    MemoryMonitor,
    WeakCache,
    memory_scope,
    profile_memory,
)
from memtools.cleanup import Reclaimer
from memtools.errors import BudgetExceeded
from memtools.events import ScopeEnded, TaskAbandoned, emit, subscribe
from memtools.events import statistics as dispatch_statistics
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.monitor import MemorySource
from memtools.readings import Headroom, Limit, LimitSource

SCOPE = (("kind", "scope"), ("name", "import"))


def test_scope_is_exported_with_its_usage(scrape) -> None:
    with memory_scope("import", meter="tracemalloc"):
        kept = bytearray(100_000)

    samples = scrape()

    assert samples["memtools_scope_entered_total"][SCOPE] == 1
    assert samples["memtools_scope_active"][SCOPE] == 0
    assert samples["memtools_scope_failed_total"][SCOPE] == 0
    assert samples["memtools_scope_peak_bytes"][SCOPE] >= len(kept)
    assert samples["memtools_scope_retained_bytes"][SCOPE] >= len(kept)
    assert samples["memtools_scope_duration_seconds_total"][SCOPE] > 0


def test_open_scope_is_exported_before_its_end(scrape) -> None:
    with memory_scope("import", meter="tracemalloc"):
        kept = bytearray(100_000)
        samples = scrape()

    assert samples["memtools_scope_active"][SCOPE] == 1
    assert samples["memtools_scope_peak_bytes"][SCOPE] >= len(kept)


def test_same_name_in_two_places_is_one_series(scrape) -> None:
    with memory_scope("import", meter="rss"):
        pass
    with memory_scope("night", meter="rss"), memory_scope("import", meter="rss"):
        pass

    assert scrape()["memtools_scope_entered_total"][SCOPE] == 2


def test_calls_and_failures_are_labelled_by_kind(scrape) -> None:
    @profile_memory(name="parse", meter="rss")
    def parse() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        parse()

    labels = (("kind", "call"), ("name", "parse"))
    assert scrape()["memtools_scope_failed_total"][labels] == 1


def test_growth_histogram_sum_never_falls(scrape) -> None:
    kept = []
    for size_bytes in (100, 100_000):
        with memory_scope("import", meter="tracemalloc"):
            kept.append(bytearray(size_bytes))
    with memory_scope("import", meter="tracemalloc"):
        kept.clear()

    samples = scrape()

    buckets = {
        float(dict(labels)["le"]): value for labels, value in samples["memtools_scope_growth_bytes_bucket"].items()
    }
    assert buckets[1024] == 2
    assert buckets[65_536] == 2
    assert buckets[262_144] == buckets[float("inf")] == 3
    assert 100_100 <= samples["memtools_scope_growth_bytes_sum"][SCOPE] < 110_000
    assert samples["memtools_scope_growth_bytes_count"][SCOPE] == 3


def test_usage_over_the_warning_size_is_counted(scrape) -> None:
    with memory_scope("import", meter="tracemalloc", warn=10):
        bytearray(1000)

    assert scrape()["memtools_scope_warnings_total"][SCOPE] == 1


def test_budget_is_exported_with_use_and_overruns(scrape) -> None:
    with memory_scope("import", budget="1 MiB", meter="tracemalloc"):
        held = bytearray(500_000)
        while_open = scrape()
    with pytest.raises(BudgetExceeded), memory_scope("import", budget="1 MiB", meter="tracemalloc"):
        held = bytearray(2**21)
    samples = scrape()
    del held

    assert while_open["memtools_budget_limit_bytes"][SCOPE] == 2**20
    assert 500_000 <= while_open["memtools_budget_used_bytes"][SCOPE] < 2**20
    assert samples["memtools_budget_limit_bytes"][SCOPE] == 2**20
    assert samples["memtools_budget_used_bytes"][SCOPE] == 0
    assert samples["memtools_budget_exceeded_total"][SCOPE] == 1


def test_abandoned_tasks_are_counted_by_their_scope(scrape) -> None:
    emit(TaskAbandoned("import", "stubborn", 5.0))

    assert scrape()["memtools_tasks_abandoned_total"][("scope", "import"),] == 1


async def test_tasks_are_active_until_they_end(scrape) -> None:
    from memtools import task_scope

    release = asyncio.Event()
    async with task_scope(meter="tracemalloc") as tasks:
        for _ in range(3):
            tasks.create_task(release.wait(), name="waiter")
        await asyncio.sleep(0)
        during = scrape()
        release.set()

    assert during["memtools_tasks_active"][()] == 3
    assert scrape()["memtools_tasks_active"][()] == 0


def test_structures_are_exported_by_type_and_keep_evictions(scrape) -> None:
    recent, cache = BoundedList(range(5), maxlen=3), WeakCache(strong=2)
    for key in range(4):
        cache[key] = str(key)
    alive = scrape()

    del recent, cache
    gc.collect()
    dead = scrape()

    of_lists, of_caches = (("type", "BoundedList"),), (("type", "WeakCache"),)
    assert alive["memtools_structures"][of_lists] >= 1
    assert alive["memtools_structure_items"][of_lists] >= 3
    assert alive["memtools_structure_evictions_total"][of_lists] >= 2
    assert alive["memtools_structure_evictions_total"][of_caches] >= 1
    for labels in (of_lists, of_caches):
        assert dead["memtools_structure_evictions_total"][labels] >= alive["memtools_structure_evictions_total"][labels]


def test_bounded_dicts_of_every_kind_are_one_type(scrape) -> None:
    kept = [BoundedDict({1: 1, 2: 2}, maxlen=1), BoundedDict({1: 1}, maxlen=1, drop="least_recent", ttl=60)]

    samples = scrape()

    of_dicts = (("type", "BoundedDict"),)
    assert samples["memtools_structures"][of_dicts] >= len(kept)
    assert samples["memtools_structure_items"][of_dicts] >= 2
    assert samples["memtools_structure_evictions_total"][of_dicts] >= 1


def test_bounded_list_subclass_is_exported_by_its_public_name(scrape) -> None:
    class Orders(BoundedList[int]):
        pass

    kept = [BoundedList(range(3), maxlen=9, max_bytes="1 MiB"), Orders(range(4), maxlen=9)]

    samples = scrape()

    orders = next(labels for labels in samples["memtools_structures"] if labels[0][1].endswith("Orders"))
    assert samples["memtools_structure_items"][orders] == len(kept[1])
    assert not [labels for labels in samples["memtools_structures"] if "eighed" in labels[0][1]]


def test_foreign_shrinkable_is_counted_without_statistics(scrape) -> None:
    from memtools.cleanup import register, unregister

    class Atlas:
        def shrink(self, level: Level, deadline: float) -> int:
            return 0

        def statistics(self) -> object:
            raise AssertionError("asked")

    atlas = Atlas()
    register(atlas)
    try:
        samples = scrape()
    finally:
        unregister(atlas)

    label = next(labels for labels in samples["memtools_structures"] if labels[0][1].endswith("Atlas"))
    assert samples["memtools_structures"][label] == 1
    assert label not in samples.get("memtools_structure_items", {})


def test_monitor_is_exported_by_name(scrape, monitored) -> None:
    monitored(main=Level.WARNING, other=Level.NORMAL)

    samples = scrape()

    assert samples["memtools_monitor_level"] == {(("name", "main"),): 1, (("name", "other"),): 0}
    assert samples["memtools_monitor_changes_total"][("name", "main"), ("to", "warning")] == 3
    assert samples["memtools_cleanup_passes_total"][("name", "main"),] == 2
    assert samples["memtools_cleanup_freed_bytes_total"][("name", "main"),] == 4096
    assert samples["memtools_admission_queued"][("name", "main"),] == 1
    assert samples["memtools_gc_pause_seconds_total"][("name", "main"),] == 0.5
    assert samples["memtools_effective_limit_bytes"][()] == 1000
    assert samples["memtools_headroom_bytes"][()] == 300


def test_dropped_collector_counts_no_more_events() -> None:
    before = dispatch_statistics().hooks
    collector = MemtoolsCollector(None)
    during = dispatch_statistics().hooks

    del collector

    assert (during, dispatch_statistics().hooks) == (before + 1, before)


def test_collectors_of_two_registries_count_apart() -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    with MemtoolsCollector(registries[0]), MemtoolsCollector(registries[1]):
        emit(TaskAbandoned("scope", "task", 1.0))
        name = "memtools_tasks_abandoned_total"
        counts = [registry.get_sample_value(name, {"scope": "scope"}) for registry in registries]

    assert counts == [1, 1]


def test_second_collector_of_a_registry_is_refused(registry) -> None:
    before = dispatch_statistics().hooks

    with pytest.raises(ValueError, match="Duplicated"):
        MemtoolsCollector(registry)

    assert dispatch_statistics().hooks == before


def test_started_monitors_of_one_name_are_told_apart(scrape) -> None:
    def at(used: int) -> MemoryMonitor:
        source = MemorySource(
            used=lambda: used,
            limit=lambda: Limit(1000, LimitSource.USER),
            headroom=lambda: Headroom(None, LimitSource.UNKNOWN, (), None),
            clock=lambda: 0.0,
        )
        return MemoryMonitor(600, 800, source=source, reclaimer=Reclaimer([], read=lambda: used), pressure=False)

    short, idle = at(950), at(100)
    with short, idle:
        short.check()
        idle.check()
        levels = scrape()["memtools_monitor_level"]

    assert levels == {(("name", "monitor"),): 2, (("name", "monitor-2"),): 0}


def test_limit_without_a_monitor_is_that_of_the_process(scrape, monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "123 GB")

    samples = scrape()

    assert "memtools_monitor_level" not in samples
    assert samples["memtools_effective_limit_bytes"][()] == 123 * 10**9
    assert samples["memtools_headroom_bytes"][()] < 123 * 10**9


def test_invalid_limit_in_the_environment_omits_the_limit_only(scrape, monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "64 Mb")

    samples = scrape()

    assert "memtools_effective_limit_bytes" not in samples
    assert samples["memtools_hooks_broken_total"][()] >= 0


def test_5000_names_become_a_hundred_labels_and_one_shared(scrape, caplog) -> None:
    with caplog.at_level(logging.WARNING, "memtools.exporters"):
        for number in range(5000):
            with memory_scope(f"tenant {number}", meter="rss"):
                pass
        samples = scrape()
        scrape()

    for name in ("memtools_scope_entered_total", "memtools_scope_growth_bytes_count", "memtools_scope_peak_bytes"):
        names = {dict(labels)["name"] for labels in samples[name]}
        assert len(names) <= 101
        assert "<other>" in names
    assert sum(samples["memtools_scope_entered_total"].values()) == 5000
    assert sum(samples["memtools_scope_growth_bytes_count"].values()) == 5000
    assert len([line for line in caplog.messages if "<other>" in line]) == 1


def test_name_keeps_its_label_when_more_names_come(scrape) -> None:
    with memory_scope("import", meter="rss"):
        pass
    scrape()
    for number in range(300):
        with memory_scope(f"tenant {number}", meter="rss"):
            pass
    with memory_scope("import", meter="rss"):
        pass

    assert scrape()["memtools_scope_entered_total"][SCOPE] == 2


def test_name_with_quotes_and_line_breaks_is_one_sample(scrape) -> None:
    with memory_scope('a"} 1\nmemtools_fake 7\\', meter="rss"):
        pass

    samples = scrape()

    assert "memtools_fake" not in samples
    assert sum(samples["memtools_scope_entered_total"].values()) == 1


def test_second_collector_in_one_registry_is_rejected(registry) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        MemtoolsCollector(registry)


def test_closed_collector_is_unregistered_and_unsubscribed() -> None:
    registry = CollectorRegistry()
    collector = MemtoolsCollector(registry)

    collector.close()
    collector.close()

    assert generate_latest(registry) == b""
    MemtoolsCollector(registry).close()


def test_max_names_of_zero_is_rejected() -> None:
    with pytest.raises(ConfigError, match="max_names"):
        MemtoolsCollector(None, max_names=0)


def test_event_from_a_finaliser_while_counting_does_not_hang(scrape) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self  # a cycle: the collector frees it, in the middle of any line

        def __del__(self) -> None:
            # Not a scope: on 3.11 a ContextVar that is set in a finaliser while it is being set crashes the
            # interpreter, with or without memtools.
            emit(ScopeEnded("finaliser", "scope", ("finaliser",), 0, 0, 0, 0.0, "rss", False, False))

    done = threading.Event()

    def storm() -> None:
        for _ in range(300):
            Cycle()
            with memory_scope("import", meter="rss"):
                pass
        scrape()
        done.set()

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        thread = threading.Thread(target=storm, daemon=True)
        thread.start()
        thread.join(60)
    finally:
        gc.set_threshold(*before)

    assert done.is_set()
    gc.collect()
    assert scrape()["memtools_scope_growth_bytes_count"][("kind", "scope"), ("name", "finaliser")] == 300


def test_scrapes_and_scopes_in_many_threads_lose_no_event(scrape) -> None:
    def work() -> None:
        for _ in range(500):
            with memory_scope("import", meter="rss"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = [scrape()["memtools_scope_growth_bytes_count"].get(SCOPE, 0) for _ in range(20)]
    for thread in threads:
        thread.join()

    assert seen == sorted(seen)
    assert scrape()["memtools_scope_growth_bytes_count"][SCOPE] == 2000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="forking with threads is tested where it is still usual")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_forked_while_the_parent_counts_can_count() -> None:
    with MemtoolsCollector(CollectorRegistry()) as collector:
        with collector._aggregates._events.lock:
            child = os.fork()
            if child == 0:
                os._exit(0 if collector._aggregates.snapshot().samples else 1)
        _, status = os.waitpid(child, 0)

    assert status == 0


def test_registry_is_served_by_a_thread(registry) -> None:
    with memory_scope("import", meter="rss"):
        pass

    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

    assert 'memtools_scope_entered_total{kind="scope",name="import"} 1.0' in text


async def test_registry_is_served_inside_the_event_loop(registry) -> None:
    with memory_scope("import", meter="rss"):
        pass
    sent = []

    async def send(message) -> None:
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": []}
    await make_asgi_app(registry)(scope, receive, send)

    assert sent[0]["status"] == 200
    assert b'memtools_scope_entered_total{kind="scope",name="import"} 1.0' in sent[1]["body"]


def test_failing_hook_is_counted(scrape) -> None:
    def broken(event: object) -> None:
        raise RuntimeError

    before = scrape()["memtools_hooks_broken_total"][()]
    with subscribe(broken), memory_scope("import", meter="rss"):
        pass

    assert scrape()["memtools_hooks_broken_total"][()] == before + 1
