"""Where the cgroups of this process lie in the file system, from its own up to the root.

Covers: cgroup v2, v1 and both at once; mounts that show only a part of the tree; cgroup namespaces; octal escapes.
Leaves to others: what the files in these places say (`_cgroup_walls`).

/proc/self/cgroup names our cgroup in each hierarchy, /proc/self/mountinfo where a hierarchy is mounted and which part
of it. Both are relative to our cgroup namespace: what lies outside of it begins with `/..`. Sources: cgroups(7),
cgroup_namespaces(7), proc(5).
"""

import os
import re

from memtools.readings._tree import Tree
from memtools.records import record

_OWN = "/proc/self/cgroup"
_MOUNTS = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")  # the kernel writes blank, tab, line feed, backslash and # so


@record
class Place:
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


def find_places(tree: Tree) -> tuple[Place, ...]:
    """Return the memory cgroups of this process that can be seen, our own first in each hierarchy."""
    own = _own_paths(tree.content(_OWN) or b"")
    if not own:
        return ()

    mounts = _memory_mounts(tree.content(_MOUNTS) or b"")
    places = [place for version, path in sorted(own.items()) for place in _ladder(version, path, mounts)]
    if not places:
        tree.gaps.append(_MOUNTS)  # we are in a cgroup, and no mount shows which limits it has
    return tuple(places)


def _own_paths(lines: bytes) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for line in lines.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if not path.startswith(b"/"):
            continue
        if number == b"0" and not controllers:
            found[2] = _parts(path)
        elif b"memory" in controllers.split(b","):
            found[1] = _parts(path)
    return found


def _memory_mounts(lines: bytes) -> list[_Mount]:
    return [mount for line in lines.split(b"\n") if b" - cgroup" in line and (mount := _mount(line)) is not None]


def _mount(line: bytes) -> _Mount | None:
    # 31 23 0:28 /shown /point rw,relatime shared:9 - cgroup cgroup rw,memory
    place, _, kind = line.partition(b" - ")
    places, kinds = place.split(b" "), kind.split(b" ")
    if len(places) < 6 or len(kinds) < 3:
        return None

    shown, point = _parts(_unescape(places[3])), os.fsdecode(_unescape(places[4]))
    if kinds[0] == b"cgroup2":
        return _Mount(2, shown, point)
    if kinds[0] == b"cgroup" and b"memory" in kinds[-1].split(b","):
        return _Mount(1, shown, point)
    return None


def _ladder(version: int, own: tuple[str, ...], mounts: list[_Mount]) -> list[Place]:
    # The mount that shows most levels; of equals the last, for it may lie over the others.
    ladders = [_rungs(own, mount) for mount in reversed(mounts) if mount.version == version]
    return max(ladders, key=len) if ladders else []


def _rungs(own: tuple[str, ...], mount: _Mount) -> list[Place]:
    below = own[len(mount.shown) :]
    if own[: len(mount.shown)] == mount.shown and ".." not in below:
        heights = range(len(below) + 1)
        directories = ["/".join((mount.point.rstrip("/"), *below[: len(below) - up])) for up in heights]
        return [Place(mount.version, *found) for found in zip(directories, heights, strict=True)]

    # A mount from outside of our namespace, which shows an ancestor: its names on the way down to us are hidden, but
    # what it says of itself holds for us. Following `..` in the path would lead to cgroups that are not ours.
    climbs = own.count("..")
    if set(mount.shown) == {".."} and len(mount.shown) > climbs:
        return [Place(mount.version, mount.point, len(mount.shown) - climbs + len(own) - climbs)]
    return []


def _parts(path: bytes) -> tuple[str, ...]:
    return tuple(part for part in os.fsdecode(path).split("/") if part)


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
