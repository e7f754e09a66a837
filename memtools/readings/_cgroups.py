"""Memory limits and usage of the cgroups of this process.

Every cgroup counts, from the process's own up to the root: in cgroup v2, v1 and both at once, behind mounts that show a
part of the hierarchy, and in cgroup namespaces. Sources: cgroups(7), cgroup_namespaces(7), proc(5).
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from memtools._records import record
from memtools.readings._types import LimitSource

_OWN: Final = "/proc/self/cgroup"
_MOUNTS: Final = "/proc/self/mountinfo"
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")  # the kernel escapes space, tab, line feed, backslash and #
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV})  # ENODEV: the cgroup has just been removed
# No descriptor is left in the process or the system, or no memory for one: that passes, and says nothing of the file.
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

# v1 writes "no limit" as 2**63 rounded down to a page, v2 may write up to 2**64; no machine has half of the first.
_NO_MACHINE_BYTES: Final = 2**62

_LIMITS: Final = {
    1: (("memory.limit_in_bytes", LimitSource.CGROUP1),),
    2: (("memory.max", LimitSource.CGROUP2_MAX), ("memory.high", LimitSource.CGROUP2_HIGH)),
}
_USAGE: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
# v1 includes the children in the usage, but of memory.stat only in the `total_` lines.
_INACTIVE: Final = {1: b"total_inactive_file", 2: b"inactive_file"}
_ACTIVE: Final = {1: b"total_active_file", 2: b"active_file"}
_SLAB: Final = {1: b"total_slab_reclaimable", 2: b"slab_reclaimable"}  # v1 does not tell: it counts as none

# The share of active file cache that counts as headroom. The kernel takes these pages, too, before it kills a process;
# but among them are the code of the program and the files that it works with, which would come back at once.
_ACTIVE_SHARE: Final = 0.75
# The same of its own caches, of names and inodes: those of open files stay. MemAvailable leaves out half at most.
_SLAB_SHARE: Final = 0.5


@record
class CgroupDirectory:
    """One directory of cgroup files whose limits apply to this process.

    Attributes:
        version: of the cgroup hierarchy, 1 or 2.
        directory: the path.
        level: how many levels above the process's own cgroup; 0 is its own.
    """

    version: int
    directory: str
    level: int


@record
class CgroupLimit:
    """One limit of one cgroup.

    Attributes:
        limit_bytes: the limit.
        source: which kind of file sets it.
        path: the file.
        cgroup: the cgroup; None for an ancestor that no mount shows.
        below: the highest visible cgroup below such an ancestor, whose usage counts against the limit; else None.
    """

    limit_bytes: int
    source: LimitSource
    path: str
    cgroup: CgroupDirectory | None
    below: CgroupDirectory | None = None


@record
class CgroupUsage:
    """The usage of one cgroup at one moment, in bytes; None for what cannot be read.

    Attributes:
        used_bytes: what counts against its limits.
        inactive_file_bytes: the part of it that is file cache not used of late.
        active_file_bytes: the part of it that is file cache used of late; 0 where the kernel does not tell.
        slab_bytes: the part of it that is caches of the kernel which can shrink; 0 where the kernel does not tell.
    """

    used_bytes: int | None
    inactive_file_bytes: int | None
    active_file_bytes: int | None
    slab_bytes: int | None

    @property
    def held_bytes(self) -> int | None:
        """The part that the kernel cannot take back without hurting the processes; None if it is not known."""
        if self.used_bytes is None or self.inactive_file_bytes is None:
            return None
        cache = self.inactive_file_bytes + int(
            _ACTIVE_SHARE * (self.active_file_bytes or 0) + _SLAB_SHARE * (self.slab_bytes or 0)
        )
        # The figures are read one after the other: cache that grew in between must not make the usage negative.
        return max(self.used_bytes - cache, 0)


@record
class _Mount:
    version: int
    shown: tuple[str, ...]  # the part of the hierarchy that the mount shows; empty for all of it
    point: str


def under_root(root: str | os.PathLike[str]) -> Callable[[str], bytes]:
    """Return a function that reads a whole file by its absolute path below `root`."""
    prefix = os.fspath(root).rstrip("/")

    def read(path: str) -> bytes:
        with open(prefix + path, "rb", buffering=0) as file:
            return file.readall()

    return read


class KernelFiles:
    """Reader of the small files of the kernel that distinguishes absent from unreadable files.

    An absent file means that nothing is limited there. An unreadable file means that the limit is unknown, which must
    not be taken for "no limit", so its path is recorded.

    Args:
        read: returns a whole file by its absolute path, or raises OSError.

    Attributes:
        unreadable: paths of files that exist but could not be read or parsed.
        is_short: whether one could not be opened because no descriptor or no memory was left.
    """

    __slots__ = ("_read", "is_short", "unreadable")

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self.unreadable: list[str] = []
        self.is_short = False

    def read(self, path: str) -> bytes | None:
        """Return the content of the file; None if it is absent or unreadable."""
        try:
            return self._read(path)
        except OSError as error:
            if error.errno not in _ABSENT:
                self.unreadable.append(path)
                self.is_short = self.is_short or error.errno in _SHORTAGE
        except ValueError:  # a NUL in the path
            self.unreadable.append(path)
        return None

    def read_number(self, path: str) -> int | None:
        """Return the whole number in the file; None if it is absent, contains `max`, or is unreadable."""
        content = self.read(path)
        if content is None or content.strip() == b"max":
            return None
        return self._parsed(content, path)

    def read_field(self, path: str, name: bytes) -> int | None:
        """Return the number on the line `name number`; None if the file or the line is absent or unreadable."""
        return self.read_fields(path, (name,))[0]

    def read_fields(self, path: str, names: tuple[bytes, ...]) -> list[int | None]:
        """Return the numbers on the lines of these names, of one reading of the file."""
        content = self.read(path)
        found: dict[bytes, int | None] = {}
        for line in () if content is None else content.splitlines():
            label, _, number = line.partition(b" ")
            name = label.rstrip(b":")
            if name in names and name not in found:
                found[name] = self._parsed(number.removesuffix(b" kB"), path)
        return [found.get(name) for name in names]

    def _parsed(self, digits: bytes, path: str) -> int | None:
        digits = digits.strip()
        # int() would accept signs and underscores, and refuses thousands of digits; the kernel writes at most 20.
        if digits.isdigit() and len(digits) <= 64:
            return int(digits)
        self.unreadable.append(path)
        return None


def find_directories(files: KernelFiles) -> tuple[CgroupDirectory, ...]:
    """Return the visible memory cgroups of this process, its own first in each hierarchy."""
    own = _own_paths(files.read(_OWN) or b"")
    if not own:
        return ()

    mounts = _memory_mounts(files.read(_MOUNTS) or b"")
    found = [cgroup for version, path in sorted(own.items()) for cgroup in _visible_ancestors(version, path, mounts)]
    if not found:
        files.unreadable.append(_MOUNTS)  # the process is in a cgroup, and no mount shows its limits
    return tuple(found)


def find_limits(
    cgroups: Iterable[CgroupDirectory], files: KernelFiles, physical_bytes: int | None
) -> tuple[CgroupLimit, ...]:
    """Return every limit of `cgroups` that is not above the physical memory of the machine."""
    highest = _NO_MACHINE_BYTES if physical_bytes is None else physical_bytes
    accounted = list(_accounted(cgroups, files))
    limits = [limit for cgroup in accounted for limit in _limits_of(cgroup, files) if limit.limit_bytes <= highest]
    hidden = _hierarchical_limit([cgroup for cgroup in accounted if cgroup.version == 1], files)
    lowest = min((limit.limit_bytes for limit in limits if limit.source is LimitSource.CGROUP1), default=highest + 1)
    if hidden is not None and hidden.limit_bytes < lowest:
        limits.append(hidden)
    return tuple(limits)


def read_usage(cgroup: CgroupDirectory, files: KernelFiles) -> CgroupUsage:
    """Return the usage of a cgroup and its file cache."""
    version = cgroup.version
    used = files.read_number(f"{cgroup.directory}/{_USAGE[version]}")
    fields = _INACTIVE[version], _ACTIVE[version], _SLAB[version]
    inactive, active, slab = files.read_fields(f"{cgroup.directory}/memory.stat", fields)
    if inactive is None:
        return CgroupUsage(used, None, None, None)
    return CgroupUsage(used, inactive, active or 0, slab or 0)


def _own_paths(lines: bytes) -> dict[int, tuple[str, ...]]:
    # The path of the process's cgroup by version. Paths are relative to the cgroup namespace of the process: a cgroup
    # outside of it begins with `/..`.
    found: dict[int, tuple[str, ...]] = {}
    for line in lines.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if not path.startswith(b"/"):
            continue
        if number == b"0" and not controllers:
            found[2] = _split_path(path)
        elif b"memory" in controllers.split(b","):
            found[1] = _split_path(path)
    return found


def _memory_mounts(lines: bytes) -> list[_Mount]:
    return [mount for line in lines.split(b"\n") if b" - cgroup" in line and (mount := _mount(line)) is not None]


def _mount(line: bytes) -> _Mount | None:
    # 31 23 0:28 /shown /point rw,relatime shared:9 - cgroup cgroup rw,memory
    first, _, second = line.partition(b" - ")
    fields, kinds = first.split(b" "), second.split(b" ")
    if len(fields) < 6 or len(kinds) < 3:
        return None

    shown, point = _split_path(unescape_mount(fields[3])), os.fsdecode(unescape_mount(fields[4]))
    if kinds[0] == b"cgroup2":
        return _Mount(2, shown, point)
    if kinds[0] == b"cgroup" and b"memory" in kinds[-1].split(b","):
        return _Mount(1, shown, point)
    return None


def _visible_ancestors(version: int, own: tuple[str, ...], mounts: list[_Mount]) -> list[CgroupDirectory]:
    # Take the mount that shows most levels; of equal ones the last, which may be mounted over the earlier ones.
    found = [_ancestors(own, mount) for mount in reversed(mounts) if mount.version == version]
    return max(found, key=len) if found else []


def _ancestors(own: tuple[str, ...], mount: _Mount) -> list[CgroupDirectory]:
    below = own[len(mount.shown) :]
    if own[: len(mount.shown)] == mount.shown and ".." not in below:
        levels = range(len(below) + 1)
        directories = ["/".join((mount.point.rstrip("/"), *below[: len(below) - level])) for level in levels]
        return [CgroupDirectory(mount.version, *found) for found in zip(directories, levels, strict=True)]

    # A mount from outside of the namespace, which shows an ancestor: the names on the way down to the process are
    # hidden, but the limits of the ancestor apply. Following `..` in the path would lead to other cgroups.
    levels_up = own.count("..")
    if set(mount.shown) == {".."} and len(mount.shown) > levels_up:
        return [CgroupDirectory(mount.version, mount.point, len(mount.shown) - levels_up + len(own) - levels_up)]
    return []


def _split_path(path: bytes) -> tuple[str, ...]:
    return tuple(part for part in os.fsdecode(path).split("/") if part)


def unescape_mount(field: bytes) -> bytes:
    """Return a field of a table of mounts without the kernel's escapes."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _accounted(cgroups: Iterable[CgroupDirectory], files: KernelFiles) -> Iterator[CgroupDirectory]:
    # Before Linux 5.11 a v1 cgroup without use_hierarchy did not count its children, and neither did its ancestors.
    is_cut = False
    for cgroup in cgroups:
        if cgroup.version == 1 and cgroup.level > 0:
            is_cut = is_cut or files.read_number(f"{cgroup.directory}/memory.use_hierarchy") == 0
            if is_cut:
                continue
        yield cgroup


def _limits_of(cgroup: CgroupDirectory, files: KernelFiles) -> Iterator[CgroupLimit]:
    for name, source in _LIMITS[cgroup.version]:
        path = f"{cgroup.directory}/{name}"
        limit = files.read_number(path)
        if limit is not None:
            yield CgroupLimit(limit, source, path, cgroup)


def _hierarchical_limit(cgroups: list[CgroupDirectory], files: KernelFiles) -> CgroupLimit | None:
    # In a container the ancestors are often not mounted; v1 at least reports the lowest of their limits.
    for cgroup in cgroups:
        path = f"{cgroup.directory}/memory.stat"
        limit = files.read_field(path, b"hierarchical_memory_limit")
        if limit is not None:
            return CgroupLimit(limit, LimitSource.CGROUP1_HIERARCHY, path, None, cgroups[-1])
    return None
