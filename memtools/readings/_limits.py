"""Find the limit that holds for this process, and keep it for half a minute.

Covers: the order of user, environment and system; the least of all levels; the cache.
Leaves to others: the cgroup files (`_cgroup_places`, `_cgroup_walls`), the machine (`_host`).

Limits change while a process runs (`docker update`, a resized pod), so nothing is kept for ever; usage is never kept.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from memtools._records import record
from memtools.readings._cgroups import CgroupDirectory, KernelFiles, CgroupLimit, find_directories, find_limits, under_root, usage_bytes
from memtools.readings._process import resident_bytes
from memtools.readings._types import Limit, LimitSource, Reading
from memtools.units import format_size, parse_size

# How much more memory this process can take before it meets the first wall.
#
# Leaves to others: where the walls are found (`_limit_reader`).


@record
class LimitHeadroom:
    """What is left below one wall; limit and usage are of the same level.

    Attributes:
        source: who set the limit.
        path: the file that says so, if a file does.
        level: how many cgroups above our own it stands; None where it is none of a cgroup, or of one that cannot be
            seen from here.
        limit_bytes: the wall.
        used_bytes: what counts against it, of all who live below it; None where that cannot be read.
        inactive_file_bytes: the part of `used_bytes` that is file cache, which the kernel drops before it kills; None
            where that cannot be read.
    """

    source: LimitSource
    path: str | None
    level: int | None
    limit_bytes: int
    used_bytes: int | None
    inactive_file_bytes: int | None

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes to the wall, negative beyond it; None where the usage is not known."""
        if self.used_bytes is None or self.inactive_file_bytes is None:
            return None
        # The two are read one after the other: cache that grew in between must not make the usage negative.
        return self.limit_bytes - max(self.used_bytes - self.inactive_file_bytes, 0)


@record
class Headroom:
    """How much more memory this process can take before it meets the first wall.

    Attributes:
        value_bytes: the least of all rooms, negative beyond a wall; None when no room is known.
        source: whose room it is; `LimitSource.PHYSICAL` when the machine itself is short.
        levels: the room below each wall, our own cgroup first.
        host_available_bytes: what the machine can give without swapping; None when it does not say.
        gaps: files that exist and could not be read or understood; less room may hide in them.
    """

    value_bytes: int | None
    source: LimitSource
    levels: tuple[LimitHeadroom, ...]
    host_available_bytes: int | None
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value_bytes is None:
            return "no headroom known"
        return f"{format_size(self.value_bytes)} left ({self.source})"


def smallest_headroom(levels: Iterable[LimitHeadroom], available_bytes: int | None, gaps: Iterable[str]) -> Headroom:
    """Return the headroom that the tightest of `levels` and the machine leave."""
    kept = tuple(levels)
    rooms = [(level.headroom_bytes, level.source) for level in kept if level.headroom_bytes is not None]
    if available_bytes is not None:
        rooms.append((available_bytes, LimitSource.PHYSICAL))

    value, source = min(rooms, key=lambda room: room[0], default=(None, LimitSource.UNKNOWN))
    return Headroom(value, source, kept, available_bytes, tuple(gaps))


# How much memory the machine has, and how much of it can still be given out.
#
# Linux tells it in /proc/meminfo; psutil is asked where that file is missing, and by kernels that say less in it.

_MEMINFO = "/proc/meminfo"


def meminfo_bytes(tree: KernelFiles, label: bytes) -> int | None:
    """Return what /proc/meminfo says on the line `label`, in bytes; None where it does not."""
    kib = tree.read_field(_MEMINFO, label)
    return None if kib is None else kib * 1024


def physical_bytes() -> int | None:
    """Return how much memory the machine has, in bytes; None when nothing here can tell."""
    told = meminfo_bytes(KernelFiles(under_root("/")), b"MemTotal")
    return told if told is not None else _ask_psutil("physical_bytes")


def available_bytes() -> int | None:
    """Return how much memory the machine can give without swapping, in bytes; None when nothing here can tell.

    Of the whole machine: a container may be allowed less (see `headroom`).
    """
    told = meminfo_bytes(KernelFiles(under_root("/")), b"MemAvailable")
    return told if told is not None else _ask_psutil("available_bytes")


def _ask_psutil(question: str) -> int | None:
    try:
        from memtools.readings import _psutil

        ask: Callable[[], int] = getattr(_psutil, question)
        return ask()
    except (OSError, ImportError, RuntimeError):  # no /proc at all, no descriptor left, a platform that it cannot read
        return None


_VARIABLE = "MEMTOOLS_LIMIT"


