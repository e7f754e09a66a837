"""Find the limit that holds for this process, and keep it for half a minute.

Covers: the order of user, environment and system; the least of all levels; the cache.
Leaves to others: the cgroup files (`_cgroup_places`, `_cgroup_walls`), the machine (`_host`).

Limits change while a process runs (`docker update`, a resized pod), so nothing is kept for ever; usage is never kept.
"""

import os
from collections.abc import Callable, Iterator, Mapping

from memtools.readings._cgroup_places import Place, find_places
from memtools.readings._cgroup_walls import Wall, find_walls, usage_bytes
from memtools.readings._headroom import Headroom, LevelRoom, least_room
from memtools.readings._limit import Limit, LimitSource
from memtools.readings._tree import Tree
from memtools.records import record
from memtools.units import parse_size

_VARIABLE = "MEMTOOLS_LIMIT"


@record
class _Walk:
    least: Limit
    walls: tuple[Wall, ...]
    at: float  # by the reader's clock, seconds


class LimitReader:
    """Reads limits and headroom from one file system.

    Args:
        read: returns a whole file by its absolute path, or raises OSError.
        clock: monotonic seconds.
        physical: the memory of the machine in bytes, or None.
        available: what the machine can still give in bytes, or None.
        resident: what this process uses, in bytes; counts against a limit by the user.
        environ: where MEMTOOLS_LIMIT is looked up, at every call.
        keep_seconds: how long a walk through the cgroups is good for.

    Threads: safe; two that come at once may both walk. Cost: 1 us, and some hundred when the walk is renewed.
    """

    __slots__ = ("_available", "_clock", "_environ", "_keep_seconds", "_kept", "_physical", "_read", "_resident")

    def __init__(
        self,
        read: Callable[[str], bytes],
        *,
        clock: Callable[[], float],
        physical: Callable[[], int | None],
        available: Callable[[], int | None],
        resident: Callable[[], int],
        environ: Mapping[str, str] = os.environ,
        keep_seconds: float = 30.0,
    ) -> None:
        self._read = read
        self._clock = clock
        self._physical = physical
        self._available = available
        self._resident = resident
        self._environ = environ
        self._keep_seconds = keep_seconds
        self._kept: _Walk | None = None

    def limit(self, chosen: object = None, *, refresh: bool = False) -> Limit:
        """Return the limit: `chosen`, else MEMTOOLS_LIMIT, else the least that the system sets.

        Raises:
            ConfigError: when `chosen` or the variable is not a size.
        """
        own = self._own_limit(chosen, refresh=refresh)
        return own if own is not None else self._walk(refresh=refresh).least

    def headroom(self, chosen: object = None, *, refresh: bool = False) -> Headroom:
        """Return what is left below `chosen` or MEMTOOLS_LIMIT, every cgroup above us, and the machine.

        Raises:
            ConfigError: when `chosen` or the variable is not a size.
        """
        own = self._own_limit(chosen, refresh=refresh)
        tree = Tree(self._read)
        levels = list(_rooms(self._walk(refresh=refresh).walls, tree))
        if own is not None and own.value_bytes is not None:
            levels.insert(0, LevelRoom(own.source, None, None, own.value_bytes, self._resident_bytes(), 0))
        available = self._available()
        # A file that was unreadable in the walk may hide a wall; one that is unreadable now hides a usage.
        gaps = dict.fromkeys((*self._walk().least.gaps, *tree.gaps))
        return least_room(levels, available, gaps)

    def forget(self) -> None:
        """Walk anew at the next question: a forked child may be put elsewhere."""
        self._kept = None

    def _own_limit(self, chosen: object, *, refresh: bool) -> Limit | None:
        if chosen is not None:
            return Limit(self._size(chosen, "limit", refresh=refresh), LimitSource.USER)
        text = self._environ.get(_VARIABLE, "")
        if not text.strip():  # an empty variable is how templates say "not set"
            return None
        return Limit(self._size(text, _VARIABLE, refresh=refresh), LimitSource.ENVIRONMENT)

    def _size(self, value: object, name: str, *, refresh: bool) -> int:
        return parse_size(value, name=name, percent_of=lambda: self._walk(refresh=refresh).least.value_bytes)

    def _walk(self, *, refresh: bool = False) -> _Walk:
        now = self._clock()
        kept = self._kept
        if refresh or kept is None or now - kept.at >= self._keep_seconds:
            kept = self._kept = self._walk_now(now)
        return kept

    def _walk_now(self, now: float) -> _Walk:
        tree = Tree(self._read)
        physical = self._physical()
        walls = find_walls(find_places(tree), tree, physical)
        gaps = tuple(tree.gaps)
        if not walls:
            source = LimitSource.UNKNOWN if physical is None else LimitSource.PHYSICAL
            return _Walk(Limit(physical, source, gaps=gaps), walls, now)

        wall = min(walls, key=lambda wall: wall.limit_bytes)
        level = None if wall.place is None else wall.place.level
        return _Walk(Limit(wall.limit_bytes, wall.source, wall.path, level, gaps), walls, now)

    def _resident_bytes(self) -> int | None:
        try:
            return self._resident()
        except OSError:
            return None


def _rooms(walls: tuple[Wall, ...], tree: Tree) -> Iterator[LevelRoom]:
    usages: dict[Place, tuple[int | None, int | None]] = {}  # max and high of one cgroup share their usage
    for wall in walls:
        place = wall.place
        if place is None:
            yield LevelRoom(wall.source, wall.path, None, wall.limit_bytes, None, None)
            continue
        if place not in usages:
            usages[place] = usage_bytes(place, tree)
        yield LevelRoom(wall.source, wall.path, place.level, wall.limit_bytes, *usages[place])
