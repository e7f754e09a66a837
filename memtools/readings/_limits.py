"""The effective memory limit of this process, and its headroom.

Limits change while a process runs (`docker update`, a resized pod), so the limits that were found are cached for half a
minute only. Usage is never cached.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from memtools._forks import register_after_fork
from memtools._records import record
from memtools.readings._cgroups import (
    CgroupDirectory,
    CgroupLimit,
    CgroupUsage,
    KernelFiles,
    find_directories,
    find_limits,
    read_usage,
    under_root,
)
from memtools.readings._process import resident_bytes
from memtools.readings._types import Limit, LimitSource, Reading, describe_gaps
from memtools.units import format_size, parse_size

_MEMINFO: Final = "/proc/meminfo"
_VARIABLE: Final = "MEMTOOLS_LIMIT"
_RETRY_S: Final = 1.0  # after a scan for which no descriptor or no memory was left
_UNKNOWN_USAGE: Final = CgroupUsage(None, None, None, None)


@record
class LimitHeadroom:
    """What is left below one limit; limit and usage are of the same cgroup.

    Attributes:
        source: where the limit was set.
        path: the file that contains it; None if it does not come from a file.
        level: how many cgroups above the process's own it is set; None if it is not set in a cgroup, or in one that is
            not visible to this process.
        limit_bytes: the limit.
        used_bytes: the usage that counts against it, of all processes below it; None if it cannot be read.
        inactive_file_bytes: the part of `used_bytes` that is file cache not used of late, all of which counts as
            headroom: the kernel drops it before it kills a process; None if it cannot be read.
        active_file_bytes: the part that is file cache used of late, three quarters of which count as headroom: the
            kernel drops it as well, but some of it is what the program is working with; None if it cannot be read.
        slab_reclaimable_bytes: the part that is caches of the kernel, of names and inodes, half of which counts; None
            if it cannot be read, 0 on cgroup v1, which does not tell.
    """

    source: LimitSource
    path: str | None
    level: int | None
    limit_bytes: int
    used_bytes: int | None
    inactive_file_bytes: int | None
    active_file_bytes: int | None = 0
    slab_reclaimable_bytes: int | None = 0

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes to the limit, negative beyond it; None if the usage is not known."""
        usage = CgroupUsage(
            self.used_bytes, self.inactive_file_bytes, self.active_file_bytes, self.slab_reclaimable_bytes
        )
        held = usage.held_bytes
        return None if held is None else self.limit_bytes - held


@record
class Headroom:
    """How much more memory this process can take before it reaches the first limit.

    Attributes:
        value_bytes: the smallest headroom, negative beyond a limit; None if none is known. Below a limit whose usage is
            not known it is at most what the limit leaves above the usage that is: that of the highest visible cgroup
            below it, else the resident memory of this process.
        source: whose headroom it is; `LimitSource.PHYSICAL` if the machine itself is short.
        levels: the headroom below each limit, that of the process's own cgroup first.
        host_available_bytes: the memory that the machine can give without swapping; None if it is not known.
        gaps: files that exist but could not be read or parsed; one of them may contain a lower limit.
    """

    value_bytes: int | None
    source: LimitSource
    levels: tuple[LimitHeadroom, ...]
    host_available_bytes: int | None
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value_bytes is None:
            return f"no headroom known{describe_gaps(self.gaps)}"
        return f"{format_size(self.value_bytes)} left ({self.source}{describe_gaps(self.gaps)})"


@record
class _Scan:
    lowest: Limit
    limits: tuple[CgroupLimit, ...]
    valid_until: float  # by the reader's clock, seconds


