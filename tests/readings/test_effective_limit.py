"""The effective limit: of the user, the environment, all cgroup levels, the machine."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.errors import ConfigError
from memtools.readings import Limit, LimitSource, effective_limit, physical_bytes
from memtools.readings._cgroups import under_root
from memtools.readings._limits import LimitReader

GIB = 2**30
V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/memory"
NO_ACCESS = PermissionError(errno.EACCES, "Permission denied")


def test_lowest_limit_of_all_levels_is_effective(machine) -> None:
    machine.v2("/a/b")
    machine.put(V2 + "/a/b", memory_max=8 * GIB)
    machine.put(V2 + "/a", memory_max=2 * GIB)

    assert machine.limit() == Limit(2 * GIB, LimitSource.CGROUP2_MAX, V2 + "/a/memory.max", 1)


def test_nearest_of_equal_limits_is_named(machine) -> None:
    machine.v2("/a/b")
    machine.put(V2 + "/a/b", memory_max=GIB)
    machine.put(V2 + "/a", memory_max=GIB)

    assert machine.limit().level == 0


def test_memory_high_below_memory_max_is_effective(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=4 * GIB, memory_high=3 * GIB)

    assert machine.limit() == Limit(3 * GIB, LimitSource.CGROUP2_HIGH, V2 + "/a/memory.high", 0)


def test_v1_limit_of_an_ancestor_is_found(machine) -> None:
    machine.v1("/a/b")
    machine.put(V1 + "/a/b", memory_limit_in_bytes=9223372036854771712)
    machine.put(V1 + "/a", memory_limit_in_bytes=GIB)
    machine.put(V1, memory_limit_in_bytes=9223372036854771712)

    assert machine.limit() == Limit(GIB, LimitSource.CGROUP1, V1 + "/a/memory.limit_in_bytes", 1)


def test_lower_hierarchy_of_a_hybrid_machine_is_effective(machine) -> None:
    machine.v1("/a")
    machine.v2("/u", point=V2 + "/unified")
    machine.put(V1 + "/a", memory_limit_in_bytes=3 * GIB)
    machine.put(V2 + "/unified/u", memory_max=2 * GIB)

    assert machine.limit().source is LimitSource.CGROUP2_MAX

    machine.put(V1 + "/a", memory_limit_in_bytes=GIB)
    assert machine.limit().source is LimitSource.CGROUP1


def test_v1_reports_the_limit_of_an_unmounted_ancestor(machine) -> None:
    machine.v1("/docker/abc", shown="/docker/abc")
    machine.put(V1, memory_limit_in_bytes=4 * GIB, memory_stat=f"cache 1\nhierarchical_memory_limit {GIB}")

    assert machine.limit() == Limit(GIB, LimitSource.CGROUP1_HIERARCHY, V1 + "/memory.stat", None)


def test_hierarchical_limit_of_a_visible_ancestor_is_ignored(machine) -> None:
    machine.v1("/a")
    machine.put(V1 + "/a", memory_limit_in_bytes=4 * GIB, memory_stat=f"hierarchical_memory_limit {GIB}")
    machine.put(V1, memory_limit_in_bytes=GIB)

    assert machine.limit().source is LimitSource.CGROUP1
    assert len(machine.headroom().levels) == 2


def test_v1_ancestor_without_use_hierarchy_is_no_limit(machine) -> None:
    machine.v1("/a/b/c")
    machine.put(V1 + "/a/b/c", memory_limit_in_bytes=8 * GIB, memory_use_hierarchy=0)
    machine.put(V1 + "/a/b", memory_limit_in_bytes=4 * GIB, memory_use_hierarchy=1)
    machine.put(V1 + "/a", memory_limit_in_bytes=2 * GIB, memory_use_hierarchy=0)
    machine.put(V1, memory_limit_in_bytes=GIB, memory_use_hierarchy=1)

    assert machine.limit().value_bytes == 4 * GIB


@pytest.mark.parametrize("sentinel", [9223372036854771712, 9223372036854710272, 2**63 - 1, 2**64 - 1, 10**30, 2**62])
@pytest.mark.parametrize("is_host_known", [True, False])
def test_sentinel_for_no_limit_is_no_limit(machine, sentinel: int, is_host_known: bool) -> None:
    machine.v1("/a")
    machine.put(V1 + "/a", memory_limit_in_bytes=sentinel + (sentinel == 2**62))
    if not is_host_known:
        del machine.files["/proc/meminfo"]

    expected = Limit(64 * GIB, LimitSource.PHYSICAL) if is_host_known else Limit(None, LimitSource.UNKNOWN)
    assert machine.limit() == expected


@pytest.mark.parametrize(
    ("limit", "source"),
    [(64 * GIB + 1, LimitSource.PHYSICAL), (64 * GIB, LimitSource.CGROUP2_MAX), ("max", LimitSource.PHYSICAL)],
)
def test_limit_above_physical_memory_is_ignored(machine, limit: object, source: LimitSource) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=limit)

    assert (machine.limit().value_bytes, machine.limit().source) == (64 * GIB, source)


def test_zero_is_a_real_limit(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=0)

    assert machine.limit().value_bytes == 0


@pytest.mark.parametrize("content", [b"", b"-1\n", b"abc\n", b"1\x00\n", b" \n", NO_ACCESS, OSError(errno.EIO, "io")])
def test_unreadable_level_is_a_gap_and_the_scan_goes_on(machine, content: bytes | OSError) -> None:
    machine.v2("/a/b")
    machine.put(V2 + "/a/b", memory_max=content, memory_high="max")
    machine.put(V2 + "/a", memory_max=2 * GIB)

    assert machine.limit() == Limit(
        2 * GIB, LimitSource.CGROUP2_MAX, V2 + "/a/memory.max", 1, gaps=(V2 + "/a/b/memory.max",)
    )


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.ENOTDIR])
def test_level_removed_during_the_scan_is_no_gap(machine, number: int) -> None:
    machine.v2("/a/b/c")
    machine.put(V2 + "/a/b/c", memory_max=4 * GIB)
    machine.put(V2 + "/a/b", memory_max=OSError(number, "gone"), memory_high=OSError(number, "gone"))
    machine.put(V2 + "/a", memory_max=2 * GIB)

    assert machine.limit() == Limit(2 * GIB, LimitSource.CGROUP2_MAX, V2 + "/a/memory.max", 2)


def test_limit_without_readable_files_is_none(machine) -> None:
    machine.v2("/a")
    machine.files["/proc/meminfo"] = NO_ACCESS
    machine.put(V2 + "/a", memory_max=NO_ACCESS)

    limit = machine.limit()

    assert (limit.value_bytes, limit.source, limit.gaps) == (None, LimitSource.UNKNOWN, (V2 + "/a/memory.max",))


def test_user_limit_precedes_environment_and_system(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=2 * GIB)
    assert machine.limit().source is LimitSource.CGROUP2_MAX

    machine.environ["MEMTOOLS_LIMIT"] = "3 GiB"
    assert machine.limit() == Limit(3 * GIB, LimitSource.ENVIRONMENT)

    assert machine.limit("1 GiB") == Limit(GIB, LimitSource.USER)
    assert machine.limit(0) == Limit(0, LimitSource.USER)


def test_environment_is_read_at_every_call(machine) -> None:
    machine.environ["MEMTOOLS_LIMIT"] = "1 GiB"
    assert machine.limit(refresh=False).value_bytes == GIB

    machine.environ["MEMTOOLS_LIMIT"] = "2 GiB"
    assert machine.limit(refresh=False).value_bytes == 2 * GIB

    machine.environ["MEMTOOLS_LIMIT"] = "  "
    assert machine.limit(refresh=False).source is LimitSource.PHYSICAL


def test_share_is_of_the_system_limit(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=2 * GIB)
    machine.environ["MEMTOOLS_LIMIT"] = "25%"

    assert machine.limit().value_bytes == GIB // 2
    assert machine.limit("50%").value_bytes == GIB


@pytest.mark.parametrize("text", ["512Mb", "512m", "-1", "nan", "101%", "lots", "1e-9"])
def test_invalid_environment_variable_is_refused_by_name(machine, text: str) -> None:
    machine.environ["MEMTOOLS_LIMIT"] = text

    with pytest.raises(ConfigError, match="MEMTOOLS_LIMIT"):
        machine.limit()


@pytest.mark.parametrize("chosen", [-1, True, 1.5, float("inf"), "512Mb", "", b"5", []])
def test_invalid_limit_is_refused(machine, chosen: object) -> None:
    with pytest.raises(ConfigError, match="limit="):
        machine.limit(chosen)


def test_share_of_an_unknown_limit_is_refused(machine) -> None:
    del machine.files["/proc/meminfo"]

    with pytest.raises(ConfigError, match="no limit is known"):
        machine.limit("50%")


def test_scan_is_cached_for_half_a_minute(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=2 * GIB)
    machine.limit(refresh=False)
    machine.put(V2 + "/a", memory_max=GIB)
    machine.reads.clear()

    machine.now = 29.9
    assert machine.limit(refresh=False).value_bytes == 2 * GIB
    assert machine.reads == []

    machine.now = 30.0
    assert machine.limit(refresh=False).value_bytes == GIB


def test_refresh_scans_at_once(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=2 * GIB)
    machine.limit(refresh=False)
    machine.put(V2 + "/a", memory_max=GIB)

    assert machine.limit(refresh=True).value_bytes == GIB
    assert machine.limit(refresh=False).value_bytes == GIB


def test_process_that_is_moved_finds_its_new_cgroup(machine) -> None:
    machine.v2("/a")
    machine.put(V2 + "/a", memory_max=2 * GIB)
    machine.put(V2 + "/b", memory_max=GIB)
    assert machine.limit().value_bytes == 2 * GIB

    machine.files["/proc/self/cgroup"] = b"0::/b\n"
    del machine.files[V2 + "/a/memory.max"]

    assert machine.limit().path == V2 + "/b/memory.max"


def test_removed_cgroup_leaves_the_limits_above_it(machine) -> None:
    machine.v2("/a/b")
    machine.put(V2 + "/a/b", memory_max=GIB)
    machine.put(V2 + "/a", memory_max=2 * GIB)
    assert machine.limit().value_bytes == GIB

    del machine.files[V2 + "/a/b/memory.max"]

    assert machine.limit().value_bytes == 2 * GIB


def test_invalidated_reader_scans_again(machine) -> None:
    machine.limit(refresh=False)
    machine.reads.clear()

    machine.reader.invalidate()
    machine.limit(refresh=False)

    assert "/proc/self/cgroup" in machine.reads


@given(st.lists(st.one_of(st.just("max"), st.integers(0, 2**40), st.integers(2**60, 2**70)), min_size=1, max_size=8))
def test_effective_limit_is_the_lowest_of_all_real_limits(tmp_path_factory, limits: list[object]) -> None:
    root = tmp_path_factory.mktemp("root", numbered=True)
    _write_cgroups(root, limits)
    reader = _reader_of(root, physical=2**36)

    real = [limit for limit in limits if isinstance(limit, int) and limit <= 2**36]

    assert reader.limit().value_bytes == min([*real, 2**36])
    assert reader.limit().level == ((real and limits.index(min(real))) or (0 if real else None))


def _reader_of(root: Path, *, physical: int | None) -> LimitReader:
    return LimitReader(
        under_root(root),
        clock=lambda: 0.0,
        physical=lambda: physical,
        available=lambda: None,
        resident=lambda: 0,
        environ={},
    )


def _write_cgroups(root: Path, limits: list[object]) -> None:
    """Write a v2 file system whose limits are `limits`, that of the own cgroup first, the root's last."""
    names = [f"level{number}" for number in range(len(limits) - 1)]
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::/{'/'.join(names)}\n")
    (root / "proc/self/mountinfo").write_text("35 24 0:30 / /cg rw - cgroup2 cgroup2 rw\n")
    for up, limit in enumerate(limits):
        directory = root.joinpath("cg", *names[: len(names) - up])
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(f"{limit}\n")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_limit_stays_known_while_no_descriptor_is_left(machine, number: int) -> None:
    machine.v2("/a")
    machine.put("/sys/fs/cgroup/a", memory_max=GIB)
    known = machine.limit()
    whole = machine.files.copy()
    machine.files = dict.fromkeys(whole, OSError(number, os.strerror(number)))

    without = machine.limit()
    machine.files = whole
    machine.put("/sys/fs/cgroup/a", memory_max=2 * GIB)
    machine.now += 1.0

    assert (without.value_bytes, without.source) == (known.value_bytes, known.source)
    assert without.gaps == ("/proc/self/cgroup",)
    assert machine.limit(refresh=False) == Limit(2 * GIB, LimitSource.CGROUP2_MAX, "/sys/fs/cgroup/a/memory.max", 0)


