"""Headroom: limit and usage of the same cgroup, the smallest of all levels, the machine."""

import errno

import pytest

from memtools.errors import ConfigError
from memtools.readings import Headroom, LimitSource, headroom, take_reading

MIB = 2**20
GIB = 2**30
V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/memory"
NO_ACCESS = PermissionError(errno.EACCES, "Permission denied")


def test_sibling_that_fills_the_ancestor_lowers_the_headroom(machine) -> None:
    machine.v2("/pod/own")
    machine.put(V2 + "/pod/own", memory_max=2 * GIB, memory_current=100 * MIB, memory_stat="inactive_file 0")
    machine.put(V2 + "/pod", memory_max=4 * GIB, memory_current=4 * GIB - 50 * MIB, memory_stat="inactive_file 0")

    found = machine.headroom()

    assert machine.limit().value_bytes == 2 * GIB
    assert found.value_bytes == 50 * MIB
    assert [(level.level, level.headroom_bytes) for level in found.levels] == [(0, 2 * GIB - 100 * MIB), (1, 50 * MIB)]


def test_inactive_file_cache_counts_as_headroom(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_current=GIB, memory_stat=f"anon 5\ninactive_file {300 * MIB}")

    assert machine.headroom().value_bytes == 300 * MIB


def test_three_quarters_of_active_file_cache_are_headroom(machine) -> None:
    machine.v2("/a")
    stat = f"anon {200 * MIB}\ninactive_file 0\nactive_file {800 * MIB}"
    machine.put(V2 + "/a", memory_max=GIB, memory_current=1000 * MIB, memory_stat=stat)

    found = machine.headroom()

    assert found.value_bytes == 24 * MIB + 600 * MIB
    assert found.levels[0].active_file_bytes == 800 * MIB


def test_v1_counts_the_active_file_cache_of_the_children(machine) -> None:
    machine.v1("/a")
    stat = f"active_file 5\ntotal_inactive_file 0\ntotal_active_file {400 * MIB}"
    machine.put(V1 + "/a", memory_limit_in_bytes=GIB, memory_usage_in_bytes=GIB, memory_stat=stat)

    assert machine.headroom().value_bytes == 300 * MIB


def test_half_of_the_caches_of_the_kernel_is_headroom(machine) -> None:
    machine.v2("/a")
    stat = f"inactive_file 0\nslab_reclaimable {600 * MIB}\nslab_unreclaimable {100 * MIB}"
    machine.put(V2 + "/a", memory_max=GIB, memory_current=GIB, memory_stat=stat)

    assert machine.headroom().value_bytes == 300 * MIB


def test_anonymous_memory_of_a_full_cgroup_is_no_headroom(machine) -> None:
    machine.v2("/a")
    stat = f"anon {GIB}\nshmem {100 * MIB}\ninactive_file 0\nactive_file 0"
    machine.put(V2 + "/a", memory_max=GIB, memory_current=GIB, memory_stat=stat)

    assert machine.headroom().value_bytes == 0


def test_v1_counts_the_file_cache_of_the_children(machine) -> None:
    machine.v1("/a")
    machine.put(
        V1 + "/a",
        memory_limit_in_bytes=GIB,
        memory_usage_in_bytes=GIB,
        memory_stat=f"inactive_file 5\ntotal_inactive_file {300 * MIB}",
    )

    assert machine.headroom().value_bytes == 300 * MIB


def test_headroom_never_exceeds_the_limit(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_current=MIB, memory_stat=f"inactive_file {2 * MIB}")

    assert machine.headroom().value_bytes == GIB


def test_available_memory_of_the_machine_bounds_the_headroom(machine) -> None:
    machine.host(64 * GIB, 10 * MIB)
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_current=MIB, memory_stat="inactive_file 0")

    found = machine.headroom()

    assert (found.value_bytes, found.source, found.host_available_bytes) == (10 * MIB, LimitSource.PHYSICAL, 10 * MIB)


def test_headroom_beyond_a_limit_is_negative(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_high=GIB, memory_current=GIB + MIB, memory_stat="inactive_file 0")

    assert machine.headroom().value_bytes == -MIB


@pytest.mark.parametrize(
    "broken",
    [{"memory_current": NO_ACCESS}, {"memory_stat": NO_ACCESS}, {"memory_current": "abc"}, {"memory_stat": "anon 5"}],
)
def test_limit_with_unreadable_usage_bounds_the_headroom(machine, broken: dict[str, object]) -> None:
    machine.resident = MIB
    machine.v2("/a/b")
    whole = {"memory_max": GIB, "memory_current": MIB, "memory_stat": "inactive_file 0"}
    machine.put(V2 + "/a/b", **whole | broken)
    machine.put(V2 + "/a", **whole | {"memory_max": 2 * GIB})

    found = machine.headroom()

    assert found.levels[0].headroom_bytes is None
    assert (found.value_bytes, found.source) == (GIB - MIB, LimitSource.CGROUP2_MAX)


