"""What tells one process, cgroup and folder from another after the process has died.

All of it is Linux's; elsewhere each answer is "not known".

A file of its own because only the black box asks for it.
"""

import os
from typing import Final

from memtools._records import record
from memtools.readings._cgroups import (
    CgroupDirectory,
    KernelFiles,
    find_directories,
    read_usage,
    under_root,
    unescape_mount,
)

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_MOUNTS: Final = "/proc/self/mountinfo"
_LIMIT: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
# v2 counts the processes of the cgroups below, too; v1 those of this one only.
_KILLS: Final = {1: "memory.oom_control", 2: "memory.events"}
_OOM_KILL: Final = b"oom_kill"
_MIN_MOUNT_FIELDS: Final = 5


@record
class MemoryCgroup:
    """The memory cgroup of a process, and what tells it from a later one of the same path.

    Attributes:
        version: of the hierarchy, 1 or 2.
        directory: its path.
        inode: the number of that folder.
    """

    version: int
    directory: str
    inode: int

    def is_there(self) -> bool:
        """Return whether this process sees the same cgroup at that path."""
        return _inode(self.directory) == self.inode

    def held_bytes(self) -> int | None:
        """Return what its processes use, without caches that the kernel takes first; None where that is not known."""
        return read_usage(CgroupDirectory(self.version, self.directory, 0), KernelFiles(under_root("/"))).held_bytes

    def limit_bytes(self) -> int | None:
        """Return its own limit; None for none, and where that cannot be read."""
        return KernelFiles(under_root("/")).read_number(f"{self.directory}/{_LIMIT[self.version]}")

    def oom_kills(self) -> int | None:
        """Return how many of its processes the kernel has killed for want of memory; None where it does not tell."""
        return KernelFiles(under_root("/")).read_field(f"{self.directory}/{_KILLS[self.version]}", _OOM_KILL)


def own_memory_cgroup() -> MemoryCgroup | None:
    """Return the memory cgroup of this process; None where there is none or it is not visible."""
    for cgroup in find_directories(KernelFiles(under_root("/"))):
        inode = _inode(cgroup.directory)
        if cgroup.level == 0 and inode and os.path.exists(f"{cgroup.directory}/{_KILLS[cgroup.version]}"):
            return MemoryCgroup(cgroup.version, cgroup.directory, inode)
    return None


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except (OSError, ValueError):
        return 0


def boot_id() -> bytes:
    """Return the 16 bytes that the kernel has chosen at this start of the machine; zeros where it has none."""
    try:
        with open(_BOOT_ID, "rb", buffering=0) as file:
            return bytes.fromhex(file.read(64).decode("ascii").strip().replace("-", "")).ljust(16, b"\0")[:16]
    except (OSError, ValueError):
        return bytes(16)


def pid_namespace() -> int:
    """Return the number of the namespace in which this process has its id; 0 where there are no namespaces."""
    return _inode("/proc/self/ns/pid")


def file_system_of(path: str) -> str:
    """Return the type of the file system that holds a folder, such as `"tmpfs"` or `"overlay"`; empty if not known."""
    # Not by the device number: on btrfs that of a file is not that of its mount.
    found, longest = "", -1
    target = os.path.realpath(path)
    for line in (KernelFiles(under_root("/")).read(_MOUNTS) or b"").splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split()
        if len(fields) < _MIN_MOUNT_FIELDS or not after:
            continue
        point = os.fsdecode(unescape_mount(fields[4]))
        is_above = target == point or target.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= longest:  # of two mounts of one place, the later one is seen
            found, longest = after.split()[0].decode("ascii", "replace"), len(point)
    return found