class LimitReader:
    """Reads limits and headroom from one file system.

    Args:
        read: returns a whole file by its absolute path, or raises OSError.
        clock: monotonic seconds.
        physical: returns the memory of the machine in bytes, or None.
        available: returns the memory that the machine can still give in bytes, or None.
        resident: returns the memory of this process in bytes, which counts against a limit that the user set.
        environ: where MEMTOOLS_LIMIT is looked up, at every call.
        max_age_s: how long a scan of the cgroups is reused, in seconds.

    Threads: safe; two that come at once may both scan. Cost: 1 us, and some hundred when the cgroups are scanned again.
    """

    __slots__ = ("_available", "_cached", "_clock", "_environ", "_max_age_s", "_physical", "_read", "_resident")

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
        """Return the limit: `chosen`, else MEMTOOLS_LIMIT, else the lowest that the system sets.

        Raises:
            ConfigError: if `chosen` or the variable is not a size.
        """
        configured = self._configured_limit(chosen, refresh=refresh)
        return configured if configured is not None else self._cached_scan(refresh=refresh).lowest

    def headroom(self, chosen: object = None, *, refresh: bool = False) -> Headroom:
        """Return what is left below `chosen` or MEMTOOLS_LIMIT, below each cgroup limit, and on the machine.

        Raises:
            ConfigError: if `chosen` or the variable is not a size.
        """
        configured = self._configured_limit(chosen, refresh=refresh)
        files = KernelFiles(self._read)
        scan = self._cached_scan(refresh=refresh)
        levels = list(_headrooms(scan.limits, files))
        if configured is not None and configured.value_bytes is not None:
            used = self._resident_bytes()
            own = LimitHeadroom(configured.source, None, None, configured.value_bytes, used, 0)
            levels.insert(0, (own, None))
        known = [(self._highest_headroom(*level), level[0].source) for level in levels]
        available = self._available()
        if available is not None:
            known.append((available, LimitSource.PHYSICAL))

        value, source = min(known, key=lambda pair: pair[0], default=(None, LimitSource.UNKNOWN))
        # A file that was unreadable during the scan may contain a limit; one that is unreadable now contains a usage.
        gaps = tuple(dict.fromkeys((*scan.lowest.gaps, *files.unreadable)))
        return Headroom(value, source, tuple(level for level, _ in levels), available, gaps)

    def invalidate(self) -> None:
        """Scan again at the next call: a forked child may have been moved to another cgroup."""
        self._cached = None

    def _configured_limit(self, chosen: object, *, refresh: bool) -> Limit | None:
        if chosen is not None:
            return Limit(self._parse(chosen, "limit", refresh=refresh), LimitSource.USER)
        text = self._environ.get(_VARIABLE, "")
        if not text.strip():  # templates leave a variable empty for "not set"
            return None
        return Limit(self._parse(text, _VARIABLE, refresh=refresh), LimitSource.ENVIRONMENT)

    def _parse(self, value: object, name: str, *, refresh: bool) -> int:
        return parse_size(value, name=name, percent_of=lambda: self._cached_scan(refresh=refresh).lowest.value_bytes)

    def _cached_scan(self, *, refresh: bool = False) -> _Scan:
        now = self._clock()
        cached = self._cached
        if refresh or cached is None or now >= cached.valid_until:
            cached = self._cached = self._scan(now, cached)
        return cached

    def _scan(self, now: float, former: _Scan | None) -> _Scan:
        files = KernelFiles(self._read)
        physical = self._physical()
        limits = find_limits(find_directories(files), files, physical)
        gaps = tuple(files.unreadable)
        if files.is_short:
            valid_until = now + min(_RETRY_S, self._max_age_s)
            # The limits have not changed because no descriptor is left to read them.
            if former is not None:
                return _Scan(_with_gaps(former.lowest, gaps), former.limits, valid_until)
        else:
            valid_until = now + self._max_age_s
        if not limits:
            source = LimitSource.UNKNOWN if physical is None else LimitSource.PHYSICAL
            return _Scan(Limit(physical, source, gaps=gaps), limits, valid_until)

        lowest = min(limits, key=lambda limit: limit.limit_bytes)
        level = None if lowest.cgroup is None else lowest.cgroup.level
        return _Scan(Limit(lowest.limit_bytes, lowest.source, lowest.path, level, gaps), limits, valid_until)

    def _highest_headroom(self, level: LimitHeadroom, least_used: int | None) -> int:
        """Return the headroom below one limit; the most that it can be where the usage is not known."""
        left = level.headroom_bytes
        if left is not None:
            return left
        return level.limit_bytes - (least_used if least_used is not None else self._resident_bytes() or 0)

    def _resident_bytes(self) -> int | None:
        try:
            return self._resident()
        except OSError:
            return None


def _headrooms(limits: tuple[CgroupLimit, ...], files: KernelFiles) -> Iterator[tuple[LimitHeadroom, int | None]]:
    """Yield each limit with its usage; and, where that is not known, the usage below it that is."""
    usages: dict[CgroupDirectory, CgroupUsage] = {}  # max and high of one cgroup share their usage

    def usage_of(cgroup: CgroupDirectory) -> CgroupUsage:
        if cgroup not in usages:
            usages[cgroup] = read_usage(cgroup, files)
        return usages[cgroup]

    for limit in limits:
        usage = _UNKNOWN_USAGE if limit.cgroup is None else usage_of(limit.cgroup)
        level = LimitHeadroom(
            limit.source,
            limit.path,
            None if limit.cgroup is None else limit.cgroup.level,
            limit.limit_bytes,
            usage.used_bytes,
            usage.inactive_file_bytes,
            usage.active_file_bytes,
            usage.slab_bytes,
        )
        yield level, None if limit.below is None else usage_of(limit.below).held_bytes


