"""Where the cgroups of this process lie in the file system, from its own up to the root.

Covers: cgroup v2, v1 and both at once; mounts that show only a part of the tree; cgroup namespaces; octal escapes.
Leaves to others: what the files in these places say (`_cgroup_walls`).

/proc/self/cgroup names our cgroup in each hierarchy, /proc/self/mountinfo where a hierarchy is mounted and which part
of it. Both are relative to our cgroup namespace: what lies outside of it begins with `/..`. Sources: cgroups(7),
cgroup_namespaces(7), proc(5).
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator

from memtools._records import record
from memtools.readings._types import LimitSource

# Read the small files of the kernel, and tell "is not there" from "may not be read".
#
# A file that is not there says that nothing is limited there. One that cannot be read says nothing, and what nobody said
# must not be taken for "no limit": it is kept as a gap and shown in the result.

# ENODEV: a file of a cgroup that was removed while we held it open.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV})


def under_root(root: str | os.PathLike[str]) -> Callable[[str], bytes]:
    """Return a function that reads a whole file by its absolute path below `root`."""
    prefix = os.fspath(root).rstrip("/")

    def read(path: str) -> bytes:
        with open(prefix + path, "rb", buffering=0) as file:
            return file.readall()

    return read


class KernelFiles:
    """The files of one walk, and the gaps that it met.

    Attributes:
        gaps: paths of files that exist and could not be read or understood.
    """

    __slots__ = ("_read", "unreadable")

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self.unreadable: list[str] = []

    def read(self, path: str) -> bytes | None:
        """Return what the file holds; None where it is absent, or is a gap."""
        try:
            return self._read(path)
        except OSError as error:
            if error.errno not in _ABSENT:
                self.unreadable.append(path)
        except ValueError:  # a NUL in the path
            self.unreadable.append(path)
        return None

    def read_number(self, path: str) -> int | None:
        """Return the whole number that the file holds; None where it is absent, says `max`, or is a gap."""
        content = self.read(path)
        if content is None or content.strip() == b"max":
            return None
        return self._parsed(content, path)

    def read_field(self, path: str, label: bytes) -> int | None:
        """Return the number on the line `label number`; None where the file or the line is absent, or is a gap."""
        content = self.read(path)
        if content is None:
            return None
        for line in content.splitlines():
            name, _, number = line.partition(b" ")
            if name.rstrip(b":") == label:
                return self._parsed(number.removesuffix(b" kB"), path)
        return None

    def _parsed(self, digits: bytes, path: str) -> int | None:
        digits = digits.strip()
        # int() would take signs and underscores as well, and refuses thousands of digits; the kernel writes at most 20.
        if digits.isdigit() and len(digits) <= 64:
            return int(digits)
        self.unreadable.append(path)
        return None


_OWN = "/proc/self/cgroup"
_MOUNTS = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")  # the kernel writes blank, tab, line feed, backslash and # so


@record
class CgroupDirectory:
    """One directory of cgroup files that holds for this process.

    Attributes:
        version: of the cgroup hierarchy, 1 or 2.
        directory: where its files are.
        level: how many levels above our own cgroup; 0 is our own.
    """

    version: int
    directory: str
    level: int


@record
class _Mount:
    version: int
    shown: tuple[str, ...]  # the part of the hierarchy that can be seen here; empty for all of it
    point: str


def find_directories(tree: KernelFiles) -> tuple[CgroupDirectory, ...]:
    """Return the memory cgroups of this process that can be seen, our own first in each hierarchy."""
    own = _own_paths(tree.read(_OWN) or b"")
    if not own:
        return ()

    mounts = _memory_mounts(tree.read(_MOUNTS) or b"")
    places = [place for version, path in sorted(own.items()) for place in _visible_ancestors(version, path, mounts)]
    if not places:
        tree.unreadable.append(_MOUNTS)  # we are in a cgroup, and no mount shows which limits it has
    return tuple(places)


def _own_paths(lines: bytes) -> dict[int, tuple[str, ...]]:
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
    place, _, kind = line.partition(b" - ")
    places, kinds = place.split(b" "), kind.split(b" ")
    if len(places) < 6 or len(kinds) < 3:
        return None

    shown, point = _split_path(_unescape(places[3])), os.fsdecode(_unescape(places[4]))
    if kinds[0] == b"cgroup2":
        return _Mount(2, shown, point)
    if kinds[0] == b"cgroup" and b"memory" in kinds[-1].split(b","):
        return _Mount(1, shown, point)
    return None


def _visible_ancestors(version: int, own: tuple[str, ...], mounts: list[_Mount]) -> list[CgroupDirectory]:
    # The mount that shows most levels; of equals the last, for it may lie over the others.
    ladders = [_ancestors(own, mount) for mount in reversed(mounts) if mount.version == version]
    return max(ladders, key=len) if ladders else []


def _ancestors(own: tuple[str, ...], mount: _Mount) -> list[CgroupDirectory]:
    below = own[len(mount.shown) :]
    if own[: len(mount.shown)] == mount.shown and ".." not in below:
        heights = range(len(below) + 1)
        directories = ["/".join((mount.point.rstrip("/"), *below[: len(below) - up])) for up in heights]
        return [CgroupDirectory(mount.version, *found) for found in zip(directories, heights, strict=True)]

    # A mount from outside of our namespace, which shows an ancestor: its names on the way down to us are hidden, but
    # what it says of itself holds for us. Following `..` in the path would lead to cgroups that are not ours.
    climbs = own.count("..")
    if set(mount.shown) == {".."} and len(mount.shown) > climbs:
        return [CgroupDirectory(mount.version, mount.point, len(mount.shown) - climbs + len(own) - climbs)]
    return []


def _split_path(path: bytes) -> tuple[str, ...]:
    return tuple(part for part in os.fsdecode(path).split("/") if part)


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


# What the cgroups of this process allow, and how much of it is taken.
#
# Covers: the limits of each level, v1 and v2; the usage that counts against them.
# Leaves to others: where the levels are (`_cgroup_places`), which limit is the least (`_limit_reader`).

# v1 says "none" with 2**63 rounded down to a page, v2 may say up to 2**64; no machine has half of the first.
_NO_MACHINE_BYTES = 2**62

_LIMITS = {
    1: (("memory.limit_in_bytes", LimitSource.CGROUP1),),
    2: (("memory.max", LimitSource.CGROUP2_MAX), ("memory.high", LimitSource.CGROUP2_HIGH)),
}
_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
# v1 counts its children in the usage, but only in the `total_` lines of memory.stat.
_INACTIVE = {1: b"total_inactive_file", 2: b"inactive_file"}


@record
class CgroupLimit:
    """One limit of one cgroup.

    Attributes:
        place: where it stands; None for one that stands above what can be seen.
    """

    limit_bytes: int
    source: LimitSource
    path: str
    cgroup: CgroupDirectory | None


def find_limits(places: Iterable[CgroupDirectory], tree: KernelFiles, physical_bytes: int | None) -> tuple[CgroupLimit, ...]:
    """Return every limit in `places` that could ever be felt on a machine with `physical_bytes`."""
    ceiling = _NO_MACHINE_BYTES if physical_bytes is None else physical_bytes
    counted = list(_accounted(places, tree))
    walls = [wall for place in counted for wall in _limits_of(place, tree) if wall.limit_bytes <= ceiling]
    hidden = _hierarchical_limit([place for place in counted if place.version == 1], tree)
    least = min((wall.limit_bytes for wall in walls if wall.source is LimitSource.CGROUP1), default=ceiling + 1)
    if hidden is not None and hidden.limit_bytes < least:
        walls.append(hidden)
    return tuple(walls)


def usage_bytes(place: CgroupDirectory, tree: KernelFiles) -> tuple[int | None, int | None]:
    """Return what is charged to a cgroup, and how much of it is file cache that the kernel drops first, in bytes."""
    used = tree.read_number(f"{place.directory}/{_USAGE[place.version]}")
    inactive = tree.read_field(f"{place.directory}/memory.stat", _INACTIVE[place.version])
    return used, inactive


def _accounted(places: Iterable[CgroupDirectory], tree: KernelFiles) -> Iterator[CgroupDirectory]:
    # Before Linux 5.11 a v1 cgroup without use_hierarchy did not count its children, and neither did those above it.
    is_cut = False
    for place in places:
        if place.version == 1 and place.level > 0:
            is_cut = is_cut or tree.read_number(f"{place.directory}/memory.use_hierarchy") == 0
            if is_cut:
                continue
        yield place


def _limits_of(place: CgroupDirectory, tree: KernelFiles) -> Iterator[CgroupLimit]:
    for name, source in _LIMITS[place.version]:
        path = f"{place.directory}/{name}"
        limit = tree.read_number(path)
        if limit is not None:
            yield CgroupLimit(limit, source, path, place)


def _hierarchical_limit(places: list[CgroupDirectory], tree: KernelFiles) -> CgroupLimit | None:
    # In a container the ancestors are often not mounted; v1 at least tells the least of their limits.
    for place in places:
        path = f"{place.directory}/memory.stat"
        limit = tree.read_field(path, b"hierarchical_memory_limit")
        if limit is not None:
            return CgroupLimit(limit, LimitSource.CGROUP1_HIERARCHY, path, None)
    return None