@record
class _Scan:
    lowest: Limit
    limits: tuple[CgroupLimit, ...]
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

    __slots__ = ("_available", "_clock", "_environ", "_max_age_s", "_cached", "_physical", "_read", "_resident")

    def __init__(
        self,
        read: Callable[[str], bytes],
        *,
        clock: Callable[[], float],
        physical: Callable[[], int | None],
        available: Callable[[], int | None],
        resident: Callable[[], int],
        environ: Mapping[str, str] = os.environ,
        max_age_s: float = 30.0,
    ) -> None:
        self._read = read
        self._clock = clock
        self._physical = physical
        self._available = available
        self._resident = resident
        self._environ = environ
        self._max_age_s = max_age_s
        self._cached: _Scan | None = None

    def limit(self, chosen: object = None, *, refresh: bool = False) -> Limit:
        """Return the limit: `chosen`, else MEMTOOLS_LIMIT, else the least that the system sets.

        Raises:
            ConfigError: when `chosen` or the variable is not a size.
        """
        own = self._configured_limit(chosen, refresh=refresh)
        return own if own is not None else self._cached_scan(refresh=refresh).lowest

    def headroom(self, chosen: object = None, *, refresh: bool = False) -> Headroom:
        """Return what is left below `chosen` or MEMTOOLS_LIMIT, every cgroup above us, and the machine.

        Raises:
            ConfigError: when `chosen` or the variable is not a size.
        """
        own = self._configured_limit(chosen, refresh=refresh)
        tree = KernelFiles(self._read)
        levels = list(_headrooms(self._cached_scan(refresh=refresh).limits, tree))
        if own is not None and own.value_bytes is not None:
            levels.insert(0, LimitHeadroom(own.source, None, None, own.value_bytes, self._resident_bytes(), 0))
        available = self._available()
        # A file that was unreadable in the walk may hide a wall; one that is unreadable now hides a usage.
        gaps = dict.fromkeys((*self._cached_scan().lowest.gaps, *tree.unreadable))
        return smallest_headroom(levels, available, gaps)

    def invalidate(self) -> None:
        """Walk anew at the next question: a forked child may be put elsewhere."""
        self._cached = None

    def _configured_limit(self, chosen: object, *, refresh: bool) -> Limit | None:
        if chosen is not None:
            return Limit(self._size(chosen, "limit", refresh=refresh), LimitSource.USER)
        text = self._environ.get(_VARIABLE, "")
        if not text.strip():  # an empty variable is how templates say "not set"
            return None
        return Limit(self._size(text, _VARIABLE, refresh=refresh), LimitSource.ENVIRONMENT)

    def _size(self, value: object, name: str, *, refresh: bool) -> int:
        return parse_size(value, name=name, percent_of=lambda: self._cached_scan(refresh=refresh).lowest.value_bytes)

    def _cached_scan(self, *, refresh: bool = False) -> _Scan:
        now = self._clock()
        kept = self._cached
        if refresh or kept is None or now - kept.at >= self._max_age_s:
            kept = self._cached = self._scan(now)
        return kept

    def _scan(self, now: float) -> _Scan:
        tree = KernelFiles(self._read)
        physical = self._physical()
        walls = find_limits(find_directories(tree), tree, physical)
        gaps = tuple(tree.unreadable)
        if not walls:
            source = LimitSource.UNKNOWN if physical is None else LimitSource.PHYSICAL
            return _Scan(Limit(physical, source, gaps=gaps), walls, now)

        wall = min(walls, key=lambda wall: wall.limit_bytes)
        level = None if wall.cgroup is None else wall.cgroup.level
        return _Scan(Limit(wall.limit_bytes, wall.source, wall.path, level, gaps), walls, now)

    def _resident_bytes(self) -> int | None:
        try:
            return self._resident()
        except OSError:
            return None


def _headrooms(walls: tuple[CgroupLimit, ...], tree: KernelFiles) -> Iterator[LimitHeadroom]:
    usages: dict[CgroupDirectory, tuple[int | None, int | None]] = {}  # max and high of one cgroup share their usage
    for wall in walls:
        place = wall.cgroup
        if place is None:
            yield LimitHeadroom(wall.source, wall.path, None, wall.limit_bytes, None, None)
            continue
        if place not in usages:
            usages[place] = usage_bytes(place, tree)
        yield LimitHeadroom(wall.source, wall.path, place.level, wall.limit_bytes, *usages[place])


# The questions to the real machine: which limit holds here, how much room is left, how full are we.
#
# Leaves to others: how the answers are found (`_limit_reader`, `_process`).

_reader = LimitReader(
    under_root("/"),
    clock=time.monotonic,
    physical=physical_bytes,
    available=available_bytes,
    resident=resident_bytes,
)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reader.invalidate)


def effective_limit(limit: int | str | None = None, *, refresh: bool = False) -> Limit:
    """Return how much memory this process may use, and who says so.

    `limit` if given; else the environment variable MEMTOOLS_LIMIT, read at every call; else the least of every cgroup
    limit from our own cgroup to the root (v2 `memory.max` and `memory.high`, v1 `limit_in_bytes` and
    `hierarchical_memory_limit`) and of physical memory. RLIMIT_AS is none of them: it counts reserved addresses.

    Args:
        limit: bytes, a size as `memtools.units.parse_size` takes it, or a share of what the system allows (`"80%"`).
        refresh: look now; else what was found is good for 30 seconds, as limits may change while we run.

    Raises:
        ConfigError: when `limit` or MEMTOOLS_LIMIT is not a size.
    """
    return _reader.limit(limit, refresh=refresh)


def headroom(limit: int | str | None = None, *, refresh: bool = False) -> Headroom:
    """Return how much more memory this process can take before it meets the first wall.

    The least of `limit - (usage - inactive_file)` of every cgroup above us, of what `limit` or MEMTOOLS_LIMIT leaves to
    our own resident memory, and of what the machine has available. A sibling that fills a shared ancestor shows here.

    Args:
        limit: as for `effective_limit`.
        refresh: look for changed limits now; usage is read at every call.

    Raises:
        ConfigError: when `limit` or MEMTOOLS_LIMIT is not a size.
    """
    return _reader.headroom(limit, refresh=refresh)


def take_reading(limit: int | str | None = None) -> Reading:
    """Return how much this process uses out of its effective limit, now.

    Raises:
        ConfigError: when `limit` or MEMTOOLS_LIMIT is not a size.
        ReadingError: when the system does not say what is used.
    """
    allowed = _reader.limit(limit).value_bytes
    return Reading(resident_bytes(), allowed, time.monotonic())
