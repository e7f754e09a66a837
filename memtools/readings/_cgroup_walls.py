"""What the cgroups of this process allow, and how much of it is taken.

Covers: the limits of each level, v1 and v2; the usage that counts against them.
Leaves to others: where the levels are (`_cgroup_places`), which limit is the least (`_limit_reader`).
"""

from collections.abc import Iterable, Iterator

from memtools.readings._cgroup_places import Place
from memtools.readings._limit import LimitSource
from memtools.readings._tree import Tree
from memtools.records import record

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
class Wall:
    """One limit of one cgroup.

    Attributes:
        place: where it stands; None for one that stands above what can be seen.
    """

    limit_bytes: int
    source: LimitSource
    path: str
    place: Place | None


def find_walls(places: Iterable[Place], tree: Tree, physical_bytes: int | None) -> tuple[Wall, ...]:
    """Return every limit in `places` that could ever be felt on a machine with `physical_bytes`."""
    ceiling = _NO_MACHINE_BYTES if physical_bytes is None else physical_bytes
    counted = list(_counted(places, tree))
    walls = [wall for place in counted for wall in _walls(place, tree) if wall.limit_bytes <= ceiling]
    hidden = _hidden_wall([place for place in counted if place.version == 1], tree)
    least = min((wall.limit_bytes for wall in walls if wall.source is LimitSource.CGROUP1), default=ceiling + 1)
    if hidden is not None and hidden.limit_bytes < least:
        walls.append(hidden)
    return tuple(walls)


def usage_bytes(place: Place, tree: Tree) -> tuple[int | None, int | None]:
    """Return what is charged to a cgroup, and how much of it is file cache that the kernel drops first, in bytes."""
    used = tree.number(f"{place.directory}/{_USAGE[place.version]}")
    inactive = tree.labelled(f"{place.directory}/memory.stat", _INACTIVE[place.version])
    return used, inactive


def _counted(places: Iterable[Place], tree: Tree) -> Iterator[Place]:
    # Before Linux 5.11 a v1 cgroup without use_hierarchy did not count its children, and neither did those above it.
    is_cut = False
    for place in places:
        if place.version == 1 and place.level > 0:
            is_cut = is_cut or tree.number(f"{place.directory}/memory.use_hierarchy") == 0
            if is_cut:
                continue
        yield place


def _walls(place: Place, tree: Tree) -> Iterator[Wall]:
    for name, source in _LIMITS[place.version]:
        path = f"{place.directory}/{name}"
        limit = tree.number(path)
        if limit is not None:
            yield Wall(limit, source, path, place)


def _hidden_wall(places: list[Place], tree: Tree) -> Wall | None:
    # In a container the ancestors are often not mounted; v1 at least tells the least of their limits.
    for place in places:
        path = f"{place.directory}/memory.stat"
        limit = tree.labelled(path, b"hierarchical_memory_limit")
        if limit is not None:
            return Wall(limit, LimitSource.CGROUP1_HIERARCHY, path, None)
    return None
