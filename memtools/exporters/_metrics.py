"""The metrics of the process in one record, for a log line or a status page."""

import gc
import os
import time
from collections.abc import Callable
from typing import Final

from memtools._records import as_dict, record
from memtools.exporters._aggregates import headroom_bytes, highest_level, limit_bytes
from memtools.readings import Level, read_process
from memtools.units import format_size

_MIN_INTERVAL_S: Final = 0.1  # below it the clock of the processor is too coarse; psutil advises the same
_MB: Final = 10**6


class CpuPercent:
    """The share of one core that this process used between two calls.

    Args:
        wall: monotonic seconds.
        cpu: processor seconds of all threads of this process.
        pid: the number of this process.

    Threads: safe; two that call at the same moment may get the share of the same interval.
    """

    __slots__ = ("_cpu", "_mark", "_percent", "_pid", "_wall")

    def __init__(
        self,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        pid: Callable[[], int] = os.getpid,
    ) -> None:
        self._wall = wall
        self._cpu = cpu
        self._pid = pid
        self._mark = (pid(), wall(), cpu())
        self._percent = 0.0

    def update(self) -> float:
        """Return the share in percent since the last call, over 100 with several busy threads.

        Within 0.1 s of the last call its result is returned again. The child of a fork starts at 0, as its processor
        time does.
        """
        pid, then, used = self._mark
        now = (self._pid(), self._wall(), self._cpu())
        if now[0] != pid:
            self._mark, self._percent = now, 0.0
        elif now[1] - then >= _MIN_INTERVAL_S:
            self._mark, self._percent = now, max(0.0, 100 * (now[2] - used) / (now[1] - then))
        return self._percent


@record
class Metrics:
    """The figures of the process at one moment.

    Attributes:
        rss_mb: resident memory in MB, which are 10^6 bytes here as everywhere in memtools.
        vms_mb: virtual memory in MB.
        cpu_percent: share of one core that the process used since the last call, or since the import of memtools, in
            percent. Over 100 with several busy threads.
        gc_collections: runs of the garbage collector so far, by generation.
        gc_thresholds: `gc.get_threshold()`.
        limit_bytes: what the process may use: the lowest limit of the started monitors, else the effective limit; None
            where none is known.
        headroom_bytes: what is left to the nearest limit, negative beyond it; None where that is not known.
        level: the highest level of the started monitors; None where there is none.
        at: when, in seconds since the epoch.
    """

    rss_mb: float
    vms_mb: float
    cpu_percent: float
    gc_collections: tuple[int, ...]
    gc_thresholds: tuple[int, ...]
    limit_bytes: int | None
    headroom_bytes: int | None
    level: Level | None
    at: float

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold; the level by its name in lower case."""
        return as_dict(self) | {
            "gc_collections": list(self.gc_collections),
            "gc_thresholds": list(self.gc_thresholds),
            "level": None if self.level is None else self.level.name.lower(),
        }

    def __str__(self) -> str:
        left = "" if self.headroom_bytes is None else f", {format_size(self.headroom_bytes)} left"
        level = "" if self.level is None else f", {self.level.name.lower()}"
        return f"{format_size(self.rss_mb * _MB)} resident{left}{level}, {self.cpu_percent:.0f} % of a core"


_cpu_percent = CpuPercent()


def collect_metrics() -> Metrics:
    """Return the figures of the process now. Cheap enough for every few seconds; starts nothing.

    Threads: safe from any. Cost: some hundred microseconds, most of it for the headroom without a monitor.

    Raises:
        ReadingError: when the memory of the process cannot be read.
    """
    memory = read_process()
    return Metrics(
        rss_mb=memory.resident_bytes / _MB,
        vms_mb=memory.virtual_bytes / _MB,
        cpu_percent=_cpu_percent.update(),
        gc_collections=tuple(generation["collections"] for generation in gc.get_stats()),
        gc_thresholds=gc.get_threshold(),
        limit_bytes=limit_bytes(),
        headroom_bytes=headroom_bytes(),
        level=highest_level(),
        at=time.time(),
    )
