"""Directories of the cgroups of a process: hierarchies, partial mounts, namespaces, escapes."""

import errno

import pytest

from memtools.readings._cgroups import CgroupDirectory

V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("own", "shown", "expected"),
    [
        pytest.param("/", "/", [(V2, 0)], id="the root, or the whole of a private namespace"),
        pytest.param("/a", "/", [(V2 + "/a", 0), (V2, 1)], id="one below"),
        pytest.param("/a/b", "/", [(V2 + "/a/b", 0), (V2 + "/a", 1), (V2, 2)], id="two below"),
        pytest.param("/docker/abc", "/docker/abc", [(V2, 0)], id="a container's own cgroup mounted"),
        pytest.param("/docker/abc/in", "/docker/abc", [(V2 + "/in", 0), (V2, 1)], id="below the container's cgroup"),
        pytest.param("/docker/abcd", "/docker/abc", [], id="another cgroup whose name starts alike"),
        pytest.param("/x", "/docker/abc", [], id="a mount that does not show the cgroup"),
        pytest.param("/", "/docker", [], id="a mount that shows only the children"),
        pytest.param("/", "/..", [(V2, 1)], id="the namespace has a parent, which alone is shown"),
        pytest.param("/a/b", "/../..", [(V2, 4)], id="a mount from two above the namespace"),
        pytest.param("/../sib", "/..", [(V2 + "/sib", 0), (V2, 1)], id="moved beside the namespace, and shown"),
        pytest.param("/../sib", "/../..", [(V2, 2)], id="moved beside the namespace, the way down hidden"),
        pytest.param("/../sib", "/", [], id="moved beside the namespace, and not shown"),
        pytest.param("/", "/../other", [], id="a mount that shows a cousin"),
        pytest.param("/a//b/", "/", [(V2 + "/a/b", 0), (V2 + "/a", 1), (V2, 2)], id="superfluous slashes"),
    ],
)
def test_directories_are_those_that_a_mount_shows(
    machine, own: str, shown: str, expected: list[tuple[str, int]]
) -> None:
    machine.v2(own, shown=shown)

    assert machine.directories() == tuple(CgroupDirectory(2, directory, level) for directory, level in expected)


def test_v1_directory_is_found_by_its_memory_controller(machine) -> None:
    machine.files["/proc/self/cgroup"] = b"5:cpuset:/c\n4:cpu,memory:/m\n3:memoryless:/x\n1:name=systemd:/s\n0::/\n"
    machine.files["/proc/self/mountinfo"] = (
        b"30 25 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        b"31 25 0:28 / /sys/fs/cgroup/cpu,memory rw shared:8 master:2 - cgroup cgroup rw,cpu,memory\n"
        b"32 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    )

    assert machine.directories() == (
        CgroupDirectory(1, V2 + "/cpu,memory/m", 0),
        CgroupDirectory(1, V2 + "/cpu,memory", 1),
    )


def test_hybrid_machine_has_directories_in_both_hierarchies(machine) -> None:
    machine.v1("/job")
    machine.v2("/unit", point="/sys/fs/cgroup/unified")

    assert machine.directories() == (
        CgroupDirectory(1, V1 + "/job", 0),
        CgroupDirectory(1, V1, 1),
        CgroupDirectory(2, V2 + "/unified/unit", 0),
        CgroupDirectory(2, V2 + "/unified", 1),
    )


def test_escapes_of_the_mount_table_are_decoded(machine) -> None:
    machine.v2("/my job\\x/in", shown="/my\\040job\\134x", point="/mnt/with\\011tab\\043")

    assert [cgroup.directory for cgroup in machine.directories()] == ["/mnt/with\ttab#/in", "/mnt/with\ttab#"]


def test_names_that_are_not_utf_8_are_kept(machine) -> None:
    machine.files["/proc/self/cgroup"] = b"0::/caf\xe9\n"
    machine.files["/proc/self/mountinfo"] = b"35 24 0:30 / /c rw - cgroup2 cgroup2 rw\n"

    assert machine.directories()[0].directory.encode("utf-8", "surrogateescape") == b"/c/caf\xe9"


def test_colon_in_a_name_is_part_of_the_name(machine) -> None:
    machine.v2("/a:b")

    assert machine.directories()[0].directory == V2 + "/a:b"


def test_mount_that_shows_most_levels_is_used(machine) -> None:
    machine.v2("/docker/abc", shown="/docker/abc")
    machine.files["/proc/self/mountinfo"] += b"40 24 0:30 / /host/cgroup rw - cgroup2 cgroup2 rw\n"

    assert [cgroup.directory for cgroup in machine.directories()] == [
        "/host/cgroup/docker/abc",
        "/host/cgroup/docker",
        "/host/cgroup",
    ]


def test_later_of_two_equal_mounts_is_used(machine) -> None:
    machine.v2("/a")
    machine.files["/proc/self/mountinfo"] += b"40 24 0:30 / /second rw - cgroup2 cgroup2 rw\n"

    assert machine.directories()[0].directory == "/second/a"


@pytest.mark.parametrize("lines", [b"", b"\n\n", b"garbage\n", b"0::\n", b"::\n", b"0:/\n", b"\0\0\n"])
def test_cgroup_list_that_cannot_be_parsed_has_no_directory(machine, lines: bytes) -> None:
    machine.v2("/a")
    machine.files["/proc/self/cgroup"] = lines

    assert machine.directories() == ()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" - cgroup2\n",
        b"35 24 - cgroup2 cgroup2 rw\n",
        b"35 24 0:30 / /sys/fs/cgroup rw - cgroup2\n",
        b"35 24 0:30 / /sys/fs/cgroup rw cgroup2 cgroup2 rw\n",
        b"35 24 0:30 / /mnt/a - cgroup2 rw - ext4 /dev/sda rw\n",
    ],
)
def test_mount_table_without_the_cgroup_is_a_gap(machine, line: bytes) -> None:
    machine.v2("/a")
    machine.files["/proc/self/mountinfo"] = line

    assert machine.directories() == ()
    assert machine.limit().gaps == ("/proc/self/mountinfo",)


def test_machine_without_cgroups_has_no_directory_and_no_gap(machine) -> None:
    assert machine.directories() == ()
    assert machine.limit().gaps == ()


def test_unreadable_cgroup_list_is_a_gap(machine) -> None:
    machine.files["/proc/self/cgroup"] = PermissionError(errno.EACCES, "no")

    assert machine.directories() == ()
    assert machine.limit().gaps == ("/proc/self/cgroup",)