def test_usage_without_read_permission_is_a_gap(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_current=NO_ACCESS, memory_stat="inactive_file 0")

    assert machine.headroom().gaps == (V2 + "/a/memory.current",)
    assert str(machine.headroom()) == "1.0 GiB left (cgroup2 memory.max; 1 file could not be read)"


def test_limit_of_an_unmounted_ancestor_has_no_usage(machine) -> None:
    machine.v1("/docker/abc", shown="/docker/abc")
    machine.put(
        V1,
        memory_limit_in_bytes=4 * GIB,
        memory_usage_in_bytes=0,
        memory_stat=f"total_inactive_file 0\nhierarchical_memory_limit {GIB}",
    )

    hidden = machine.headroom().levels[-1]

    assert (hidden.source, hidden.limit_bytes) == (LimitSource.CGROUP1_HIERARCHY, GIB)
    assert (hidden.used_bytes, hidden.headroom_bytes) == (None, None)


@pytest.mark.parametrize("own", [{}, {"memory_limit_in_bytes": 4 * GIB}, {"memory_limit_in_bytes": 2**63 - 4096}])
def test_usage_below_a_hidden_limit_counts_against_it(machine, own: dict[str, object]) -> None:
    machine.v1("/pods/one", shown="/pods/one")
    stat = f"total_inactive_file {MIB}\nhierarchical_memory_limit {GIB}"
    machine.put(V1, memory_usage_in_bytes=900 * MIB, memory_stat=stat, **own)

    found = machine.headroom()

    assert (found.value_bytes, found.source) == (GIB - 899 * MIB, LimitSource.CGROUP1_HIERARCHY)


def test_usage_of_the_highest_visible_cgroup_counts(machine) -> None:
    machine.v1("/pods/one/own", shown="/pods/one")
    machine.put(
        V1 + "/own",
        memory_usage_in_bytes=100 * MIB,
        memory_stat=f"total_inactive_file 0\nhierarchical_memory_limit {GIB}",
    )
    machine.put(V1, memory_usage_in_bytes=700 * MIB, memory_stat="total_inactive_file 0")

    assert machine.headroom().value_bytes == GIB - 700 * MIB


@pytest.mark.parametrize("error", [NO_ACCESS, OSError(errno.ENODEV, "gone"), OSError(errno.EMFILE, "no descriptor")])
def test_headroom_is_never_above_a_known_limit(machine, error: OSError) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_current=error, memory_stat=error)

    assert machine.headroom().value_bytes == GIB


def test_usage_is_read_at_every_call_and_limits_are_cached(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_current=0, memory_stat="inactive_file 0")
    machine.headroom(refresh=False)
    machine.reads.clear()
    machine.put(V2 + "/a", memory_max=5, memory_current=MIB)

    assert machine.headroom(refresh=False).value_bytes == GIB - MIB
    assert machine.reads == [V2 + "/a/memory.current", V2 + "/a/memory.stat", "/proc/meminfo"]


def test_usage_of_a_cgroup_with_two_limits_is_read_once(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=GIB, memory_high=GIB // 2, memory_current=0, memory_stat="inactive_file 0")

    found = machine.headroom()

    assert len(found.levels) == 2
    assert machine.reads.count(V2 + "/a/memory.current") == 1


def test_user_limit_counts_resident_memory_of_this_process(machine) -> None:
    machine.resident = 100 * MIB
    machine.environ["MEMTOOLS_LIMIT"] = "150 MiB"

    assert machine.headroom().value_bytes == 50 * MIB
    assert machine.headroom().source is LimitSource.ENVIRONMENT
    assert machine.headroom("120 MiB").value_bytes == 20 * MIB


def test_headroom_without_readable_files_is_none(machine) -> None:
    machine.files.clear()

    found = machine.headroom()

    assert found == Headroom(None, LimitSource.UNKNOWN, (), None)
    assert str(found) == "no headroom known"


def test_headroom_as_text_names_size_and_source(machine) -> None:
    assert str(machine.headroom()) == "32.0 GiB left (physical memory)"


def test_headroom_refuses_an_invalid_size(machine) -> None:
    with pytest.raises(ConfigError):
        machine.headroom("512Mb")


def test_headroom_of_the_real_machine_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMTOOLS_LIMIT", raising=False)

    value = headroom(refresh=True).value_bytes

    assert value is not None
    assert value > 0


def test_take_reading_has_usage_and_limit() -> None:
    reading = take_reading("1 TiB")

    assert reading.limit_bytes == 2**40
    assert 5 * MIB < reading.used_bytes < 2**40
    assert reading.at > 0