def test_first_limit_without_a_descriptor_names_the_gap(machine) -> None:
    machine.v2("/a")
    machine.put("/sys/fs/cgroup/a", memory_max=GIB)
    machine.files["/proc/self/cgroup"] = OSError(errno.EMFILE, "Too many open files")

    assert machine.limit() == Limit(64 * GIB, LimitSource.PHYSICAL, gaps=("/proc/self/cgroup",))


def test_limit_of_the_real_machine_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMTOOLS_LIMIT", raising=False)
    physical = physical_bytes()
    assert physical is not None

    limit = effective_limit(refresh=True)

    assert limit.value_bytes is not None
    assert 0 <= limit.value_bytes <= physical


def test_real_environment_is_read_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_LIMIT", "123 MiB")

    assert effective_limit() == Limit(123 * 2**20, LimitSource.ENVIRONMENT)
    assert effective_limit("1 MiB").source is LimitSource.USER


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Limit(None, LimitSource.UNKNOWN), "no limit known"),
        (Limit(None, LimitSource.UNKNOWN, gaps=("/x", "/y")), "no limit known; 2 files could not be read"),
        (Limit(GIB, LimitSource.USER), "1.0 GiB (user)"),
        (Limit(GIB, LimitSource.CGROUP2_MAX, "/x", 0), "1.0 GiB (cgroup2 memory.max)"),
        (Limit(GIB, LimitSource.CGROUP2_MAX, "/x", 1), "1.0 GiB (cgroup2 memory.max, 1 level up)"),
        (Limit(GIB, LimitSource.CGROUP1, "/x", 2), "1.0 GiB (cgroup1 limit_in_bytes, 2 levels up)"),
        (Limit(GIB, LimitSource.PHYSICAL, gaps=("/x",)), "1.0 GiB (physical memory; 1 file could not be read)"),
    ],
)
def test_limit_as_text_names_size_and_source(limit: Limit, text: str) -> None:
    assert str(limit) == text


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read every file")
def test_file_without_read_permission_is_a_gap(tmp_path: Path) -> None:
    _write_cgroups(tmp_path, [GIB, 2 * GIB])
    (tmp_path / "cg/level0/memory.max").chmod(0)
    reader = _reader_of(tmp_path, physical=None)

    assert reader.limit().value_bytes == 2 * GIB
    assert reader.limit().gaps == ("/cg/level0/memory.max",)
