"""What tells processes, cgroups and folders apart: on this machine, and in scripted tables."""

import os
import sys
from pathlib import Path

import pytest

from memtools.readings import _traces
from memtools.readings._traces import MemoryCgroup, boot_id, file_system_of, own_memory_cgroup, pid_namespace

MOUNTS = rb"""
1 0 0:1 / / rw - overlay overlay rw
2 1 0:2 / /dev/shm rw - tmpfs none rw
3 1 0:3 / /srv rw - nfs4 host:/ rw
4 1 0:4 / /srv rw shared:1 - ext4 /dev/sda rw
5 1 0:5 / /with\040space rw - fuse.sshfs host: rw
6 1 0:6 / /broken
7 1
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "overlay"), ("/home", "overlay"), ("/dev/shm", "tmpfs"), ("/dev/shmx", "overlay"),
        ("/dev/shm/a", "tmpfs"), ("/srv/x", "ext4"), ("/with space/x", "fuse.sshfs"), ("/broken/x", "overlay"),
    ],
)  # fmt: skip
def test_file_system_is_that_of_the_nearest_mount(monkeypatch: pytest.MonkeyPatch, path: str, kind: str) -> None:
    monkeypatch.setattr(_traces, "under_root", lambda _: lambda _: MOUNTS)
    monkeypatch.setattr(os.path, "realpath", str)
    assert file_system_of(path) == kind


def test_file_system_without_a_table_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(_traces, "under_root", lambda _: absent)
    assert file_system_of("/") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has these")
def test_boot_and_namespace_are_known_on_linux() -> None:
    assert boot_id() != bytes(16)
    assert boot_id() == boot_id()
    assert pid_namespace() > 0


def test_boot_is_zero_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_traces, "_BOOT_ID", str(tmp_path / "none"))
    assert boot_id() == bytes(16)
    (tmp_path / "none").write_text("no id")
    assert boot_id() == bytes(16)


@pytest.mark.parametrize(
    ("version", "limit", "used", "kills"),
    [
        (1, "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
        (2, "memory.max", "memory.current", "memory.events"),
    ],
)
def test_figures_of_a_cgroup_are_read(tmp_path: Path, version: int, limit: str, used: str, kills: str) -> None:
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("700\n")
    prefix = "total_" if version == 1 else ""
    (tmp_path / "memory.stat").write_text(f"{prefix}inactive_file 100\n{prefix}active_file 0\n")
    (tmp_path / kills).write_text("under_oom 0\noom_kill 7\n")
    cgroup = MemoryCgroup(version, str(tmp_path), tmp_path.stat().st_ino)
    assert (cgroup.limit_bytes(), cgroup.held_bytes(), cgroup.oom_kills(), cgroup.is_there()) == (1000, 600, 7, True)
    gone = MemoryCgroup(version, str(tmp_path / "none"), 5)
    assert (gone.limit_bytes(), gone.held_bytes(), gone.oom_kills(), gone.is_there()) == (None, None, None, False)


def test_own_cgroup_is_there_or_not_known() -> None:
    own = own_memory_cgroup()
    assert own is None or own.is_there()