def _with_gaps(limit: Limit, gaps: tuple[str, ...]) -> Limit:
    return Limit(limit.value_bytes, limit.source, limit.path, limit.level, tuple(dict.fromkeys((*limit.gaps, *gaps))))


def meminfo_bytes(files: KernelFiles, name: bytes) -> int | None:
    """Return the figure on the line `name` of /proc/meminfo, in bytes; None if there is none."""
    kib = files.read_field(_MEMINFO, name)
    return None if kib is None else kib * 1024


def physical_bytes() -> int | None:
    """Return the memory of the machine, in bytes; None if neither /proc/meminfo, psutil nor `sysconf` reports it."""
    found = meminfo_bytes(KernelFiles(under_root("/")), b"MemTotal")
    return found or _ask_psutil("physical_bytes") or _ask_sysconf()


def available_bytes() -> int | None:
    """Return the memory that the machine can give without swapping, in bytes; None if it is not known.

    It is that of the whole machine: a container may be allowed less (see `headroom`).
    """
    found = meminfo_bytes(KernelFiles(under_root("/")), b"MemAvailable")
    return found if found is not None else _ask_psutil("available_bytes")


def _ask_psutil(question: str) -> int | None:
    try:
        from memtools.readings import _psutil  # loaded on first need

        ask: Callable[[], int] = getattr(_psutil, question)
        return ask()
    except (OSError, ImportError, RuntimeError):  # no /proc, no free descriptor, or an unsupported platform
        return None


def _ask_sysconf() -> int | None:
    # A system call that needs no descriptor: /proc/meminfo and psutil need one.
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, and not every system these names
        return None
    return found if found > 0 else None


_reader = LimitReader(
    under_root("/"),
    clock=time.monotonic,
    physical=physical_bytes,
    available=available_bytes,
    resident=resident_bytes,
)

register_after_fork(_reader.invalidate)


def effective_limit(limit: int | str | None = None, *, refresh: bool = False) -> Limit:
    """Return how much memory this process may use, and where that was set.

    It is `limit` if given; else the environment variable MEMTOOLS_LIMIT, read at every call; else the lowest of
    physical memory and every cgroup limit from the process's own cgroup to the root (v2 `memory.max` and `memory.high`,
    v1 `limit_in_bytes` and `hierarchical_memory_limit`). RLIMIT_AS is not considered: it counts reserved addresses.

    Args:
        limit: bytes, a size as `memtools.units.parse_size` takes it, or a share of the system's limit (`"80%"`).
        refresh: scan the cgroups now; otherwise a scan is reused for 30 seconds.

    Raises:
        ConfigError: if `limit` or MEMTOOLS_LIMIT is not a size.
    """
    return _reader.limit(limit, refresh=refresh)


def headroom(limit: int | str | None = None, *, refresh: bool = False) -> Headroom:
    """Return how much more memory this process can take before it reaches the first limit.

    It is the smallest of `limit - (usage - cache)` of every cgroup limit, of what `limit` or MEMTOOLS_LIMIT leaves
    above the resident memory of this process, and of what the machine has available. All inactive and three quarters of
    the active file cache count, and half of the kernel's own caches, since the kernel drops them before it kills a
    process. Another process that fills a
    shared ancestor cgroup lowers it. Never more than a known limit leaves.

    Args:
        limit: as for `effective_limit`.
        refresh: scan for changed limits now; usage is read at every call.

    Raises:
        ConfigError: if `limit` or MEMTOOLS_LIMIT is not a size.
    """
    return _reader.headroom(limit, refresh=refresh)


def take_reading(limit: int | str | None = None) -> Reading:
    """Return how much of its effective limit this process uses now.

    Raises:
        ConfigError: if `limit` or MEMTOOLS_LIMIT is not a size.
        ReadingError: if the system does not report the usage.
    """
    allowed = _reader.limit(limit).value_bytes
    return Reading(resident_bytes(), allowed, time.monotonic())
